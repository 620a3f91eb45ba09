"""Rules that decide which tokens a Vision Transformer keeps."""

from dynavit.selectors.base import Selection, Selector
from dynavit.selectors.baselines import Fixed, Random
from dynavit.selectors.concrete import GumbelSigmoid, StraightThrough
from dynavit.selectors.functional import num_keep
from dynavit.selectors.registry import create_selector, list_selectors, register_selector
from dynavit.selectors.topk import TopK

__all__ = [
    "Fixed",
    "GumbelSigmoid",
    "Random",
    "Selection",
    "Selector",
    "StraightThrough",
    "TopK",
    "create_selector",
    "list_selectors",
    "num_keep",
    "register_selector",
]
