"""What tuning leaves behind: a table, a figure, and the setting that won, ready for the other commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dynavit.evaluation.tuning import Setting
from dynavit.files import write_together
from dynavit.models.hub import model_config
from dynavit.models.pruning import PRUNING
from dynavit.report.figures import png
from dynavit.report.table import Column, aligned, markdown, significant
from dynavit.report.tuning import plot_tuning
from dynavit.runs.open import Run
from dynavit.tables import Row, csv_text

MODEL, CONFIG = "model", "train.yaml"


def tuning_columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of the table of :func:`~dynavit.evaluation.tuning.tune_model`'s rows."""
    columns = [
        Column("setting", [row["setting"] for row in rows], left=True),
        Column("keep ratio", ["-" if row["keep_ratio"] is None else f"{row['keep_ratio']:.3f}" for row in rows]),
        Column("pixels", ["x".join(map(str, row["image_size"])) for row in rows]),
        Column("GMACs", [significant(row["gmacs"]) for row in rows]),
        Column("ms", [significant(row["ms"]) for row in rows]),
        Column("speedup", [f"{row['speedup'][0]:.2f}x" for row in rows]),
        Column("95 % interval", ["{1:.2f} to {2:.2f}".format(*row["speedup"]) for row in rows]),
    ]
    if "same_top1" in rows[0]:
        columns.append(Column("same top-1 (%)", [f"{row['same_top1']:.1f}" for row in rows]))
        columns.append(Column("KL", [f"{row['kl']:.3f}" for row in rows]))
    return [*columns, Column("cosine", [f"{row['cosine']:.4f}" for row in rows])]


def format_tuning(rows: Sequence[Row]) -> str:
    """Return the table as aligned plain text."""
    return aligned(tuning_columns(rows))


def format_plan(rows: Sequence[Row]) -> str:
    """Return the rows of :func:`~dynavit.evaluation.planning.compare_plan` as aligned plain text."""
    foretold = ["-" if row["foretold_ms"] is None else significant(row["foretold_ms"]) for row in rows]
    return aligned(
        [
            Column("setting", [row["setting"] for row in rows], left=True),
            Column("keep ratios", [row["keep_ratios"] for row in rows]),
            Column("foretold ms", foretold),
            Column("measured ms", [significant(row["ms"]) for row in rows]),
            Column("speedup", [f"{row['speedup'][0]:.2f}x" for row in rows]),
            Column("95 % interval", ["{1:.2f} to {2:.2f}".format(*row["speedup"]) for row in rows]),
        ]
    )


def write_tuning(run: Run, rows: Sequence[Row], won: Setting, about: Mapping[str, Any], output: Path) -> None:
    """Write ``tune.json``, ``.csv``, ``.md`` and ``.png``, the winning model, and a configuration that trains it.

    Args:
        run: that was tuned.
        rows: of :func:`~dynavit.evaluation.tuning.tune_model`.
        won: what is written to ``output/model``.
        about: what was compared on what.
        output: folder, made if it is not there.

    Raises:
        InputError: a file cannot be written, or a model that cannot be saved.
    """
    model = won.model
    model.metadata = {**run.model.metadata, "preprocessing": {**run.preprocessing, "image_size": list(won.image_size)}}
    if not run.is_reid and run.model.num_classes:
        model.metadata["class_names"] = list(run.class_names)
    model.save_pretrained(output / MODEL)
    lines = [f"- {name.replace('_', ' ')}: {value}\n" for name, value in about.items()]
    files: dict[str, str | bytes] = {
        "tune.json": json.dumps({**about, "rows": list(rows)}, indent=2) + "\n",
        "tune.csv": csv_text([row | {"speedup": row["speedup"][0]} for row in rows]),
        "tune.md": f"{markdown(tuning_columns(rows))}\n{''.join(lines)}",
        "tune.png": png(partial(plot_tuning, rows)),
        CONFIG: _training(run, won, about, output),
    }
    write_together(output, files)


def _training(run: Run, won: Setting, about: Mapping[str, Any], output: Path) -> str:
    """Return a configuration that fine-tunes the model that won."""
    described = model_config(won.model)
    pruning = {name: described[name] for name in PRUNING if name in described and name != "keep_ratios"}
    settings = {
        "task": "reid" if run.is_reid else "classify",
        "name": output.name,
        "model": {
            "checkpoint": str(output / MODEL),
            "architecture": None,
            **pruning,
            **({} if won.keep_ratio is None else {"keep_ratio": won.keep_ratio}),
        },
    }
    head = f"# {won.name}, which changes the answers of {about['model']} least at {about['asked']}.\n#\n"
    command = f"#   python tools/train.py --config {output / CONFIG} data.root=IMAGES\n"
    return head + command + yaml.safe_dump(settings, sort_keys=False)
