"""The bound that pruning is compared with: as few tokens, without choosing them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynavit.adapters import BackboneAdapter
from dynavit.cost.macs import tokens_per_stage
from dynavit.models import PrunedViT


def oracle(model: PrunedViT, images: Tensor) -> Any:
    """Run the model's blocks on its first tokens, as many as it keeps, whatever they show."""
    counts, steps, adapter = tokens_per_stage(model), model.steps(), model.adapter
    x, context = adapter.embed(images if model.num_spectra == 1 else images.flatten(0, 1))
    for number in range(adapter.depth):
        step = steps.get(number)
        if step is not None and step.keep_ratio < 1:
            present = x.shape[1] - adapter.num_prefix_tokens
            left = min(step.leaves(present, counts[step.stage]), present)
            x, context = first_patches(adapter, x, context, left)
        x = adapter.block(number, x, context, None)
    return adapter.head(adapter.norm(x), None, model.training, pre_logits=False)


def first_patches(adapter: BackboneAdapter, x: Tensor, context: Any, count: int) -> tuple[Tensor, Any]:
    """Return tokens ``(B, P + count, D)`` and their context: the prefix and the first patches, whatever they show."""
    index = torch.arange(count, device=x.device).expand(x.shape[0], -1)
    return x[:, : adapter.num_prefix_tokens + count], adapter.gather(context, index)
