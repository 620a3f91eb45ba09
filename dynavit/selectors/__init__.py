"""Rules that decide which tokens a Vision Transformer keeps."""

from dynavit.selectors.base import Selector
from dynavit.selectors.baselines import Fixed, Random
from dynavit.selectors.concrete import GumbelSigmoid, StraightThrough, ThresholdStraightThrough
from dynavit.selectors.contract import check_selector
from dynavit.selectors.perturbed import PerturbedTopK
from dynavit.selectors.registry import create_selector, list_selectors, register_selector
from dynavit.selectors.score_function import ScoreFunction
from dynavit.selectors.selection import Selection, SelectionRequest
from dynavit.selectors.topk import GumbelTopK, SoftTopK, TopK

__all__ = [
    "Fixed",
    "GumbelSigmoid",
    "GumbelTopK",
    "PerturbedTopK",
    "Random",
    "ScoreFunction",
    "Selection",
    "SelectionRequest",
    "Selector",
    "SoftTopK",
    "StraightThrough",
    "ThresholdStraightThrough",
    "TopK",
    "check_selector",
    "create_selector",
    "list_selectors",
    "register_selector",
]
