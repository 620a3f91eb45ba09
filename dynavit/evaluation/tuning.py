"""Which way to make a model as fast as asked changes its answers least: free methods, smaller images, larger ones.

Nothing is trained and no labels are needed. Times are of this machine, of batches of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dynavit.cost.images import random_images
from dynavit.cost.macs import closed_form_macs
from dynavit.cost.timing import measure, median_interval
from dynavit.data.transforms import create_transforms, image_size_of
from dynavit.errors import InputError
from dynavit.evaluation.agreement import Answers, agreement, answers
from dynavit.evaluation.equal_macs import largest_keep_ratio
from dynavit.evaluation.methods import Method
from dynavit.evaluation.rivals import all_smaller_images, at_size
from dynavit.models import PrunedViT
from dynavit.runs.images import read_images
from dynavit.runs.open import Run
from dynavit.tables import Row

Log = Callable[[str], None]

_PROBED = (0.7, 0.4)  # keep ratios from whose times those of others are foretold
_QUICK, _CORRECTIONS = 5, 2  # rounds of what is measured again, and how often
_TOLERANCE = 1.03  # of the time asked for; the noise of a machine that is not quiet
_LARGER = 1.15  # images this many times larger, pruned harder, are tried as well


@dataclass(frozen=True)
class Setting:
    """A way to be faster.

    Attributes:
        name: of its row.
        model: in eval mode.
        image_size: height and width in pixels.
        keep_ratio: at which it is; None where all tokens are kept.
    """

    name: str
    model: PrunedViT
    image_size: tuple[int, int]
    keep_ratio: float | None = None

    def at(self, ratio: float) -> Setting:
        """Return it at another keep ratio."""
        return replace(self, model=self.model.at_ratio(ratio), keep_ratio=ratio)


@dataclass(frozen=True)
class Target:
    """How fast a model is to be.

    Attributes:
        batch_size: images at once.
        speedup: over the dense model; None where ``ms`` is given.
        ms: milliseconds an image.
    """

    batch_size: int
    speedup: float | None = None
    ms: float | None = None

    def seconds(self, dense: float) -> float:
        """Return seconds a batch, given those of the dense model.

        Raises:
            InputError: the dense model is as fast already.
        """
        wanted = dense / self.speedup if self.speedup is not None else (self.ms or 0.0) * self.batch_size / 1e3
        if wanted >= dense:
            raise InputError(
                f"--target-ms {self.ms:g}: the dense model takes {1e3 * dense / self.batch_size:.3g} ms an image at "
                f"batch size {self.batch_size}, so there is nothing to do."
            )
        return wanted


def tune_model(
    run: Run, paths: Sequence[Path], methods: Sequence[Method], target: Target, rounds: int, log: Log
) -> tuple[list[Row], dict[str, Setting]]:
    """Bring every way to the time asked for, and compare what it answers with the dense model.

    Args:
        run: around a dense model.
        paths: images to compare the answers to.
        methods: those that have to be trained, or keep tokens by thresholds, are left out.
        target: of speed.
        rounds: of the final measurement.
        log: receives what is left out, and why.

    Returns:
        The rows, the dense one first, then those that agree most with it; and the settings by name. A row has
        ``setting``, ``keep_ratio`` (None where all tokens are kept), ``image_size``, ``gmacs``, ``ms`` an image,
        ``speedup`` as [median, low, high] of a 95 % interval, and what :func:`~.agreement.agreement` says.

    Raises:
        InputError: no way is as fast as asked.
    """
    dense = Setting("dense", run.model, image_size_of(run.preprocessing))
    ways = _ways(run, methods, log)
    smaller = [
        Setting(str(rival.about["rival"]), rival.model, rival.image_size or dense.image_size)
        for rival in all_smaller_images(run.model, run.preprocessing)
    ]
    probed = [replace(way.at(ratio), name=f"{way.name} at {ratio:g}") for way in ways for ratio in _PROBED]
    seconds = _times([dense, *smaller, *probed], target.batch_size, _QUICK)
    wanted = target.seconds(median(seconds["dense"]))
    ways = [way for way in map(partial(_foretold, seconds=seconds, wanted=wanted, log=log), ways) if way is not None]
    for _ in range(_CORRECTIONS):
        again = _times([dense, *ways], target.batch_size, _QUICK)
        wanted_now = target.seconds(median(again["dense"]))  # the machine may have become slower or faster
        ways = [_corrected(way, median(again[way.name]), wanted_now) for way in ways]
    fast = [one for one in smaller if median(seconds[one.name]) <= wanted]
    chosen = [*ways, *fast[:2]]  # the largest ones; noise may have made the first seem fast enough
    if not chosen:
        fastest = median(seconds["dense"]) / min(median(times) for times in seconds.values())
        raise InputError(f"nothing here is as fast as asked; the fastest measured is {fastest:.2f}x the dense model.")
    compared = [dense, *chosen]
    seconds = _times(compared, target.batch_size, rounds)
    found = _answers(run, compared, paths, target.batch_size, log)
    rows = [_row(one, seconds, target.batch_size, agreement(found["dense"], found[one.name])) for one in compared]
    rows[1:] = sorted(rows[1:], key=lambda row: (-row.get("same_top1", 0.0), row.get("kl", 0.0), -row["cosine"]))
    return rows, {one.name: one for one in compared}


def winner(rows: Sequence[Row], target: Target) -> Row:
    """Return the row that agrees most among those that are as fast as asked, or, if noise left none, the fastest."""
    wanted = target.seconds(rows[0]["ms"] * target.batch_size / 1e3) * 1e3 / target.batch_size
    fast = [row for row in rows[1:] if row["ms"] <= _TOLERANCE * wanted]
    return fast[0] if fast else min(rows[1:], key=lambda row: float(row["ms"]))


def _ways(run: Run, methods: Sequence[Method], log: Log) -> list[Setting]:
    """Return every method on the model's own images, and the default one on larger ones."""
    own, patch, ways = image_size_of(run.preprocessing), run.model.adapter.patch_size, []
    larger = round(own[0] * _LARGER / patch[0]) * patch[0], round(own[1] * _LARGER / patch[1]) * patch[1]
    for method in methods:
        try:
            if method.adaptive:
                raise InputError("it keeps tokens by thresholds; evaluate it with --adaptive.")
            ways.append(Setting(method.name, method.apply(run.model), own))
            if method.name == "default":
                ways.append(Setting(f"default, {larger[0]} px", method.apply(at_size(run.model, larger)), larger))
        except InputError as error:
            log(f"{method.name} is left out: {error}")
    return ways


