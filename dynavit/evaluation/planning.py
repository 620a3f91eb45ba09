"""Which keep ratios reach a time, foretold from the times of blocks and stages, then measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch

from dynavit.cost.images import random_images
from dynavit.cost.macs import checked_size, tokens_per_stage
from dynavit.cost.timing import measure, median_interval
from dynavit.errors import InputError
from dynavit.evaluation.part_costs import Costs
from dynavit.evaluation.rivals import all_smaller_images, nearest
from dynavit.models import PrunedViT
from dynavit.report.tradeoffs import PAYS
from dynavit.tables import Row

_ELSEWHERE = "Larger batches, larger images or a larger model are where pruning pays."
_FREE = 1.005  # a block that is this much slower counts as equally fast


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
    foretold = {ratio: costs.predict(model.at_ratio(ratio)) for ratio in ratios}
    fits = [ratio for ratio, taken in foretold.items() if taken <= seconds]
    if not fits:
        dense, fastest = foretold.pop(1.0), min(foretold.values())
        if fastest >= dense:
            raise InputError(
                f"do not prune: no keep ratio is faster than the dense model here, which takes {1e3 * dense:.3g} ms a "
                f"batch; pruned it takes {1e3 * fastest:.3g} ms at least. {_ELSEWHERE}"
            )
        raise InputError(
            f"no keep ratio is as fast as asked: this model can take from {1e3 * dense:.3g} down to "
            f"{1e3 * fastest:.3g} ms a batch here, up to {dense / fastest:.2f}x as fast."
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
    return f"do not prune: the model would be {gain:.2f}x as fast. At batch size {batch_size} {reason}. {_ELSEWHERE}"
