"""Every file that a model can be deployed as, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynavit.deployment.export import Exported, Exporter
from dynavit.deployment.formats import FORMATS
from dynavit.deployment.target import Target
from dynavit.errors import InputError
from dynavit.files import write_together
from dynavit.report.table import Column, aligned, markdown, significant
from dynavit.tables import Row

_NAMES = (
    *("format", "precision", "runtime", "file", "megabytes", "max_difference", "same_answers", "same_tokens"),
    "left_out",
    *("original", "exported", "speeds", "refused"),
)

TABLE, ROWS = "exports.md", "exports.json"
LEGEND = (
    "Over dense: times as fast as the dense model in the same kind of file; over torch: as the dense model in torch, "
    "fp32; of oracle: how much of the speed of the same blocks on as few tokens, not chosen, in the same kind of file; "
    "medians of interleaved rounds with 95 % intervals. Accuracy is that of the file on part of the validation "
    "data; in fp32, where it answers as the model does, that of the model."
)


def export_all(exporter: Exporter, folder: Path, targets: Sequence[Target], rounds: int = 15) -> list[Row]:
    """Write a run's model as several files, ``model.onnx``, ``model-int8.onnx`` and so on; each is checked.

    Args:
        exporter: of the run.
        folder: made if missing.
        targets: what files to write; one that a runtime cannot do, or that does not pass, has a row that says why.
        rounds: how often each is timed beside the dense model; 0 measures no speed.

    Returns:
        A row for each target: ``format``, ``precision``, ``runtime``, ``file`` and ``megabytes``; ``max_difference``,
        ``same_answers``, ``same_tokens`` (of each stage) and ``left_out`` as in
        :class:`~dynavit.deployment.verify.Verification`; ``original`` and ``exported``, metrics in percent, or None;
        ``speeds``; ``refused``, None or the reason, beside which all else is None.

    Raises:
        InputError: not one was written.
    """
    rows = []
    for target in targets:
        chosen = FORMATS[target.format]
        low = "" if target.precision == "fp32" else f"-{target.precision}"
        row: Row = dict.fromkeys(_NAMES)
        row |= {"format": target.format, "precision": target.precision, "runtime": chosen.runtime}
        try:
            if target.precision in chosen.cannot:
                raise InputError(f"{chosen.cannot[target.precision]}.")
            row |= _found(exporter.export(folder / f"model{low}{chosen.suffix}", target, rounds))
        except InputError as error:
            row["refused"] = str(error)
        rows.append(row)
    if all(row["refused"] for row in rows):
        raise InputError(f"not one file was written. {' '.join(_refusals(rows))}")
    return rows


def matrix_columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of the table of the files that were written, from the rows of :func:`export_all`."""
    written = [row for row in rows if not row["refused"]]
    tokens = [min(row["same_tokens"], default=None) for row in written]
    columns = [
        Column("file", [row["file"] for row in written], left=True),
        Column("runtime", [row["runtime"] for row in written], left=True),
        Column("MB", [f"{row['megabytes']:.1f}" for row in written]),
        Column("largest difference", [f"{row['max_difference']:.1e}" for row in written]),
        Column("same answers (%)", [f"{100 * row['same_answers']:.1f}" for row in written]),
        Column("same tokens (%)", ["-" if share is None else f"{100 * share:.1f}" for share in tokens]),
    ]
    if judged := [row for row in written if row["exported"]]:
        metric = "map" if "map" in judged[0]["exported"] else "top1"
        shown = [f"{(row['exported'] or judged[0]['original'])[metric]:.2f}" for row in written]
        columns.append(Column("mAP (%)" if metric == "map" else "top-1 (%)", shown))
    for number, speed in enumerate(written[0]["speeds"]):
        speeds = [row["speeds"][number] for row in written]
        group = f"batch {speed['batch_size']}"
        columns += [
            Column("ms", [significant(row["ms"]) for row in speeds], group),
            Column("over dense", [_times(row["speedup"]) for row in speeds], group),
            Column("over torch", [_times(row["over_torch"]) for row in speeds], group),
        ]
        if "share" in speeds[0]:
            columns.append(Column("of oracle", [_times(row["share"]) for row in speeds], group))
    return columns


def format_matrix(rows: Sequence[Row]) -> str:
    """Return the table as aligned plain text, and below it what was not written, and why."""
    return "\n".join([aligned(matrix_columns(rows)), *_refusals(rows)])


def write_matrix(rows: Sequence[Row], about: Mapping[str, Any], folder: Path) -> None:
    """Write the table as ``exports.md`` and the rows as ``exports.json``, both with what they are about.

    Raises:
        InputError: they cannot be written.
    """
    told = [f"- {name}: {value}" for name, value in about.items()]
    missing = [f"- {line}" for line in _refusals(rows)]
    table = "\n".join([*told, "", markdown(matrix_columns(rows)).rstrip(), "", *missing, "", LEGEND])
    text = json.dumps({"about": about, "rows": rows}, indent=2)
    write_together(folder, {TABLE: f"{table.rstrip()}\n", ROWS: f"{text}\n"})


def _refusals(rows: Sequence[Row]) -> list[str]:
    return [f"Not written: {row['format']} in {row['precision']}: {row['refused']}" for row in rows if row["refused"]]


def _times(interval: Sequence[float]) -> str:
    ratio, low, high = interval
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def _found(exported: Exported) -> Row:
    found, judged = exported.verification, exported.verification.judgement
    return {
        "file": exported.path.name,
        "megabytes": exported.megabytes,
        "max_difference": found.max_difference,
        "same_answers": found.same_answers,
        "same_tokens": list(found.same_tokens),
        "left_out": found.left_out,
        "original": None if judged is None else judged.original,
        "exported": None if judged is None else judged.exported,
        "speeds": list(found.speeds),
    }
