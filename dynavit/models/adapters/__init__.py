"""How each family of timm backbones is driven block by block."""

from dynavit.models.adapters.base import BackboneAdapter
from dynavit.models.adapters.beit import BeitAdapter
from dynavit.models.adapters.eva import EvaAdapter
from dynavit.models.adapters.naflex import NaFlexVitAdapter
from dynavit.models.adapters.registry import create_adapter, register_adapter
from dynavit.models.adapters.vit import VisionTransformerAdapter

__all__ = [
    "BackboneAdapter",
    "BeitAdapter",
    "EvaAdapter",
    "NaFlexVitAdapter",
    "VisionTransformerAdapter",
    "create_adapter",
    "register_adapter",
]
