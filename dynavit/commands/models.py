"""What is done with a trained model, as functions: evaluate, export, visualize, predict, embed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
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
from dynavit.files import replacing, require_folder, require_writable
from dynavit.tables import Row
from dynavit.text import printable

if TYPE_CHECKING:
    from torch import Tensor

    from dynavit.deployment.export import Exported, Exporter

Report = Callable[[Sequence[str]], None]
"""Receives a line for each picture that cannot be read."""

_PAGE = 8  # images in a picture


def _warn(problems: Sequence[str]) -> None:
    """Warn of each picture that cannot be read."""
    for problem in problems:
        warnings.warn(problem, stacklevel=3)


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


def visualize(
    run_dir: str | Path,
    images: str | Path,
    output: str | Path | None = None,
    *,
    keep_ratio: float | None = None,
    device: str | None = None,
    report: Report = _warn,
) -> list[Path]:
    """Draw which tokens a trained model keeps after each stage, or merges, eight images to a picture.

    Args:
        run_dir: folder of the model.
        images: folder with images, or one image.
        output: folder for the pictures; ``run_dir/kept_tokens`` if None.
        keep_ratio: in place of the one trained with.
        device: name for torch; CUDA if there is one and None is given.
        report: receives a line for each image that cannot be read.

    Returns:
        The pictures written.

    Raises:
        InputError: no such model, one without stages, or not one image that can be read.
    """
    from dynavit.evaluation.drawings import draw_kept_tokens
    from dynavit.runs.open import list_images, open_run, read_images

    folder = Path(output or Path(run_dir) / "kept_tokens")
    if output is not None or Path(run_dir).is_dir():
        require_folder(folder)
    run = open_run(run_dir, keep_ratio, device)
    if not run.model.stages:
        raise InputError(f"{run.path} holds a dense model: every token is kept, so there is nothing to draw.")
    pages: list[Path] = []
    for paths, batch, problems in read_images(run, list_images(images), _PAGE):
        report(problems)
        if paths:
            picture = draw_kept_tokens(run, batch, [printable(path.name) for path in paths])
            pages.append(folder / f"kept_tokens_{len(pages) + 1:03}.png")
            with replacing(pages[-1]) as partial:
                picture.save(partial)
    return pages


def predict(
    run_dir: str | Path,
    images: str | Path,
    output: str | Path | None = None,
    *,
    keep_ratio: float | None = None,
    batch_size: int = 32,
    device: str | None = None,
    report: Report = _warn,
) -> list[Row]:
    """Label images; or, with a re-identification model, find for each the one most like it.

    Args:
        run_dir: folder of the model.
        images: folder with images, or one image.
        output: file to write the rows to, ``.csv`` or ``.json``.
        keep_ratio: in place of the one trained with.
        batch_size: images at a time.
        device: name for torch; CUDA if there is one and None is given.
        report: receives a line for each image that cannot be read.

    Returns:
        A row for each image: ``image``, ``label`` and ``probability``; or ``image``, ``nearest`` and ``similarity``,
        the cosine of their embeddings.

    Raises:
        InputError: no such model, not one image that can be read, or a file that cannot be written.
    """
    from dynavit.deployment.predict import embed_images, label_images, nearest_images, write_rows
    from dynavit.runs.open import open_run

    require_counts(batch_size=batch_size)
    if output is not None:
        if Path(output).suffix.lower() not in (".csv", ".json"):
            raise InputError(f"--output {output}: the name must end in .csv or .json, or in .npz for embeddings.")
        require_writable(Path(output))
    run = open_run(run_dir, keep_ratio, device)
    if run.is_reid:
        rows = nearest_images(*embed_images(run, images, batch_size, report))
    else:
        rows = label_images(run, images, batch_size, report)
    if output is not None:
        write_rows(Path(output), rows)
    return rows


def embed(
    run_dir: str | Path,
    images: str | Path,
    output: str | Path | None = None,
    *,
    keep_ratio: float | None = None,
    batch_size: int = 32,
    device: str | None = None,
    report: Report = _warn,
) -> tuple[list[str], Tensor]:
    """Embed images with a re-identification model.

    Args:
        run_dir: folder of the model.
        images: folder with images, or one image.
        output: file that ends in ``.npz``, to which arrays ``images`` and ``embeddings`` are written.
        keep_ratio: in place of the one trained with.
        batch_size: images at a time.
        device: name for torch; CUDA if there is one and None is given.
        report: receives a line for each image that cannot be read.

    Returns:
        The paths of M images and their embeddings ``(M, D)`` fp32, of length 1.

    Raises:
        InputError: no such model, one that classifies, not one image that can be read, or a file that cannot be
            written.
    """
    from dynavit.deployment.predict import embed_images, write_embeddings
    from dynavit.runs.open import open_run

    require_counts(batch_size=batch_size)
    if output is not None:
        require_suffix(Path(output), ".npz")
        require_writable(Path(output))
    run = open_run(run_dir, keep_ratio, device)
    if not run.is_reid:
        asked = f"--output {output}" if output is not None else run.path
        raise InputError(f"{asked}: a classifier gives no embeddings; the name must end in .csv or .json.")
    names, embeddings = embed_images(run, images, batch_size, report)
    if output is not None:
        write_embeddings(Path(output), names, embeddings)
    return names, embeddings
