"""timm Vision Transformers that drop tokens while they run."""

from dynavit.models.factory import create_model, prune
from dynavit.models.heads import BNNeck, Embedding
from dynavit.models.loading import load
from dynavit.models.pruned_vit import PrunedViT
from dynavit.models.side import SideEmbedding
from dynavit.models.trace import Trace

__all__ = ["BNNeck", "Embedding", "PrunedViT", "SideEmbedding", "Trace", "create_model", "load", "prune"]
