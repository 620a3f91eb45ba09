"""How long a block takes with fewer tokens, measured once on the device at hand.

Shapes: B batch, P prefix tokens, N original patch tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from dynavit.cost.images import random_images
from dynavit.cost.macs import plain_inference
from dynavit.cost.oracle import first_patches
from dynavit.cost.timing import measure
from dynavit.errors import InputError
from dynavit.models import PrunedViT

_POINTS = 9


def block_latency(
    model: PrunedViT, counts: Sequence[int] | None = None, batch_size: int = 32, rounds: int = 7
) -> Tensor:
    """Measure one block of the model at several token counts and interpolate to all of them.

    The block is the one in the middle of the model; it runs in eval, on the model's device and in its
    precision. All counts are timed in every round (:func:`dynavit.cost.measure`), and the medians
    over rounds are joined by straight lines. A count that was measured to be slower than a larger one
    raises the larger one's time, so that fewer tokens never cost more.

    Args:
        model: pruned model; left as it was.
        counts: patch tokens to measure at; the fewest possible and N are always measured, too. Nine
            evenly spaced ones if None. Kernels work in tiles: measure at more counts to see the steps.
        batch_size: images in a batch. Small ones leave a large device idle whatever the count.
        rounds: how often each count is timed.

    Returns:
        ``(N + 1,)`` fp32 on CPU: seconds per image with 0, 1, ... N patch tokens beside the prefix
        tokens, never decreasing. Where there is no prefix token, 0 patches count as one.

    Raises:
        InputError: a count outside 0 to N, or fewer than one round or image.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: at least one image.")
    images = random_images(model, batch_size)
    with plain_inference(model), torch.no_grad():
        x, context = model.adapter.embed(images)
        num_prefix = model.num_prefix_tokens
        num_patches = x.shape[1] - num_prefix
        least = 0 if num_prefix else 1
        if counts is None:
            counts = [round(n) for n in np.linspace(least, num_patches, _POINTS)]
        wrong = [n for n in counts if not 0 <= n <= num_patches]
        if wrong:
            raise InputError(f"counts: {wrong[0]} is outside 0 to {num_patches}, the patch tokens of this model.")
        measured = sorted({least, *(n for n in counts if n >= least), num_patches})
        block = model.adapter.depth // 2
        runs = {}
        for n in measured:
            tokens, rest = first_patches(model.adapter, x, context, n)
            runs[str(n)] = partial(model.adapter.block, block, tokens.contiguous(), rest, None)
        seconds = measure(runs, rounds=rounds)
    medians = np.maximum.accumulate([median(seconds[str(n)]) for n in measured])
    everywhere = np.interp(np.arange(num_patches + 1), measured, medians)
    return torch.from_numpy(everywhere / batch_size).float()
