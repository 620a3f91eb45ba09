"""Which keep ratios reach a time, foretold from the times of blocks and stages, then measured.

Shapes: N patches of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynavit.cost.images import random_images
from dynavit.cost.macs import checked_size, tokens_per_stage
from dynavit.cost.oracle import oracle
from dynavit.cost.timing import measure, median_interval
from dynavit.errors import InputError
from dynavit.evaluation.rivals import all_smaller_images, at_size, nearest
from dynavit.models import PrunedViT, prune
from dynavit.report.tradeoffs import PAYS
from dynavit.tables import Row

_RUNGS = 16  # numbers of tokens at which a block is timed
_FREE = 1.005  # a block that is this much slower counts as equally fast
_QUICK = 5


@dataclass(frozen=True)
class Costs:
    """What the parts of a model take on a device, in seconds a batch.

    Attributes:
        blocks: one block with 0, 1, ... N patches.
        stage: of choosing and shortening, at so many patches: two points of a straight line.
        rest: embedding, last norm and head.
    """

    blocks: Sequence[float]
    stage: Sequence[tuple[int, float]]
    rest: float

    def predict(self, model: PrunedViT) -> float:
        """Return the seconds that a batch will take.

        Args:
            model: pruned, of the backbone that was measured, with any stages and ratios.
        """
        seconds, left = self.rest, len(self.blocks) - 1
        counts, steps = tokens_per_stage(model), model.steps()
        for number in range(model.adapter.depth):
            step = steps.get(number)
            before = left
            if step is not None and step.keep_ratio < 1:
                left = min(step.leaves(left, counts[step.stage]), left)
                seconds += self.choosing(before)
            seconds += self.blocks[before if model.placement == "inside" else left]
        return seconds

    def choosing(self, patches: int) -> float:
        """Return what one stage takes that finds so many patches."""
        (few, less), (many, more) = self.stage
        return max(less + (more - less) * (patches - few) / max(many - few, 1), 0.0)


@torch.inference_mode()
def measure_costs(dense: PrunedViT, pruning: dict[str, Any], batch_size: int) -> Costs:
    """Measure all blocks at a ladder of token counts, and a stage at the model's own size and at half of it.

    The blocks are timed one after the other, as they run in the model: one alone would find its weights in the cache.

    Args:
        dense: in eval mode.
        pruning: options of :func:`dynavit.prune` but for stages and ratios.
        batch_size: images at once.
    """
    own, patch, adapter = checked_size(dense, None), dense.adapter.patch_size, dense.adapter
    half = max(own[0] // 2 // patch[0], 1) * patch[0], max(own[1] // 2 // patch[1], 1) * patch[1]
    images = random_images(dense, batch_size)
    calls: dict[str, Callable[[], object]] = {"dense": partial(dense, images)}
    for size in (half, own):
        sized = dense if size == own else at_size(dense, size)
        model = prune(sized.backbone, **pruning, stages=(0,), keep_ratio=0.5).eval()
        seen = random_images(dense, batch_size, size)
        calls[f"pruned {size}"], calls[f"oracle {size}"] = partial(model, seen), partial(oracle, model, seen)
    x, context = adapter.embed(images)
    patches = x.shape[1] - adapter.num_prefix_tokens
    rungs = sorted({max(round(patches * number / _RUNGS), 1) for number in range(1, _RUNGS + 1)})
    for rung in rungs:
        index = torch.arange(rung, device=x.device).expand(batch_size, -1)
        left = x[:, : adapter.num_prefix_tokens + rung].contiguous()
        calls[f"blocks {rung}"] = partial(_blocks, dense, left, adapter.gather(context, index))
    seconds = {name: median(times) for name, times in measure(calls, rounds=_QUICK, min_seconds=0.1).items()}
    measured = np.maximum.accumulate([seconds[f"blocks {rung}"] / adapter.depth for rung in rungs])
    stage = [
        (math.prod(adapter.grid_of(size)), seconds[f"pruned {size}"] - seconds[f"oracle {size}"])
        for size in (half, own)
    ]
    blocks = np.interp(np.arange(patches + 1), rungs, measured).tolist()
    return Costs(blocks, stage, seconds["dense"] - seconds[f"blocks {patches}"])


def _blocks(dense: PrunedViT, x: Tensor, context: Any) -> None:
    for number in range(dense.adapter.depth):
        x = dense.adapter.block(number, x, context, None)


def planned(model: PrunedViT, costs: Costs, seconds: float) -> PrunedViT:
    """Return a model at the largest keep ratio, in thousandths, that is foretold to take no longer.

    Then each stage keeps what costs no more: on devices that compute in tiles time is a staircase of tokens, and ratios
    are put at its edges.

    Args:
        model: pruned; not changed.
        costs: of its backbone.
        seconds: a batch may take.

    Raises:
        InputError: no ratio is fast enough, with what is attainable.
    """
    ratios = [number / 1000 for number in range(1, 1001)]
    fits = [ratio for ratio in ratios if costs.predict(model.at_ratio(ratio)) <= seconds]
    if not fits:
        fastest = costs.predict(model.at_ratio(ratios[0]))
        slowest = costs.predict(model.at_ratio(1.0))
        raise InputError(
            f"no keep ratio is as fast as asked: this model can take from {1e3 * slowest:.3g} down to "
            f"{1e3 * fastest:.3g} ms a batch here, up to {slowest / fastest:.2f}x as fast."
        )
    counts = tokens_per_stage(at := model.at_ratio(max(fits)))
    patches, edges = len(costs.blocks) - 1, []
    for count in counts:
        limit = costs.blocks[count] * _FREE
        edges.append(max(more for more in range(count, patches + 1) if costs.blocks[more] <= limit))
    return at if edges == list(counts) else model.at_ratio([edge / patches for edge in edges])


@torch.inference_mode()
def compare_plan(dense: PrunedViT, plan: PrunedViT, costs: Costs, batch_size: int, rounds: int) -> list[Row]:
    """Time the dense model, what was planned, and smaller images that take as long, in turns.

    Returns:
        Rows of ``setting``, ``keep_ratios`` as text, ``ms`` an image as measured, ``foretold_ms``, and ``speedup`` as
        [median, low, high] of a 95 % interval.
    """
    calls: dict[str, Callable[[], object]] = {
        "dense": partial(dense, random_images(dense, batch_size)),
        "pruned": partial(plan, random_images(dense, batch_size)),
    }
    rivals = {
        str(one.about["rival"]): one for one in all_smaller_images(dense, {"image_size": checked_size(dense, None)})
    }
    for name, rival in rivals.items():
        calls[name] = partial(rival.model, random_images(rival.model, batch_size, rival.image_size))
    seconds = measure(calls, rounds=rounds)
    names, times = list(rivals), [median(seconds[name]) for name in rivals]
    chosen = [names[place] for place in nearest([median(seconds["pruned"])], times)] if rivals else []
    foretold = {"dense": costs.predict(dense), "pruned": costs.predict(plan)}
    return [
        {
            "setting": name,
            "keep_ratios": "/".join(f"{ratio:.3g}" for ratio in plan.keep_ratios) if name == "pruned" else "-",
            "ms": 1e3 * median(seconds[name]) / batch_size,
            "foretold_ms": 1e3 * foretold[name] / batch_size if name in foretold else None,
            "speedup": list(median_interval(seconds["dense"], seconds[name])),
        }
        for name in ("dense", "pruned", *chosen)
    ]


def verdict(rows: Sequence[Row], costs: Costs, batch_size: int) -> str | None:
    """Return why not to prune, where that does not pay; None where it does."""
    gain = rows[1]["speedup"][0]
    if gain >= PAYS:
        return None
    patches = len(costs.blocks) - 1
    whole, half = costs.blocks[-1], costs.blocks[patches // 2]
    reason = (
        f"a block takes {1e3 * whole:.3g} ms a batch with {patches} patches and {1e3 * half:.3g} ms with half of them, "
        f"and choosing them takes {1e3 * costs.choosing(patches):.3g} ms a stage"
    )
    return (
        f"do not prune: the model would be {gain:.2f}x as fast. At batch size {batch_size} {reason}. Larger batches, "
        f"larger images or a larger model are where it pays."
    )
