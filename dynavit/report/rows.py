"""Rows of results as a file of comma-separated values."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynavit.report.table import throughput


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of numbers and text; a column for every name, in the order in which names first come."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def speed_columns(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a row's speed at each batch size: ``images_per_second_32``, ``speedup_32`` and so on."""
    columns: dict[str, float] = {}
    for size, speed in throughput(row).items():
        columns[f"images_per_second_{size}"] = speed["images_per_second"]
        columns[f"speedup_{size}"] = speed["speedup"]
    return columns
