"""What the stability study compares: one recipe, with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dynavit.functional import log_mask, masked_mean
from dynavit.scorers import create_scorer
from dynavit.selectors import Selector, create_selector
from studies import known_bad
from studies.layers import VisionTransformer
from studies.stability_models import (
    Decide,
    GatedPooling,
    PrunedInside,
    TokenSelection,
    Weigh,
    constant_topk,
)
from studies.stability_spectra import NUM_SPECTRA, SpectraSelection


@dataclass(frozen=True)
class StabilityVariant:
    """One row of the study.

    Attributes:
        name: as on the command line.
        place: where the selection stands: after the backbone, in pooling, inside the backbone, or after that of three
            spectra.
        summary: what it does.
        build: makes the model; weights come from torch's global generator.
        clip: largest gradient norm, over all parameters; None does not clip.
    """

    name: str
    place: str
    summary: str
    build: Callable[[], nn.Module]
    clip: float | None = None


def weigh_by_bias(logits: Tensor, mask: Tensor, bias: Callable[[Tensor], Tensor]) -> Tensor:
    """Softmax over the kept tokens, the mask as an additive bias."""
    return (logits + bias(mask)[:, None, :]).softmax(dim=-1)


def weigh_by_product(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the kept tokens, multiplied by the mask and renormalised."""
    weights = logits.softmax(dim=-1) * mask[:, None, :]
    return weights / weights.sum(dim=-1, keepdim=True)


def weigh_by_nothing(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the kept tokens; the mask is left out."""
    return logits.softmax(dim=-1)


def weigh_by_big(big: float) -> Weigh:
    """Known bad: see :func:`~studies.known_bad.additive_mask`."""
    return partial(weigh_by_bias, bias=partial(known_bad.additive_mask, big=big))


weigh_by_log: Weigh = partial(weigh_by_bias, bias=log_mask)


def one_winner(temperature: float = 1.0, noise: bool = True, noise_limit: float | None = None) -> Decide:
    """Known bad: see :func:`~studies.known_bad.one_winner_mask`."""

    def decide(scores: Tensor, k: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return known_bad.one_winner_mask(scores, k, temperature, noise, noise_limit, generator)

    return decide


def library(name: str) -> Decide:
    """Decide by a selector of the library in training mode."""
    selector = create_selector(name)

    def decide(scores: Tensor, k: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        alive = torch.ones_like(scores, dtype=torch.bool)
        selection = selector(scores, alive, k, 1.0, generator)
        return selection.keep, selection.mask

    return decide


def _after(
    name: str,
    summary: str,
    decide: Decide,
    weigh: Weigh,
    clip: float | None = None,
    detach_scores: bool = False,
) -> StabilityVariant:
    return StabilityVariant(name, "after", summary, lambda: TokenSelection(decide, weigh, detach_scores), clip)


def _inside(name: str, summary: str, gate: Callable[[], Selector], **options: object) -> StabilityVariant:
    return StabilityVariant(name, "inside", summary, lambda: PrunedInside(gate(), **options))  # type: ignore[arg-type]


def _spectra(name: str, summary: str, decide: Decide, weigh: Weigh, guided: bool = False) -> StabilityVariant:
    def build() -> nn.Module:
        model = SpectraSelection(decide, weigh, guided)
        if guided:  # drawn last, so that everything else begins as in the other variants
            model.scorers = create_scorer("guided", VisionTransformer.DIM, guides=NUM_SPECTRA - 1)
        return model

    return StabilityVariant(name, "spectra", summary, build)


_STE = "ste: straight-through logistic gates"

VARIANTS = (
    _after("control", "top-k, no gradient through the mask, no noise", constant_topk, weigh_by_nothing),
    _after("attempt1", "Gumbel + STE, -(1-m)*1e10", one_winner(), weigh_by_big(1e10)),
    _after(
        "attempt2", "attempt1, temperature 5, noise clipped to 5", one_winner(5.0, noise_limit=5.0), weigh_by_big(1e10)
    ),
    _after("attempt1_clipped", "attempt1, gradients clipped to 5", one_winner(), weigh_by_big(1e10), clip=5.0),
    _after("no_noise_1e10", "attempt1 without noise", one_winner(noise=False), weigh_by_big(1e10)),
    _after("big_1e4", "attempt1 with 1e4", one_winner(), weigh_by_big(1e4)),
    _after("big_1e2", "attempt1 with 1e2", one_winner(), weigh_by_big(1e2)),
    _after(
        "detached_scores", "attempt1, scores of detached tokens", one_winner(), weigh_by_big(1e10), detach_scores=True
    ),
    _after("fix_log", "attempt1 with log(m)", one_winner(), weigh_by_log),
    _after("fix_multiply", "attempt1, weights * m, renormalised", one_winner(), weigh_by_product),
    _after("fix_topk", "selector topk, log(m)", library("topk"), weigh_by_log),
    _after("fix_gumbel_topk", "selector gumbel_topk, log(m)", library("gumbel_topk"), weigh_by_log),
    StabilityVariant(
        "pool_clamped",
        "pooling",
        "logistic gates, sum(m x) / max(sum(m), 1)",
        lambda: GatedPooling(known_bad.UnguardedGate(), masked_mean),
    ),
    StabilityVariant(
        "pool_unclamped",
        "pooling",
        "logistic gates, sum(m x) / (sum(m) + 1e-3)",
        lambda: GatedPooling(known_bad.UnguardedGate(), known_bad.unclamped_mean),
    ),
    StabilityVariant("dense", "inside", "nothing pruned", lambda: PrunedInside(None)),
    _inside("key", f"{_STE}, log(m) on keys", lambda: create_selector("ste")),
    _inside("identity", f"{_STE}, log(m), identity form", lambda: create_selector("ste"), form="identity"),
    _inside(
        "inside_1e10",
        "the same, -(1-m)*1e10",
        lambda: create_selector("ste"),
        bias=partial(known_bad.additive_mask, big=1e10),
    ),
    _inside("single_gumbel", "gates with one Gumbel, log(m)", known_bad.SingleGumbel),
    _inside("softmax_log", "softmax over tokens, log, gates", known_bad.SoftmaxLogGate),
    _spectra("spectra_control", "three spectra guide each other: top-k, no gradient", constant_topk, weigh_by_nothing),
    _spectra("spectra_1e10", "the same as ported: Gumbel + STE, -(1-m)*1e10", one_winner(), weigh_by_big(1e10)),
    _spectra(
        "spectra_guided", "scorer guided, selector gumbel_topk, log(m)", library("gumbel_topk"), weigh_by_log, True
    ),
)
