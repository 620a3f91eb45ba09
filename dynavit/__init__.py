"""Make Vision Transformers cheaper by dropping tokens while they run."""

from dynavit.errors import InputError
from dynavit.models import PrunedViT, Trace, create_model, load, prune
from dynavit.models.convert import convert
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
    "check_selector",
    "convert",
    "create_model",
    "create_selector",
    "list_selectors",
    "load",
    "prune",
    "register_selector",
]
