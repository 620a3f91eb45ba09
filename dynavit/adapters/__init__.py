"""How each family of timm backbones is driven block by block."""

from dynavit.adapters.base import BackboneAdapter
from dynavit.adapters.beit import BeitAdapter
from dynavit.adapters.eva import EvaAdapter
from dynavit.adapters.naflex import NaFlexVitAdapter
from dynavit.adapters.registry import create_adapter, register_adapter
from dynavit.adapters.vit import VisionTransformerAdapter

__all__ = [
    "BackboneAdapter",
    "BeitAdapter",
    "EvaAdapter",
    "NaFlexVitAdapter",
    "VisionTransformerAdapter",
    "create_adapter",
    "register_adapter",
]
