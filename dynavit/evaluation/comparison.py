"""Methods that need no training, compared on one model and its data at equal MACs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

from dynavit.errors import InputError
from dynavit.evaluation.dense_classifier import DenseClassifier
from dynavit.evaluation.equal_macs import calibrate_to_budget, largest_keep_ratio, plain_dropping_macs
from dynavit.evaluation.methods import Method
from dynavit.evaluation.rivals import all_smaller_images
from dynavit.evaluation.speed import time_models
from dynavit.evaluation.sweep import evaluate_variants, gathering_accelerator, make_rows
from dynavit.evaluation.variants import CalibrationImages, Variant
from dynavit.models import PrunedViT
from dynavit.tables import Row
from dynavit.tasks.classification import ClassificationTask

SMALLER = "smaller images"


class Comparison(NamedTuple):
    """Methods compared at equal MACs.

    Attributes:
        rows: see :mod:`dynavit.report.rows`.
        about: what was compared on what, one line each.
    """

    rows: list[Row]
    about: dict[str, str]


def evaluate_methods(
    classifier: DenseClassifier,
    methods: Sequence[Method],
    keep_ratios: Sequence[float] = (0.9, 0.7, 0.5),
    *,
    batch_size: int = 32,
    calibration_images: int = 512,
    rounds: int = 7,
    log: Callable[[str], None] = print,
) -> list[Row]:
    """Evaluate methods at equal MACs: accuracy, numbers of tokens, and measured speed.

    For each keep ratio the budget is what dropping tokens at a quarter, half and three quarters of the depth
    costs without choosing them. Each method gets the largest keep ratio at which it stays within that, scoring
    included; with thresholds, at which training images do on average.

    Args:
        classifier: dense model and data.
        methods: those with something to learn, and those that this backbone cannot have, are left out.
        keep_ratios: of plain dropping, one a budget.
        batch_size: images at a time, also where speed is measured.
        calibration_images: training images that thresholds are set on, at most.
        rounds: of timing, in each of which the models of a budget and the dense one take turns; 0 for none.
        log: receives a line for each method that is left out.

    Returns:
        Rows (see :mod:`dynavit.report.rows`): the dense model, then one for each budget and method, the most accurate
        first. Beside the methods stands the dense model on the largest smaller images within each budget.

    Raises:
        InputError: an impossible number, or no method is left.
    """
    ratios = sorted(set(keep_ratios), reverse=True)
    if not ratios or not 0 < ratios[-1] <= ratios[0] <= 1:
        raise InputError(f"keep ratios {list(keep_ratios)}: give one or more, each in (0, 1].")
    if batch_size < 1 or calibration_images < 1 or rounds < 0:
        raise InputError(
            f"batch size {batch_size}, calibration images {calibration_images}, rounds {rounds}: numbers above 0."
        )
    dense, task, data = classifier.model, classifier.task, classifier.data
    budgets = {ratio: plain_dropping_macs(dense, ratio) for ratio in ratios}
    calibration = CalibrationImages(dense, task, data, calibration_images)
    variants = [Variant("dense", 1.0, dense, about={"method": "dense"})]
    for method in tqdm(methods, desc="methods", leave=False, disable=None):
        variants += _at_budgets(method, dense, budgets, lambda: (images for images, _ in calibration()), log)
    if len(variants) == 1:
        raise InputError("there is nothing to compare: every method is left out.")
    device = next(dense.parameters()).device
    accelerator = gathering_accelerator(device)
    found = evaluate_variants(variants, task, data, batch_size, accelerator)
    for rival, own_task, own_data in _smaller(classifier, budgets):
        variants.append(rival)
        found += evaluate_variants([rival], own_task, own_data, batch_size, accelerator)
    rows = make_rows(variants, found, task)
    for ratio in ratios if rounds else ():
        members = [number for number, row in enumerate(rows) if row.get("budget_ratio", ratio) == ratio]
        throughputs = time_models([variants[number] for number in members], task, data, [batch_size], rounds)
        for number, throughput in zip(members, throughputs, strict=True):
            rows[number]["throughput"] = throughput
    return sorted(rows, key=lambda row: (-row.get("budget_ratio", 2.0), -row["top1"]))


def _smaller(
    classifier: DenseClassifier, budgets: Mapping[float, int]
) -> Iterator[tuple[Variant, ClassificationTask, Any]]:
    """Yield for each budget the dense model on the largest smaller images that cost no more, with task and data."""
    offered = all_smaller_images(classifier.model, classifier.preprocessing)
    costs = {one.about["image_size"][0]: one.macs for one in offered}
    for plain_ratio, budget in budgets.items():
        height = max((height for height, macs in costs.items() if macs <= budget), default=None)
        if plain_ratio < 1 and height is not None:
            rival, task, data = classifier.smaller(height)
            about = {"method": SMALLER, "budget_ratio": plain_ratio, "budget_gmacs": budget / 1e9}
            yield replace(rival, about={**rival.about, **about}), task, data


def _at_budgets(
    method: Method,
    dense: PrunedViT,
    budgets: Mapping[float, int],
    calibration: Callable[[], Iterator[Tensor]],
    log: Callable[[str], None],
) -> Iterator[Variant]:
    """Yield a method at those budgets, MACs by keep ratio of plain dropping, that it can meet; log which it cannot."""
    try:
        model = method.apply(dense)
    except InputError as error:
        log(f"{method.name} is left out: {error}")
        return
    for plain_ratio, budget in budgets.items():
        try:
            ratio = largest_keep_ratio(model, budget)
            shortened = model.at_ratio(ratio)
            if method.adaptive:
                ratio = calibrate_to_budget(shortened, budget, calibration)
        except InputError as error:
            log(f"{method.name} is left out at {budget / 1e9:.3g} GMACs: {error}")
            continue
        kind = "pruned" if shortened.thresholds is None else "adaptive"
        about = {"method": method.name, "budget_ratio": plain_ratio, "budget_gmacs": budget / 1e9}
        yield Variant(kind, ratio, shortened, about=about)
