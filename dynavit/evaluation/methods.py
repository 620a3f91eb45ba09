"""Methods that need no training, compared on one model and its data at equal cost.

Shapes: V validation images, S stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dynavit.cost.macs import closed_form_macs, tokens_per_stage
from dynavit.errors import InputError
from dynavit.evaluation.calibration import token_statistics
from dynavit.evaluation.equal_macs import calibrate_to_budget, largest_keep_ratio, plain_dropping_macs
from dynavit.evaluation.method import Method
from dynavit.evaluation.speed import images_timed, time_models
from dynavit.evaluation.subject import Subject
from dynavit.metrics.bootstrap import paired_bootstrap
from dynavit.models import PrunedViT
from dynavit.models.thresholds import kept_counts
from dynavit.runs.loading import make_loader, random_samples

Row = dict[str, Any]

_BATCH = 64  # of images that thresholds are set on
_DRAWS = 2000


@dataclass
class Variant:
    """A row in the making: the model, what it got right ``(V,)``, and its token counts ``(V, S)`` if they differ."""

    row: Row
    model: PrunedViT
    hits: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)


def compare_methods(
    subject: Subject,
    methods: Sequence[Method],
    keep_ratios: Sequence[float] = (0.9, 0.7, 0.5),
    *,
    batch_size: int = 32,
    calibration_images: int = 512,
    rounds: int = 7,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Judge methods at equal MACs: accuracy, numbers of tokens, and measured speed.

    For each keep ratio the budget is what dropping tokens at a quarter, half and three quarters of the depth
    costs without choosing them. Each method gets the largest keep ratio at which it stays within that, scoring
    included; with thresholds, at which training images do on average.

    Args:
        subject: dense model and data.
        methods: those with something to learn, and those that this backbone cannot have, are left out.
        keep_ratios: of plain dropping, one a budget.
        batch_size: images at a time, also where speed is measured.
        calibration_images: training images that thresholds are set on, at most.
        rounds: of timing, in each of which a budget's variants and the dense model take turns; 0 for none.
        say: receives a line for each method that is left out.

    Returns:
        A row of the dense model, then one for each budget and method, the most accurate first: ``method``;
        ``budget``, the keep ratio of plain dropping, and ``budget_gmacs``; ``keep_ratio``, the method's own;
        ``gmacs``, with thresholds the mean over the validation images; ``gmacs_ratio`` against dense; ``tokens``
        left by each stage, and with thresholds what :func:`token_statistics` says of them; ``top1``, ``delta_top1`` and
        its 95 % interval, ``delta_top1_low`` and ``_high``; ``throughput`` by batch size.

    Raises:
        InputError: an impossible number, or no method is left.
    """
    budgets = sorted(set(keep_ratios), reverse=True)
    if not budgets or not 0 < budgets[-1] <= budgets[0] <= 1:
        raise InputError(f"keep ratios {list(keep_ratios)}: give one or more, each in (0, 1].")
    if batch_size < 1 or calibration_images < 1 or rounds < 0:
        raise InputError(
            f"batch size {batch_size}, calibration images {calibration_images}, rounds {rounds}: numbers above 0."
        )
    dense = subject.dense
    device = next(dense.parameters()).device
    variants = [Variant({"method": "dense", "model": "dense", "gmacs": closed_form_macs(dense) / 1e9}, dense)]
    with tqdm(total=0, leave=False, disable=None) as bar:
        calibration = Calibration(subject, calibration_images, device, bar)
        macs = {budget: plain_dropping_macs(dense, budget) for budget in budgets}
        for method in methods:
            variants += _at_budgets(method, dense, macs, calibration, say)
        if len(variants) == 1:
            raise InputError("there is nothing to compare: every method is left out.")
        _judge(variants, make_loader(subject.validation, batch_size, subject.workers), device, bar)
    rows = [_row(variant, variants[0]) for variant in variants]
    for budget in budgets if rounds else ():
        chosen = [number for number, row in enumerate(rows) if row.get("budget", budget) == budget]
        speeds = _speeds([variants[number].model for number in chosen], subject, batch_size, rounds, device)
        for number, speed in zip(chosen, speeds, strict=True):
            rows[number]["throughput"] = speed
    return sorted(rows, key=lambda row: (-row.get("budget", 2.0), -row["top1"]))


