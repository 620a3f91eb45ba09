"""What is compared, as functions: methods at equal cost, and trainings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynavit.commands.settings import require_counts, require_lists
from dynavit.errors import InputError
from dynavit.files import require_folder, require_writable
from dynavit.text import printable

if TYPE_CHECKING:
    from dynavit.evaluation.comparison import Comparison


def compare_methods(
    checkpoint: str | Path,
    methods: Sequence[str | Path] | None = None,
    keep_ratios: Sequence[float] = (0.9, 0.7, 0.5),
    *,
    architecture: str | None = None,
    root: str | Path | None = None,
    img_size: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    calibration_images: int = 512,
    rounds: int | None = 7,
    output: str | Path = "checkpoints/methods",
    device: str | None = None,
    log: Callable[[str], None] = print,
) -> Comparison:
    """Compare methods that need no training on a dense model and its images, at equal MACs.

    For each keep ratio the budget is what dropping tokens at a quarter, half and three quarters of the depth costs
    without choosing them; each method gets the largest keep ratio at which it stays within that, scoring included.
    Where the model does not know the classes of the images, a classifier is fitted on its features, and kept in
    ``output/dense``.

    Args:
        checkpoint: folder of a model, state dict, or a timm name for timm's weights.
        methods: configurations, as files or names such as ``"methods/evit"``; all that come along if None.
        keep_ratios: of plain dropping, one a budget.
        architecture: timm name; needed for a state dict.
        root: images in ``root/train/CLASS`` and ``root/val/CLASS``; what the checkpoint was trained on if None.
        img_size: side in pixels, for state dicts and timm names; the architecture's own if None.
        limit: use this many training and this many validation images; all if None.
        batch_size: images at a time, also where speed is measured.
        calibration_images: training images that thresholds are set on, at most.
        rounds: how often speed is measured; None does not measure it.
        output: folder for ``methods.json``, ``.csv``, ``.md`` and ``.png``.
        device: name for torch; CUDA if there is one and None is given.
        log: receives lines about what is done, and which methods are left out.

    Returns:
        The rows (see :mod:`dynavit.report.rows`), and what was compared on what.

    Raises:
        InputError: something does not exist or does not fit, or every method is left out.
    """
    from dynavit.config.recipes import recipes
    from dynavit.cost.machine import machine
    from dynavit.evaluation.comparison import Comparison, evaluate_methods
    from dynavit.evaluation.dense_classifier import open_dense_classifier
    from dynavit.evaluation.methods import read_methods
    from dynavit.evaluation.results import write_methods
    from dynavit.runs.open import choose_device

    require_counts(batch_size=batch_size, rounds=rounds, img_size=img_size, calibration_images=calibration_images)
    require_lists(methods=methods, keep_ratios=keep_ratios)
    folder, place = Path(output), choose_device(device)
    require_folder(folder)
    shipped = [path for name, path in recipes().items() if name.startswith("methods/")]
    compared = read_methods(shipped if methods is None else methods)
    classifier = open_dense_classifier(
        str(checkpoint),
        place,
        folder,
        architecture=architecture,
        root=None if root is None else str(root),
        img_size=img_size,
        limit=limit,
        log=log,
    )
    left_out: list[str] = []
    rows = evaluate_methods(
        classifier,
        compared,
        keep_ratios,
        batch_size=batch_size,
        calibration_images=calibration_images,
        rounds=rounds or 0,
        log=left_out.append,
    )
    for line in left_out:
        log(line)
    about = {
        "model": f"{classifier.model.architecture}, {classifier.origin}",
        "images": f"{len(classifier.data.validation)} for validation, {len(classifier.data.train)} for training",
        "measured_on": machine(place),
        "speedup": "over the dense model, timed in turns with the methods of each budget; median over the rounds",
        "left_out": "; ".join(line.rstrip(".").replace(" is left out", "", 1) for line in left_out) or "nothing",
    }
    write_methods(rows, about, folder)
    return Comparison(rows, about)


def compare_runs(run_dirs: Sequence[str | Path], output: str | Path = "losses.png") -> None:
    """Draw the training losses of several runs, and their validation metrics, in one figure.

    Args:
        run_dirs: folders of trainings, of one task.
        output: picture to write; its ending is the format.

    Raises:
        InputError: no run, one without a complete epoch, runs of different tasks, or a file that cannot be written.
    """
    from dynavit.config import load_config
    from dynavit.report.figures import require_format
    from dynavit.report.losses import plot_losses
    from dynavit.tasks import create_task
    from dynavit.training.monitor import MetricsFile

    require_lists(run_dirs=run_dirs)
    require_format(output)
    require_writable(Path(output))
    paths = [Path(run_dir) for run_dir in run_dirs]
    if not paths:
        raise InputError("there is no run to compare: give the folder of one training or more.")
    for path in paths:
        if not (path / "config.yaml").is_file():
            raise InputError(f"{path} is no run: give the folder of a training, which holds config.yaml.")
    metrics = {create_task(load_config(path / "config.yaml")).metric for path in paths}
    if len(metrics) > 1:
        raise InputError(f"runs of different tasks have different metrics: {', '.join(sorted(metrics))}.")
    names = [path.resolve().name for path in paths]
    runs = {
        printable(name if names.count(name) == 1 else path): MetricsFile(path / "metrics.jsonl").rows()
        for name, path in zip(names, paths, strict=True)
    }
    plot_losses(runs, output, metrics.pop())
