"""The results of a study as Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch

from dynavit.files import write_together
from dynavit.report.figures import png
from dynavit.report.table import Column, markdown
from dynavit.tables import csv_text
from studies.spread import Spread


def write_results(
    folder: Path,
    name: str,
    columns: Sequence[Column],
    rows: Sequence[Any],
    settings: dict[str, Any],
    notes: Sequence[str],
    plots: Mapping[str, Callable[[BinaryIO], None]] = MappingProxyType({}),
) -> None:
    """Write ``<name>.json`` (everything, every run), ``.csv`` (means and ranges), ``.md`` (the table) and pictures.

    Args:
        folder: created if it is missing.
        name: of the study.
        columns: of the Markdown table.
        rows: dataclasses.
        settings: how the study was run.
        notes: paragraphs below the Markdown table.
        plots: draw pictures into open files, by their names without ``.png``.

    Raises:
        InputError: a file cannot be written; then all that stood there before stays.
    """
    settings = {**settings, "torch": torch.__version__}
    everything = {"settings": settings, "notes": list(notes), "rows": [_plain(row) for row in rows]}
    described = ", ".join(f"{key} {' '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in settings.items())
    paragraphs = "\n\n".join([*notes, f"Settings: {described}."])
    files: dict[str, str | bytes] = {
        f"{name}.json": json.dumps(everything, allow_nan=False) + "\n",
        f"{name}.csv": csv_text([_flat(row) for row in rows]),  # rows may have different numbers of stages
        f"{name}.md": f"{markdown(columns)}\n{paragraphs}\n",
    }
    files |= {f"{picture}.png": png(plot) for picture, plot in plots.items()}
    write_together(folder, files)


def _flat(row: Any) -> dict[str, Any]:
    """One CSV line: a column each for mean, low and high of a spread; single runs are left out."""
    cells: dict[str, Any] = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Spread):
            cells |= _spread(field.name, value)
        elif isinstance(value, list) and value and isinstance(value[0], Spread):
            for number, stage in enumerate(value, start=1):
                cells |= _spread(f"{field.name}_{number}", stage)
        elif isinstance(value, str):
            cells[field.name] = value
    return cells


def _spread(name: str, spread: Spread) -> dict[str, float]:
    return {f"{name}_mean": spread.mean, f"{name}_low": spread.low, f"{name}_high": spread.high}


def _plain(value: Any) -> Any:
    """Turn dataclasses into JSON; 6 digits of a float; JSON has no words for infinity and NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value
