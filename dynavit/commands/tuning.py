"""The first questions, as functions: how would my model get this much faster, and what would it change?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynavit.commands.settings import require_counts, require_lists
from dynavit.errors import InputError
from dynavit.files import require_folder
from dynavit.numbers import is_finite_number
from dynavit.tables import Row

if TYPE_CHECKING:
    from dynavit.models import PrunedViT


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        rows: of :func:`dynavit.evaluation.tuning.tune_model`.
        best: the row of the setting that was written.
        model: that setting, in eval mode.
        about: what was compared on what.
    """

    rows: list[Row]
    best: Row
    model: PrunedViT
    about: dict[str, Any]


def tune(
    model: str | Path,
    images: str | Path,
    *,
    speedup: float | None = None,
    target_ms: float | None = None,
    batch_size: int = 8,
    methods: Sequence[str | Path] | None = None,
    architecture: str | None = None,
    img_size: int | None = None,
    limit: int = 256,
    rounds: int = 9,
    output: str | Path = "checkpoints/tuned",
    device: str | None = None,
    log: Callable[[str], None] = print,
) -> Tuned:
    """Find the way to be as fast as asked that changes a model's answers least: without labels, without training.

    Every method that needs no training is brought to the time asked for, on this device; beside them stand the dense
    model on smaller images, and larger images pruned harder. Compared is how far each agrees with the dense model.

    Args:
        model: folder of a model, state dict, or a timm name for timm's weights.
        images: folder with images, of any layout, or one image.
        speedup: over the dense model.
        target_ms: milliseconds an image, in its place.
        batch_size: images at once.
        methods: configurations, as files or names such as ``"methods/evit"``; all that come along if None.
        architecture: timm name; needed for a state dict.
        img_size: side in pixels, for state dicts and timm names; the architecture's own if None.
        limit: number of images, at most; a fixed random part of what is there.
        rounds: of the final measurement.
        output: folder for ``tune.json``, ``.csv``, ``.md``, ``.png``, the winner in ``model``, and ``train.yaml``.
        device: name for torch; CUDA if there is one and None is given.
        log: receives lines about what is left out.

    Raises:
        InputError: something does not exist or does not fit, or nothing is as fast as asked.
    """
    from dynavit.config.recipes import recipes
    from dynavit.cost.machine import machine
    from dynavit.evaluation.dense_classifier import open_dense
    from dynavit.evaluation.methods import read_methods
    from dynavit.evaluation.tuning import Target, tune_model, winner
    from dynavit.evaluation.tuning_results import write_tuning
    from dynavit.runs.images import list_images
    from dynavit.runs.loading import random_subset
    from dynavit.runs.open import choose_device

    require_counts(batch_size=batch_size, limit=limit, rounds=rounds, img_size=img_size)
    require_lists(methods=methods)
    target = Target(batch_size, *_asked(speedup, target_ms))
    folder = Path(output)
    require_folder(folder)
    found = list_images(images)
    paths = [found[index] for index in random_subset(found, limit).indices]
    shipped = [path for name, path in recipes().items() if name.startswith("methods/")]
    run = open_dense(str(model), choose_device(device), architecture=architecture, img_size=img_size)
    compared = read_methods(shipped if methods is None else methods)
    rows, settings = tune_model(run, paths, compared, target, rounds, log)
    best = winner(rows, target)
    about = {
        "model": str(model),
        "images": f"{len(paths)} of {images}",
        "asked": f"{speedup:g}x" if speedup is not None else f"{target_ms:g} ms an image",
        "measured_on": f"{machine(run.device)}, batch size {batch_size}",
        "best": best["setting"],
    }
    won = settings[best["setting"]]
    write_tuning(run, rows, won, about, folder)
    return Tuned(rows, best, won.model, about)


@dataclass(frozen=True)
class Plan:
    """What is foretold and measured of a model.

    Attributes:
        rows: of :func:`dynavit.evaluation.planning.compare_plan`.
        stages, keep_ratios: of the model that was planned.
        why_not: why not to prune, where that does not pay; else None.
        settings: of a configuration that trains it.
        about: what was measured on what.
    """

    rows: list[Row]
    stages: tuple[int, ...]
    keep_ratios: tuple[float, ...]
    why_not: str | None
    settings: dict[str, Any]
    about: dict[str, Any]


