"""How well each selector learns where the selection is the only way to the label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from dynavit.losses import keep_ratio_loss, policy_gradient_loss
from dynavit.selectors import Selector
from studies.runner import check, gradient_norm, run_all
from studies.selection_problem import (
    NUM_FOREGROUND,
    NUM_TOKENS,
    HiddenForeground,
    SelectiveClassifier,
)
from studies.selection_variants import VARIANTS, SelectionVariant
from studies.spread import Spread, quantile

LEARNING_RATE = 1e-3
BATCH = 64
BUDGET_WEIGHT = 5.0
REWARD_SAMPLES = 4
_EVALUATED = 2000


@dataclass(frozen=True)
class SelectionRun:
    """One training.

    Attributes:
        accuracy: on new images, the k best tokens kept, without noise.
        foreground_recall: share of the foreground that was kept then.
        predictor_gradients: norm at each step.
    """

    seed: int
    accuracy: float
    foreground_recall: float
    predictor_gradients: list[float]


@dataclass(frozen=True)
class SelectionRow:
    """One variant over all seeds."""

    variant: str
    kind: str
    selector: str
    accuracy: Spread
    foreground_recall: Spread
    predictor_gradient_median: Spread
    predictor_gradient_p99: Spread
    runs: list[SelectionRun]


def run_selection(
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 400,
    variants: Sequence[str] | None = None,
    workers: int | None = None,
) -> list[SelectionRow]:
    """Train every variant with every seed; a few seconds a run of 400 steps.

    Args:
        seeds: of data, weights and noise.
        steps: optimiser steps of each run.
        variants: names from ``selection_variants.VARIANTS``; None runs all.
        workers: processes, one a CPU core if None. The numbers do not depend on it.

    Raises:
        InputError: unknown variant, bad seeds or too few steps.
    """
    names = check(variants, [variant.name for variant in VARIANTS], seeds, steps)
    runs = run_all(partial(train, steps=steps), names, seeds, workers)
    return [_summarise(_variant(name), runs[name]) for name in names]


def train(name: str, seed: int, steps: int) -> SelectionRun:
    """Train one variant; the same seed gives all variants the same images and initial weights."""
    variant = _variant(name)
    data = HiddenForeground(seed)
    noise = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = SelectiveClassifier()
    selector = variant.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    gradients = []
    for step in range(steps):
        tokens, labels, _ = data.batch(BATCH)
        temperature = variant.temperature_at(step / (steps - 1))
        optimizer.zero_grad()
        loss(model, selector, variant, tokens, labels, temperature, noise).backward()
        gradients.append(gradient_norm(model.predictor.parameters()))
        optimizer.step()
    return SelectionRun(seed, *evaluate(model, selector, variant, data), gradients)


def loss(
    model: SelectiveClassifier,
    selector: Selector,
    variant: SelectionVariant,
    tokens: Tensor,
    labels: Tensor,
    temperature: float,
    generator: torch.Generator,
) -> Tensor:
    """Return cross-entropy, plus what the selector needs to learn: a budget loss, a policy gradient."""
    if selector.needs_reward:
        tokens, labels = tokens.repeat(REWARD_SAMPLES, 1, 1), labels.repeat(REWARD_SAMPLES)
    scores = model.scores(tokens)
    alive = torch.ones_like(scores, dtype=torch.bool)
    selection = selector(scores, alive, NUM_FOREGROUND, temperature, generator)
    entropies = functional.cross_entropy(model.classify(tokens, selection.mask, variant.pool), labels, reduction="none")
    total = entropies.mean()
    if not selector.fixed_k:
        budget = keep_ratio_loss([selection.probs.mean(dim=1)], [NUM_FOREGROUND / NUM_TOKENS])
        total = total + BUDGET_WEIGHT * budget
    if selector.needs_reward:
        assert selection.log_prob is not None
        shape = (REWARD_SAMPLES, -1)
        total = total + policy_gradient_loss(selection.log_prob.reshape(shape), -entropies.detach().reshape(shape))
    return total


@torch.no_grad()
def evaluate(
    model: SelectiveClassifier, selector: Selector, variant: SelectionVariant, data: HiddenForeground
) -> tuple[float, float]:
    """Return accuracy and foreground recall with the k best tokens kept."""
    selector.eval()
    tokens, labels, foreground = data.batch(_EVALUATED)
    scores = model.scores(tokens)
    selection = selector(scores, torch.ones_like(scores, dtype=torch.bool), NUM_FOREGROUND)
    correct = model.classify(tokens, selection.mask, variant.pool).argmax(dim=1) == labels
    recall = (selection.keep & foreground).sum() / foreground.sum()
    return correct.float().mean().item(), recall.item()


def _summarise(variant: SelectionVariant, runs: list[SelectionRun]) -> SelectionRow:
    def over(number: Callable[[SelectionRun], float]) -> Spread:
        return Spread.of(map(number, runs))

    return SelectionRow(
        variant.name,
        variant.kind,
        describe(variant),
        over(lambda run: run.accuracy),
        over(lambda run: run.foreground_recall),
        over(lambda run: quantile(run.predictor_gradients, 0.5)),
        over(lambda run: quantile(run.predictor_gradients, 0.99)),
        runs,
    )


def describe(variant: SelectionVariant) -> str:
    """Say in a few words what the row is."""
    words = [f"{key}={value}" for key, value in variant.options.items()]
    if variant.temperature_end is not None:
        words.append(f"temperature {variant.temperature:g} to {variant.temperature_end:g}")
    elif variant.temperature != 1:
        words.append(f"temperature {variant.temperature:g}")
    name = variant.registered or variant.build.__name__
    return f"{name}({', '.join(words)})" if words else name


def _variant(name: str) -> SelectionVariant:
    return next(variant for variant in VARIANTS if variant.name == name)