def _foretold(way: Setting, seconds: Mapping[str, list[float]], wanted: float, log: Log) -> Setting | None:
    """Return a way at the ratio whose time, a straight line in MACs through what was measured, is the one wanted."""
    (slow, fast), (many, few) = (
        [median(seconds[f"{way.name} at {ratio:g}"]) for ratio in _PROBED],
        [closed_form_macs(way.model, ratio, way.image_size) for ratio in _PROBED],
    )
    slope = (slow - fast) / (many - few) if slow > fast else slow / many
    try:
        ratio = largest_keep_ratio(way.model, few + (wanted - fast) / slope)
    except InputError as error:
        log(f"{way.name} is left out: {error}")
        return None
    return way.at(ratio)


def _corrected(way: Setting, measured: float, wanted: float) -> Setting:
    """Return a way with its MACs scaled by how far its measured time is from the one wanted."""
    budget = closed_form_macs(way.model, image_size=way.image_size) * wanted / measured
    try:
        return way.at(largest_keep_ratio(way.model, budget))
    except InputError:  # as few as it can
        return way


def _times(settings: Sequence[Setting], batch_size: int, rounds: int) -> dict[str, list[float]]:
    calls = {
        one.name: partial(_call, one.model, random_images(one.model, batch_size, one.image_size)) for one in settings
    }
    return measure(calls, rounds=rounds, min_seconds=0.1)


@torch.inference_mode()
def _call(model: PrunedViT, images: Tensor) -> None:
    model(images, **model.unknown_cameras(len(images)))


def _answers(
    run: Run, settings: Sequence[Setting], paths: Sequence[Path], batch_size: int, log: Log
) -> dict[str, Answers]:
    """Return by name what all say of the images, which are prepared once for each size."""
    found: dict[str, list[Answers]] = {one.name: [] for one in settings}
    sizes = sorted({one.image_size for one in settings})
    for size in sizes:
        preparation = create_transforms(**{**run.preprocessing, "image_size": size})[1]
        for good, images, problems in read_images(replace(run, preparation=preparation), paths, batch_size):
            for problem in problems if size == sizes[0] else ():
                log(problem)
            for one in settings if good else ():
                if one.image_size == size:
                    found[one.name].append(answers(one.model, images))
    return {name: Answers.joined(parts) for name, parts in found.items()}


def _row(one: Setting, seconds: Mapping[str, list[float]], batch_size: int, agrees: Mapping[str, Any]) -> Row:
    return {
        "setting": one.name,
        "keep_ratio": one.keep_ratio,
        "image_size": list(one.image_size),
        "gmacs": closed_form_macs(one.model, image_size=one.image_size) / 1e9,
        "ms": 1e3 * median(seconds[one.name]) / batch_size,
        "speedup": list(median_interval(seconds["dense"], seconds[one.name])),
        **agrees,
    }
