"""timm Vision Transformers that drop tokens while they run."""

from dynavit.models.factory import create_model, load, prune
from dynavit.models.pruned_vit import PrunedViT
from dynavit.models.trace import Trace

__all__ = ["PrunedViT", "Trace", "create_model", "load", "prune"]
