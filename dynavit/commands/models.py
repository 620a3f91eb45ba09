"""What is done with a trained model, as functions: evaluate and export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynavit.commands.settings import (
    TO_EVALUATE,
    TO_EXPORT,
    TO_READ_IMAGES,
    Overrides,
    as_words,
    honour,
    require_counts,
    require_lists,
    require_suffix,
)
from dynavit.errors import InputError
from dynavit.files import require_folder, require_writable
from dynavit.tables import Row

if TYPE_CHECKING:
    from dynavit.deployment.export import Exported, Exporter


def evaluate(
    run_dir: str | Path,
    keep_ratios: Sequence[float] | None = None,
    batch_sizes: Sequence[int] | None = None,
    *,
    adaptive: bool | None = None,
    rivals: str | None = None,
    rival_runs: Sequence[str | Path] = (),
    overrides: Overrides = (),
    output: str | Path | None = None,
    device: str | None = None,
) -> list[Row]:
    """Evaluate a trained model at several keep ratios and against smaller images, and write tables, figures and a page.

    Args:
        run_dir: folder of the model, with a ``config.yaml`` or ``overrides`` that name data.
        keep_ratios: r keeps r, r^2, r^3 ... over the stages, or as the count rule says; the configuration's if None.
        batch_sizes: at which speed is measured; the configuration's if None, none if empty.
        adaptive: also let every image keep as many tokens as it needs; the configuration's choice if None.
        rivals: the dense model on smaller images, not trained on these: ``"192,160"``, heights in pixels; ``"auto"``,
            those nearest in time to each keep ratio; or ``"none"``. The configuration's if None.
        rival_runs: folders of other trained models of the same classes, to compare with.
        overrides: settings of data and evaluation, as ``{"data.root": "my_images"}`` or ``["data.root=my_images"]``.
        output: folder for ``evaluation.json``, ``report.html`` and so on; ``run_dir`` if None.
        device: name for torch; CUDA if there is one and None is given.

    Returns:
        A row for each model (see :mod:`dynavit.report.rows`): the dense one that the run started from, each keep
        ratio, then the rivals. Of several processes only the main one's have ``throughput``.

    Raises:
        InputError: no such model, no data, an impossible ratio, or a setting that would change nothing.
    """
    from dynavit.evaluation.sweep import evaluate_run
    from dynavit.runs.open import open_run

    require_lists(keep_ratios=keep_ratios, batch_sizes=batch_sizes, rival_runs=rival_runs)
    words, idle = as_words(overrides), {}
    if keep_ratios is not None:
        idle["evaluate.keep_ratios"] = "--keep-ratios says it already"
    if rivals is not None:
        idle["evaluate.rivals"] = "--rivals says it already"
    if batch_sizes:
        idle["evaluate.batch_sizes"] = "--batch-sizes says it already"
    elif batch_sizes is not None:
        idle |= dict.fromkeys(("evaluate.rounds", "evaluate.batch_sizes"), "with --no-timing speed is not measured")
    honour(words, TO_EVALUATE, idle)
    if output is not None or Path(run_dir).is_dir():
        require_folder(Path(output or run_dir))
    run = open_run(run_dir, device=device, overrides=words)
    if not run.model.stages:
        why = "a dense model has no stages to prune at"
        for option, value in (("--keep-ratios", keep_ratios), ("--adaptive", adaptive)):
            if value:
                raise InputError(f"{option}: {why}; leave it out.")
        honour(words, TO_EVALUATE, {"evaluate.keep_ratios": why, "evaluate.adaptive": why})
    configured = run.config is not None and run.config.evaluate.adaptive
    if not (configured if adaptive is None else adaptive):
        unread = "training images are read with --adaptive only"
        honour(words, TO_EVALUATE, {"evaluate.calibration_images": unread, "data.train_split": unread})
    folder = None if output is None else Path(output)
    return evaluate_run(run, keep_ratios, batch_sizes, folder, adaptive, rivals, rival_runs)


def export(
    run_dir: str | Path,
    output: str | Path | None = None,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    keep_ratio: float | None = None,
    batch: int | None = None,
    with_tokens: bool = False,
    images: str | Path | None = None,
    rounds: int | None = 15,
    overrides: Overrides = (),
) -> Exported:
    """Write a trained model as a file for deployment, checked against the original in what runs it.

    Args:
        run_dir: folder of the model.
        output: file to write; ``run_dir/model.onnx``, or with the ending of another format, if None.
        format: ``"onnx"``, checked in onnxruntime; ``"openvino"``; or ``"pt2"``, an ``ExportedProgram`` of torch.
        precision: of the blocks, ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``, where the format has it. Scores and
            the choice of tokens stay fp32 but in ``pt2`` and in OpenVINO's bf16.
        keep_ratio: in place of the one trained with.
        batch: write a file for batches of this size alone, as some runtimes want; for any size if None.
        with_tokens: the file also gives which patches each stage kept, ``tokens_1``, ``tokens_2``, ... ``(B, k)``.
        images: folder with images to check with; the run's validation data if None.
        rounds: how often it is timed beside the dense model, exported likewise; None measures no speed.
        overrides: settings of these data, as for :func:`evaluate`.

    Returns:
        Where the file is, what was compared, and how fast it is.

    Raises:
        InputError: no such model, nothing to check with, a missing package, a precision that the format does not have,
            or an exported model that differs: in more than 3 % of the tokens that a stage keeps, in its answers, or,
            with fewer bits, by more than half a point of accuracy.
    """
    from dynavit.deployment.formats import require_target
    from dynavit.deployment.target import Target

    target = Target(format, precision, batch, with_tokens)
    chosen = require_target(target)
    file = Path(output or Path(run_dir) / f"model{chosen.suffix}")
    require_suffix(file, chosen.suffix)
    for suffix in chosen.beside:
        if file.with_suffix(suffix).exists() and not file.exists():
            raise InputError(f"--output {file}: {file.with_suffix(suffix)} is there and belongs to something else.")
    if output is not None or Path(run_dir).is_dir():
        for suffix in (file.suffix, *chosen.beside):
            require_writable(file.with_suffix(suffix))
    exporter = _exporter(run_dir, keep_ratio, batch, images, rounds, overrides, fits=precision == "int8")
    return exporter.export(file, target, rounds or 0)


def export_all(
    run_dir: str | Path,
    output: str | Path | None = None,
    *,
    formats: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    keep_ratio: float | None = None,
    batch: int | None = None,
    with_tokens: bool = False,
    images: str | Path | None = None,
    rounds: int | None = 15,
    overrides: Overrides = (),
) -> list[Row]:
    """Write a trained model as every file that it can be deployed as, each checked, and compare them.

    Args:
        run_dir: folder of the model.
        output: folder for the files, ``exports.json`` and ``exports.md``; ``run_dir/exports`` if None.
        formats: of those that :func:`export` has; all if None.
        precisions: likewise.
        keep_ratio, batch, with_tokens, images, rounds, overrides: as for :func:`export`.

    Returns:
        A row for each format and precision; see :func:`~dynavit.deployment.matrix.export_all`.

    Raises:
        InputError: no such model, nothing to check with, a format or precision that does not exist, or not one file
            that could be written.
    """
    from dynavit.cost.machine import machine
    from dynavit.deployment import matrix
    from dynavit.deployment.formats import FORMATS, PRECISIONS, require_known
    from dynavit.deployment.target import Target

    require_lists(formats=formats, precisions=precisions)
    targets = [
        Target(format, precision, batch, with_tokens)
        for format in dict.fromkeys(formats or FORMATS)
        for precision in dict.fromkeys(precisions or PRECISIONS)
    ]
    for target in targets:
        require_known(target)
    folder = Path(output or Path(run_dir) / "exports")
    if output is not None or Path(run_dir).is_dir():
        require_folder(folder)
    fits = any(target.precision == "int8" for target in targets)
    exporter = _exporter(run_dir, keep_ratio, batch, images, rounds, overrides, fits, bounded=True)
    rows = matrix.export_all(exporter, folder, targets, rounds or 0)
    about = {"run": str(run_dir), "keep ratios": exporter.run.model.keep_ratios, "machine": machine("cpu")}
    if exporter.without_thresholds:
        about["thresholds"] = "left out: files keep the same number of tokens in every image"
    matrix.write_matrix(rows, about, folder)
    return rows


def _exporter(
    run_dir: str | Path,
    keep_ratio: float | None,
    batch: int | None,
    images: str | Path | None,
    rounds: int | None,
    overrides: Overrides,
    fits: bool = False,
    bounded: bool = False,
) -> Exporter:
    """Open a run to export; ``fits``: training images are read, too, which int8 is fitted to."""
    from dynavit.deployment.export import Exporter
    from dynavit.runs.open import open_run

    words = as_words(overrides)
    reads = (*TO_EXPORT, *(["data.train_split"] if fits else []))
    honour(words, reads if images is None else TO_READ_IMAGES)
    require_counts(batch=batch, rounds=rounds)
    run = open_run(run_dir, keep_ratio, "cpu", words)
    return Exporter(run, None if images is None else str(images), bounded=bounded)