class Calibration:
    """Training images for thresholds, ``(B, 3, H, W)`` at a time: read when first asked for, then kept."""

    def __init__(self, subject: Subject, count: int, device: torch.device, bar: Any) -> None:
        self.subject, self.count, self.device, self.bar = subject, count, device, bar
        self.samples: list[tuple[Tensor, Tensor]] = []

    def __call__(self) -> Iterator[Tensor]:
        if not self.samples:
            self.samples = random_samples(self.subject.training, self.count, _BATCH, self.subject.workers)
        _advance(self.bar, "thresholds", len(self.samples))
        for images, _ in self.samples:
            yield images.to(self.device)
            self.bar.update()


def _at_budgets(
    method: Method,
    dense: PrunedViT,
    budgets: Mapping[float, int],
    calibration: Callable[[], Iterator[Tensor]],
    say: Callable[[str], None],
) -> list[Variant]:
    """Return a method at those budgets, MACs by keep ratio of plain dropping, that it can meet; say which it cannot."""
    try:
        model = method.around(dense)
    except InputError as error:
        say(f"{method.name} is left out: {error}")
        return []
    variants = []
    for budget, macs in budgets.items():
        try:
            ratio = largest_keep_ratio(model, macs)
            variant = model.at_ratio(ratio)
            if method.adaptive:
                ratio = calibrate_to_budget(variant, macs, calibration)
        except InputError as error:
            say(f"{method.name} is left out at {macs / 1e9:.3g} GMACs: {error}")
            continue
        row = {"method": method.name, "model": "pruned", "budget": budget, "budget_gmacs": macs / 1e9}
        variants.append(Variant({**row, "keep_ratio": ratio, "gmacs": closed_form_macs(variant) / 1e9}, variant))
    return variants


@torch.inference_mode()
def _judge(variants: Sequence[Variant], loader: DataLoader[Any], device: torch.device, bar: Any) -> None:
    """Run all of them over the validation images, which are read once."""
    _advance(bar, "accuracy", len(loader) * len(variants))
    for batch in loader:
        if batch is None:  # every image of it was skipped
            bar.update(len(variants))
            continue
        images, labels, _ = batch
        images = images.to(device)
        for variant in variants:
            logits, trace = variant.model(images, return_trace=True)
            variant.hits.append(logits.argmax(dim=1).cpu() == labels)
            if variant.model.thresholds is not None:
                variant.counts.append(kept_counts(trace).cpu())
            bar.update()
    if not variants[0].hits:
        raise InputError("the validation split holds no image that can be read.")


def _row(variant: Variant, base: Variant) -> Row:
    row, hits, dense = dict(variant.row), torch.cat(variant.hits), torch.cat(base.hits)
    if variant.counts:
        row |= token_statistics(variant.model, torch.cat(variant.counts))
    else:
        row["tokens"] = tokens_per_stage(variant.model)
    row["gmacs_ratio"] = base.row["gmacs"] / row["gmacs"]
    row["top1"] = 100 * float(hits.double().mean())
    if variant is not base:
        images = torch.arange(len(hits))
        difference = paired_bootstrap(100 * dense.double(), 100 * hits.double(), images, samples=_DRAWS)
        row |= dict(zip(("delta_top1", "delta_top1_low", "delta_top1_high"), difference, strict=True))
    return row


def _speeds(
    models: Sequence[PrunedViT], subject: Subject, batch_size: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """Time models in turns on validation images; the first one's speed is what speedups are over."""
    samples = random_samples(subject.validation, images_timed(models, [batch_size]), batch_size, subject.workers)
    images = torch.cat([part for part, _ in samples]).to(device)
    indices = torch.cat([part for _, part in samples])
    return time_models(models, images, indices, lambda model, indices: {}, [batch_size], rounds)


def _advance(bar: Any, what: str, count: int) -> None:
    bar.total += count
    bar.set_description(what)
