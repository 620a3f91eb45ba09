"""The bound that pruning is compared with: as few tokens, without choosing them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
            x = x[:, : adapter.num_prefix_tokens + left]
            context = adapter.gather(context, torch.arange(left, device=x.device).expand(x.shape[0], -1))
        x = adapter.block(number, x, context, None)
    return adapter.head(adapter.norm(x), None, model.training, pre_logits=False)
