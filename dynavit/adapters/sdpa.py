"""Masks as timm's attention takes them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to attention scores: booleans become 0 and -inf, an additive mask is left alone.

    Without fused attention some of timm's modules add a boolean mask as it is, so that True counts as 1 and False as
    0. Prefix tokens, or the one patch that is always kept, see to it that no row is -inf throughout.
    """
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


def backend_for(x: Tensor, attention_mask: Tensor | None) -> AbstractContextManager[Any]:
    """Avoid fused attention where only the mask needs a gradient (a frozen backbone).

    CUDA's memory-efficient kernel crashes then (https://github.com/pytorch/pytorch/issues/148476).
    """
    only_mask = attention_mask is not None and attention_mask.requires_grad and not x.requires_grad
    return sdpa_kernel(SDPBackend.MATH) if only_mask else nullcontext()
