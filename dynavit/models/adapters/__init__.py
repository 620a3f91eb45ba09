"""How each family of timm backbones is driven block by block."""

from dynavit.models.adapters.base import BackboneAdapter, create_adapter, register_adapter
from dynavit.models.adapters.vit import VisionTransformerAdapter

__all__ = ["BackboneAdapter", "VisionTransformerAdapter", "create_adapter", "register_adapter"]
