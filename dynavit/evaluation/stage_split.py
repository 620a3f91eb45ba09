"""What the parts of a stage take: scoring, choosing, and removing or merging."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from statistics import median

import torch
from torch import Tensor

from dynavit.models import PrunedViT
from dynavit.models.gathered import GatheredTokens
from dynavit.models.steps import SelectStep

PARTS = ("score", "select", "gather")
"""Scorer; selector; removing tokens, and merging them where the reducer does."""


@torch.inference_mode()
def stage_calls(model: PrunedViT, images: Tensor) -> dict[tuple[str, int], Callable[[], object]]:
    """Return calls that repeat each part of each stage on the tokens that it finds in a forward.

    Args:
        model: in eval mode, gathering, at its keep ratios.
        images: ``(B, 3, H, W)``.

    Returns:
        Calls by the part, of :data:`PARTS`, and the number of the stage; of one that merges pairs without scores, as
        ToMe does, the whole is ``"gather"``.
    """
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    steps = model.steps()
    tokens = model.embed(images, follow=False)
    assert isinstance(tokens, GatheredTokens)
    request = model.request(tokens)
    for number in range(model.adapter.depth):
        step = steps.get(number)
        if step is None or step.idle(request):
            tokens.block(number)
            continue
        if model.placement == "inside":
            tokens.attention(number)
        found = copy(tokens)
        if isinstance(step, SelectStep):
            k, logits = int(request.counts[step.stage]), step.score(found, request)
            selector = step.selector.at(step.stage, found.positions)
            order = selector.order(logits, k)
            calls["score", step.stage] = partial(step.score, found, request)
            calls["select", step.stage] = partial(selector.order, logits, k)
            calls["gather", step.stage] = partial(_shorten, found, order, k, logits, step)
        else:
            calls["gather", step.stage] = partial(run_step, step, found, request)
        step(tokens, request)
        if model.placement == "inside":
            tokens.mlp(number)
        else:
            tokens.block(number)
    return calls


def split(seconds: Mapping[str, Sequence[list[float]]], whole: list[float], batch_size: int) -> dict[str, float]:
    """Return the milliseconds an image that each part of all stages takes, and ``blocks``, what is left of the whole.

    Args:
        seconds: by part, of each stage that has it, one number a round.
        whole: of the forward, in the same rounds.
        batch_size: of its images.
    """
    scale = 1e3 / batch_size
    parts = {part: scale * sum(map(median, seconds[part])) for part in PARTS}
    return parts | {"blocks": scale * median(whole) - sum(parts.values())}


def _shorten(tokens: GatheredTokens, order: Tensor, k: int, logits: Tensor, step: SelectStep) -> None:
    copy(tokens).shorten(order, k, logits, step.reducer)


def run_step(step: Callable[..., object], tokens: GatheredTokens, request: object) -> None:
    """Run a stage on tokens, and leave these as they are: what it changes are attributes, not the tensors in them."""
    step(copy(tokens), request)
