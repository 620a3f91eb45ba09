"""Adapters by the class of backbone that they drive."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from dynavit.adapters.base import BackboneAdapter
from dynavit.errors import UnsupportedBackbone

_ADAPTERS: dict[type[nn.Module], type[BackboneAdapter]] = {}
_A = TypeVar("_A", bound="type[BackboneAdapter]")


def register_adapter(*backbones: type[nn.Module]) -> Callable[[_A], _A]:
    """Use an adapter class for these timm classes and everything that inherits from them."""

    def register(cls: _A) -> _A:
        for backbone in backbones:
            _ADAPTERS[backbone] = cls
        return cls

    return register


def create_adapter(backbone: nn.Module) -> BackboneAdapter:
    """Return the adapter for a backbone, by its class or the nearest base class.

    Raises:
        UnsupportedBackbone: no adapter; the message lists the supported classes.
    """
    for base in type(backbone).__mro__:
        if base in _ADAPTERS:
            if getattr(type(backbone), "forward_features", None) is not getattr(base, "forward_features", None):
                break  # a subclass that computes something else
            return _ADAPTERS[base](backbone)
    supported = ", ".join(sorted(cls.__name__ for cls in _ADAPTERS))
    raise UnsupportedBackbone(
        f"{type(backbone).__name__} cannot be pruned: dynavit supports timm's {supported} and their "
        f"subclasses. Others can be added with dynavit.adapters.register_adapter."
    )
