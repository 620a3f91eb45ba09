"""The first question, as a function: how would my model get this much faster, and what would it change?"""

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
    from dynavit.evaluation.dense_classifier import open_dense
    from dynavit.evaluation.machine import machine
    from dynavit.evaluation.methods import read_methods
    from dynavit.evaluation.tuning import Target, tune_model, winner
    from dynavit.evaluation.tuning_results import write_tuning
    from dynavit.runs.loading import random_subset
    from dynavit.runs.open import choose_device, list_images

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


def _asked(speedup: float | None, target_ms: float | None) -> tuple[float | None, float | None]:
    if (speedup is None) == (target_ms is None):
        raise InputError("say how fast: --speedup 1.5, or --target-ms 20 (speedup=, target_ms=); one of them.")
    for name, value, least in (("--speedup", speedup, 1.0), ("--target-ms", target_ms, 0.0)):
        if value is not None and not (is_finite_number(value) and value > least):
            raise InputError(f"{name} {value}: a number above {least:g}.")
    return speedup, target_ms
