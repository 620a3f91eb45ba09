"""What becomes of the tokens that are not kept."""

from dynavit.reducers.base import Reducer, create_reducer
from dynavit.reducers.drop import Drop

__all__ = ["Drop", "Reducer", "create_reducer"]
