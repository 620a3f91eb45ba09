"""What the parts of a model take on a device, from which the time of any stages and keep ratios is foretold.

Shapes: N patches of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynavit.cost.images import random_images
from dynavit.cost.macs import tokens_per_stage
from dynavit.cost.oracle import first_patches
from dynavit.cost.timing import measure
from dynavit.evaluation.stage_split import run_step
from dynavit.models import PrunedViT, prune
from dynavit.models.gathered import GatheredTokens

_RUNGS = 16  # numbers of tokens at which blocks are timed
_ROUNDS = 5


@dataclass(frozen=True)
class Costs:
    """What the parts of a model take on a device, in seconds a batch.

    Attributes:
        blocks: one block with 0, 1, ... N patches; with fewer than N it attends by their sizes, where the method does.
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


@dataclass(frozen=True)
class Parts:
    """The parts of a model, to be timed.

    The blocks are timed one after the other, as they run in the model: one alone would find its weights in the cache.

    Attributes:
        blocks: all blocks, by the number of patches.
        stage: a stage, by the number of patches that it finds.
        rest: embedding, last norm and head.
        depth: number of blocks.
    """

    blocks: Mapping[int, partial[None]]
    stage: Mapping[int, partial[None]]
    rest: partial[None]
    depth: int

    @classmethod
    @torch.inference_mode()
    def of(cls, dense: PrunedViT, pruning: dict[str, Any], batch_size: int) -> Parts:
        """Return the parts of a model.

        Args:
            dense: in eval mode.
            pruning: options of :func:`dynavit.prune` but for stages and ratios.
            batch_size: images at once.
        """
        model = prune(dense.backbone, **pruning, stages=(0,), keep_ratio=0.5).eval()
        step, adapter = model.steps()[0], model.adapter
        images = random_images(dense, batch_size)
        embedded = adapter.embed(images)
        patches = embedded[0].shape[1] - adapter.num_prefix_tokens
        blocks = {patches: partial(_run_blocks, _first(model, embedded, patches))}
        for rung in {round(patches * number / _RUNGS) for number in range(1, _RUNGS)} | {patches - 1}:
            if 0 < rung < patches:
                blocks[rung] = partial(_run_blocks, _shortened(model, embedded, rung))
        stage = {}
        for found in {max(patches // 2, 1), patches}:
            tokens = _first(model, embedded, found)
            stage[found] = partial(run_step, step, tokens, model.request(tokens, keep_counts=[max(found // 2, 1)]))
        return cls(blocks, stage, partial(_run_rest, dense, images), adapter.depth)

    def calls(self) -> dict[str, Callable[[], object]]:
        """Return what to time, by name."""
        blocks = {f"blocks {count}": call for count, call in self.blocks.items()}
        return {**blocks, **{f"stage {count}": call for count, call in self.stage.items()}, "rest": self.rest}

    def costs(self, seconds: Mapping[str, Sequence[float]]) -> Costs:
        """Return the costs, from the seconds of :meth:`calls` in every round."""
        *rungs, patches = sorted(self.blocks)
        taken = {count: median(seconds[f"blocks {count}"]) / self.depth for count in self.blocks}
        # more tokens are never faster, but for all of them, which have no sizes
        steps = [*np.maximum.accumulate([taken[count] for count in rungs]), taken[patches]]
        blocks = np.interp(np.arange(patches + 1), [*rungs, patches], steps).tolist()
        stage = [(count, median(seconds[f"stage {count}"])) for count in (min(self.stage), max(self.stage))]
        return Costs(blocks, stage, median(seconds["rest"]))


@torch.inference_mode()
def measure_costs(dense: PrunedViT, pruning: dict[str, Any], batch_size: int) -> Costs:
    """Measure the parts of a model in turns; arguments as of :meth:`Parts.of`."""
    parts = Parts.of(dense, pruning, batch_size)
    return parts.costs(measure(parts.calls(), rounds=_ROUNDS, min_seconds=0.1))


def _first(model: PrunedViT, embedded: tuple[Tensor, Any], count: int) -> GatheredTokens:
    """Return the first patches of images, as if there were no others."""
    x, context = first_patches(model.adapter, *embedded, count)
    return GatheredTokens(x.contiguous(), context, model.adapter, training=False, form=model.mask_form)


def _shortened(model: PrunedViT, embedded: tuple[Tensor, Any], count: int) -> GatheredTokens:
    """Return so many tokens as a stage leaves them, with their sizes; where it makes others, the first patches."""
    tokens = _first(model, embedded, count + 1)
    model.steps()[0](tokens, model.request(tokens, keep_counts=[count]))
    return tokens if tokens.positions.shape[1] == count else _first(model, embedded, count)


def _run_blocks(tokens: GatheredTokens) -> None:
    tokens = copy(tokens)
    for number in range(tokens.adapter.depth):
        tokens.block(number)


def _run_rest(dense: PrunedViT, images: Tensor) -> None:
    x, _ = dense.adapter.embed(images)
    dense.adapter.head(dense.adapter.norm(x), None, dense.training, pre_logits=False)