def plan(
    model: str | Path,
    *,
    speedup: float | None = None,
    target_ms: float | None = None,
    keep_ratio: float | None = None,
    batch_size: int = 1,
    method: str | Path = "methods/default",
    architecture: str | None = None,
    img_size: int | None = None,
    rounds: int = 9,
    fresh: bool = False,
    device: str | None = None,
) -> Plan:
    """Say before any training which keep ratios reach a speed on this device, or that pruning does not pay.

    Blocks are measured at a ladder of token counts, once for a machine, model and batch size; the time of any ratios is
    foretold from that, and what comes out is measured, beside smaller images that take as long.

    Args:
        model: folder of a model, state dict, or a timm name; a timm name gets random weights, which are as fast.
        speedup: over the dense model.
        target_ms: milliseconds an image, in its place.
        keep_ratio: or the ratio whose time is asked for.
        batch_size: images at once.
        method: configuration, as a file or a name such as ``"methods/evit"``.
        architecture: timm name; needed for a state dict.
        img_size: side in pixels, for state dicts and timm names; the architecture's own if None.
        rounds: of the final measurement.
        fresh: measure blocks again, even if they were measured on this machine.
        device: name for torch; CUDA if there is one and None is given.

    Raises:
        InputError: something does not exist or does not fit, or a speed that no ratio reaches, with what is attainable.
    """
    import timm

    from dynavit.cost.machine import machine
    from dynavit.evaluation.cost_cache import cached_costs
    from dynavit.evaluation.dense_classifier import open_dense
    from dynavit.evaluation.methods import read_methods
    from dynavit.evaluation.planning import compare_plan, planned, verdict
    from dynavit.evaluation.tuning import Target
    from dynavit.models import create_model, prune
    from dynavit.models.guides import check_unguided
    from dynavit.runs.open import choose_device

    require_counts(batch_size=batch_size, rounds=rounds, img_size=img_size)
    if keep_ratio is None:
        target = Target(batch_size, *_asked(speedup, target_ms))
    elif speedup is not None or target_ms is not None:
        raise InputError(f"--keep-ratio {keep_ratio}: leave it out, or leave out the speed that is asked for.")
    (chosen,) = read_methods([method])
    place = choose_device(device)
    if not Path(model).exists() and timm.is_model(str(model).partition(".")[0]):
        size: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
        backbone = create_model(str(model), stages=(), **size).backbone
    else:
        backbone = open_dense(str(model), place, architecture=architecture, img_size=img_size).model.backbone
    dense = prune(backbone, stages=()).to(place).eval()  # a neck and cameras cost nothing
    stages = chosen.stages_in(dense.adapter.depth)
    pruned = prune(backbone, stages=stages, **chosen.parts).eval()
    check_unguided(pruned)
    costs = cached_costs(dense, chosen.parts, batch_size, fresh)
    if keep_ratio is None:
        pruned = planned(pruned, costs, target.seconds(costs.predict(pruned.at_ratio(1.0))))
    else:
        pruned = pruned.at_ratio(keep_ratio)
    rows = compare_plan(dense, pruned, costs, batch_size, rounds)
    settings = {name: value for name, value in chosen.parts.items() if value is not None}
    settings |= {"stages": list(pruned.stages), "keep_ratios": [round(ratio, 4) for ratio in pruned.keep_ratios]}
    about = {"model": str(model), "batch_size": batch_size, "measured_on": machine(place)}
    why_not = verdict(rows, costs, batch_size)
    return Plan(rows, pruned.stages, tuple(pruned.keep_ratios), why_not, {"model": settings}, about)


def _asked(speedup: float | None, target_ms: float | None) -> tuple[float | None, float | None]:
    if (speedup is None) == (target_ms is None):
        raise InputError("say how fast: --speedup 1.5, or --target-ms 20 (speedup=, target_ms=); one of them.")
    for name, value, least in (("--speedup", speedup, 1.0), ("--target-ms", target_ms, 0.0)):
        if value is not None and not (is_finite_number(value) and value > least):
            raise InputError(f"{name} {value}: a number above {least:g}.")
    return speedup, target_ms
