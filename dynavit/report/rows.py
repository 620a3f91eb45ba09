"""Rows of results with plain cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynavit.report.table import throughput


def speed_columns(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a row's speed at each batch size: ``images_per_second_32``, ``speedup_32`` and so on."""
    columns: dict[str, float] = {}
    for size, speed in throughput(row).items():
        columns[f"images_per_second_{size}"] = speed["images_per_second"]
        columns[f"speedup_{size}"] = speed["speedup"]
    return columns
