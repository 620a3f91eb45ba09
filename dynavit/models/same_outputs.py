"""Finding out by a fixed input whether two ways of running a model give the same, and what code of others it runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynavit.adapters import BackboneAdapter
from dynavit.errors import InputError
from dynavit.text import listed

_TOLERANCE = 1e-4  # of the largest output
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def noise_image(adapter: BackboneAdapter) -> Tensor:
    """Return one image of noise, always the same, on the device and in the precision of the backbone."""
    first = next(adapter.backbone.parameters())
    size = adapter.image_size or tuple(4 * side for side in adapter.patch_size)
    images = torch.randn(1, adapter.in_chans, *size, generator=torch.Generator().manual_seed(0))
    return images.to(first.device, first.dtype)


def close(output: Any, other: Any) -> bool:
    """Whether two outputs are the same but for rounding."""
    if not isinstance(output, Tensor) or not isinstance(other, Tensor) or output.shape != other.shape:
        return False
    scale = float(output.abs().nan_to_num().max()) if output.numel() else 0.0
    return torch.allclose(output, other, rtol=0, atol=_TOLERANCE * scale, equal_nan=True)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and its parts back into their own afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def own_code(module: nn.Module) -> tuple[Any, ...]:
    """Return what tells a module with hooks, or a forward of its own, from one of its class and from other hooks."""
    return ("forward" in vars(module), *(tuple(getattr(module, name)) for name in _HOOKS))


@torch.no_grad()
def check_own_code(model: Any) -> None:
    """Refuse hooks and forwards put on a pruned model, or on its parts beside the backbone, that change its outputs.

    Those that only watch may stay.

    Raises:
        InputError: naming the parts.
    """
    backbone = set(model.backbone.modules())
    parts = {name or "the model itself": part for name, part in model.named_modules() if part not in backbone}
    # accelerate replaces the forward of a whole model, to run it in mixed precision
    altered = {name: part for name, part in parts.items() if any(own_code(part)[part is model :])}
    if not altered:
        return
    images, cameras = model.as_samples(noise_image(model.adapter)), model.unknown_cameras(1)
    with evaluating(model), torch.autocast(images.device.type, enabled=False):
        try:
            with _without(altered.values(), keep=model):
                plain = model(images, **cameras)
        except (RuntimeError, NotImplementedError):  # half precision that this device cannot compute in
            return
        if close(model(images, **cameras), plain):
            return
    raise InputError(
        f"the model cannot be saved: hooks or a forward of its own on {listed(altered, 3)} change its outputs, and no "
        f"file would hold them. Remove them (handle.remove()), or put what is yours around the pruned model."
    )


@contextmanager
def _without(parts: Iterable[nn.Module], keep: nn.Module) -> Iterator[None]:
    """Take away hooks and forwards of modules for a while; but the forward of ``keep``."""
    before = [(part, dict(vars(part))) for part in parts]
    try:
        for part, own in before:
            vars(part).update({name: OrderedDict() for name in _HOOKS})
            if part is not keep and "forward" in own:
                del part.forward
        yield
    finally:
        for part, own in before:
            vars(part).update({name: own[name] for name in ("forward", *_HOOKS) if name in own})
