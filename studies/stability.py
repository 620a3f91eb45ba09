"""Which way of training through a token selection is stable, and which one explodes, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from studies.identities import NUM_IDENTITIES, Identities
from studies.layers import batch_hard_triplet
from studies.runner import check, gradient_norm, run_all
from studies.spread import Spread, mean, quantile
from studies.stability_models import Outcome, PrunedInside
from studies.stability_variants import VARIANTS, StabilityVariant

LEARNING_RATE = 1e-3
SETTLED = 30  # steps at the start that do not count as an explosion, and at the end that are averaged
FIRST = 5  # steps averaged for the first loss
EXPLODED, LEARNED, COLLAPSED, SPIKED = 1.5, 0.5, 0.25, 50.0
RULE = (
    f"diverges: a loss that is not finite, or from step {SETTLED} on one above {EXPLODED} times the first loss; "
    f"collapses: the last stage keeps less than {COLLAPSED} of its budget; "
    f"fails: accuracy below {LEARNED}; "
    f"spikes: the predictor's gradient norm has a 99th percentile above {SPIKED:g} times its median; "
    f"trains: none of these. Where seeds differ, their numbers are given."
)
_SEVERITY = ("trains", "spikes", "fails", "collapses", "diverges")
_EVALUATED = 40  # images of each identity


@dataclass(frozen=True)
class StabilityRun:
    """One training.

    Attributes:
        losses: one a step, without the budget loss; fewer than asked for if one was not finite.
        backbone_gradients: norm at each step, before clipping.
        predictor_gradients: likewise.
        kept: fraction of the tokens left after each stage, mean of the last 30 steps.
        accuracy: on new images, the k best tokens kept, without noise.
    """

    seed: int
    losses: list[float]
    backbone_gradients: list[float]
    predictor_gradients: list[float]
    kept: list[float]
    accuracy: float
    verdict: str


@dataclass(frozen=True)
class StabilityRow:
    """One variant over all seeds."""

    variant: str
    place: str
    summary: str
    first_loss: Spread
    final_loss: Spread
    largest_loss: Spread
    backbone_gradient_median: Spread
    backbone_gradient_p99: Spread
    predictor_gradient_median: Spread
    accuracy: Spread
    kept: list[Spread]
    verdict: str
    runs: list[StabilityRun]


def run_stability(
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 250,
    variants: Sequence[str] | None = None,
    workers: int | None = None,
) -> list[StabilityRow]:
    """Train every variant with every seed; on a CPU, about 5 seconds a run of 250 steps.

    Args:
        seeds: of data, weights and noise.
        steps: optimiser steps of each run.
        variants: names from ``stability_variants.VARIANTS``; None runs all.
        workers: processes, one a CPU core if None. The numbers do not depend on it.

    Raises:
        InputError: unknown variant, bad seeds or too few steps.
    """
    names = check(variants, [variant.name for variant in VARIANTS], seeds, steps)
    runs = run_all(partial(train, steps=steps), names, seeds, workers)
    return [_summarise(_variant(name), runs[name]) for name in names]


def train(name: str, seed: int, steps: int) -> StabilityRun:
    """Train one variant; the same seed gives all variants the same images and initial weights."""
    variant = _variant(name)
    data = Identities(seed)
    noise = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = variant.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    backbone, scorers = model.get_submodule("backbone"), model.get_submodule("scorers")
    losses: list[float] = []
    norms: tuple[list[float], list[float]] = ([], [])
    kept: list[list[float]] = []
    for _ in range(steps):
        tokens, labels = data.batch()
        outcome = model(tokens, noise)
        task = task_loss(outcome, labels)
        losses.append(task.item())
        kept.append([fraction.item() for fraction in outcome.kept])
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        (task if outcome.budget is None else task + outcome.budget).backward()
        for norm, module in zip(norms, (backbone, scorers), strict=True):
            norm.append(gradient_norm(module.parameters()))
        if variant.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), variant.clip)
        optimizer.step()
    final = [mean(stage) for stage in zip(*kept[-SETTLED:], strict=True)]
    accuracy = evaluate(model, data)
    budget = PrunedInside.KEEP_RATIOS[-1] if variant.place == "inside" else final[-1]
    verdict = judge(losses, accuracy, final[-1] / budget, norms[1])
    return StabilityRun(seed, losses, *norms, final, accuracy, verdict)


def task_loss(outcome: Outcome, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with label smoothing plus triplet loss, summed over the heads."""
    terms = [
        functional.cross_entropy(logits, labels, label_smoothing=0.1) + batch_hard_triplet(features, labels)
        for features, logits in zip(outcome.features, outcome.logits, strict=True)
    ]
    return torch.stack(terms).sum()


@torch.no_grad()
def evaluate(model: nn.Module, data: Identities) -> float:
    """Return the accuracy of the heads' summed logits on new images of the same identities."""
    model.eval()
    tokens, labels = data.images(torch.arange(NUM_IDENTITIES).repeat_interleave(_EVALUATED))
    outcome: Outcome = model(tokens)
    predicted = torch.stack(outcome.logits).sum(dim=0).argmax(dim=1)
    return (predicted == labels).float().mean().item()


def judge(losses: Sequence[float], accuracy: float, budget_met: float, predictor_gradients: Sequence[float]) -> str:
    """Apply :data:`RULE` to one run.

    Args:
        losses: one a step.
        accuracy: in [0, 1].
        budget_met: fraction kept over fraction asked for, after the last stage.
        predictor_gradients: norm at each step.
    """
    if not math.isfinite(losses[-1]) or max(losses[_settled(losses) :]) > EXPLODED * mean(losses[:FIRST]):
        return "diverges"
    if budget_met < COLLAPSED:
        return "collapses"
    if accuracy < LEARNED:
        return "fails"
    if quantile(predictor_gradients, 0.99) > SPIKED * quantile(predictor_gradients, 0.5):
        return "spikes"
    return "trains"


def _summarise(variant: StabilityVariant, runs: list[StabilityRun]) -> StabilityRow:
    def over(number: Callable[[StabilityRun], float]) -> Spread:
        return Spread.of(map(number, runs))

    return StabilityRow(
        variant.name,
        variant.place,
        variant.summary,
        over(lambda run: mean(run.losses[:FIRST])),
        over(lambda run: mean(run.losses[-min(SETTLED, len(run.losses) // 2) :])),
        over(lambda run: max(run.losses[_settled(run.losses) :])),
        over(lambda run: quantile(run.backbone_gradients, 0.5)),
        over(lambda run: quantile(run.backbone_gradients, 0.99)),
        over(lambda run: quantile(run.predictor_gradients, 0.5)),
        over(lambda run: run.accuracy),
        [Spread.of(stage) for stage in zip(*(run.kept for run in runs), strict=True)],
        _verdict([run.verdict for run in runs]),
        runs,
    )


def _verdict(verdicts: list[str]) -> str:
    """One word where the seeds agree; else how many seeds got which, the worst first."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    found = sorted(set(verdicts), key=_SEVERITY.index, reverse=True)
    return ", ".join(f"{verdict} {verdicts.count(verdict)}" for verdict in found)


def _settled(losses: Sequence[float]) -> int:
    """Step from which a large loss counts; short runs count from their middle."""
    return min(SETTLED, len(losses) // 2)


def _variant(name: str) -> StabilityVariant:
    return next(variant for variant in VARIANTS if variant.name == name)
