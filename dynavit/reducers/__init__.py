"""What becomes of the tokens that are not kept."""

from dynavit.reducers.aggregate import Aggregate
from dynavit.reducers.base import Reduced, Reducer, TokenSet
from dynavit.reducers.drop import Drop
from dynavit.reducers.fuse import Fuse
from dynavit.reducers.merge import Merge, Merged
from dynavit.reducers.merge_nearest import MergeNearest
from dynavit.reducers.registry import create_reducer, list_reducers, reducer_config
from dynavit.reducers.squeeze import Squeeze

__all__ = [
    "Aggregate",
    "Drop",
    "Fuse",
    "Merge",
    "MergeNearest",
    "Merged",
    "Reduced",
    "Reducer",
    "Squeeze",
    "TokenSet",
    "create_reducer",
    "list_reducers",
    "reducer_config",
]
