"""Make Vision Transformers cheaper by dropping tokens while they run."""

from dynavit.errors import InputError
from dynavit.models import PrunedViT, Trace, create_model, load, prune
from dynavit.models.adaptive import calibrate
from dynavit.models.convert import convert
from dynavit.models.ratios import ratios_removing
from dynavit.reducers import list_reducers
from dynavit.scorers import list_scorers
from dynavit.selectors import (
    Selection,
    Selector,
    check_selector,
    create_selector,
    list_selectors,
    register_selector,
)

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "PrunedViT",
    "Selection",
    "Selector",
    "Trace",
    "calibrate",
    "check_selector",
    "convert",
    "create_model",
    "create_selector",
    "list_reducers",
    "list_scorers",
    "list_selectors",
    "load",
    "prune",
    "ratios_removing",
    "register_selector",
]
