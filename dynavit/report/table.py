"""Tables: aligned for a terminal, in Markdown, and the columns of an evaluation's rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dynavit.report.rows import (
    accuracy_base,
    batch_sizes,
    compares_methods,
    is_adaptive,
    is_dense,
    is_rival,
    metric_name,
    ratio_text,
    require_rows,
    throughput,
)
from dynavit.tables import Row
from dynavit.text import printable

_NOTHING = "-"
_INTERVAL = "95 % interval"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: above its cells.
        cells: one a row.
        group: what stands above the titles of several columns, here above the first of them; else "".
        left: cells are aligned to the left rather than to the right.
    """

    title: str
    cells: Sequence[str]
    group: str = ""
    left: bool = False


def aligned(columns: Sequence[Column]) -> str:
    """Return a table as plain text, with a rule below the titles."""
    titles = [[column.title for column in columns]]
    if any(column.group for column in columns):
        titles.insert(0, [column.group if begins_group(columns, n) else "" for n, column in enumerate(columns)])
    cells = zip(*(column.cells for column in columns), strict=True)
    lines = [[printable(cell) for cell in line] for line in (*titles, *cells)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(len(titles), ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column.left else cell.rjust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def markdown(columns: Sequence[Column]) -> str:
    """Return a table in Markdown."""
    titles = [f"{column.title}, {column.group}" if column.group else column.title for column in columns]
    rules = ["---" if column.left else "--:" for column in columns]
    lines = [titles, rules, *zip(*(column.cells for column in columns), strict=True)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def evaluation_columns(rows: Sequence[Row], metric: str = "top1") -> list[Column]:
    """Return the columns of the table of an evaluation.

    Args:
        rows: see :mod:`dynavit.report.rows`.
        metric: the metric to show.

    Raises:
        InputError: no row.
    """
    require_rows(rows)
    base = accuracy_base(rows, metric)
    deltas = [_NOTHING if n == base else _cell(row.get(f"delta_{metric}"), _signed) for n, row in enumerate(rows)]
    columns = [
        *(_method_columns(rows) if compares_methods(rows) else _model_columns(rows)),
        Column("GMACs", [_cell(row.get("gmacs"), significant) for row in rows]),
        Column("x fewer", [_cell(row.get("gmacs_ratio"), _times) for row in rows]),
        Column(metric_name(metric), [_cell(row.get(metric), _percent) for row in rows]),
        *interval_column(rows, metric, lambda value: f"{value:.1f}"),
        Column("delta", deltas),
        *interval_column(rows, f"delta_{metric}", _signed),
    ]
    if metric == "map" and any("rank1" in row for row in rows):
        columns.append(Column(metric_name("rank1"), [_cell(row.get("rank1"), _percent) for row in rows]))
    for size in batch_sizes(rows):
        speeds = [throughput(row).get(size, {}) for row in rows]
        group = f"batch {size}"
        columns.append(Column("images/s", [_cell(s.get("images_per_second"), significant) for s in speeds], group))
        columns.append(Column("speedup", [_cell(s.get("speedup"), _times) for s in speeds], group))
    return columns


def spectra_columns(rows: Sequence[Row], metric: str) -> list[Column]:
    """Return the columns of what is left where spectra are missing.

    Args:
        rows: of :func:`dynavit.evaluation.spectra.spectra_rows`.
        metric: the metric to show.
    """
    shown = [row["spectra"] if isinstance(row["spectra"], str) else ", ".join(row["spectra"]) for row in rows]
    return [
        Column("spectra", shown, left=True),
        Column(metric_name(metric), [_percent(row[metric]) for row in rows]),
        *interval_column(rows, metric, lambda value: f"{value:.1f}"),
        Column(metric_name("rank1"), [_percent(row["rank1"]) for row in rows]),
        Column("delta", [_cell(row.get(f"delta_{metric}"), _signed) for row in rows]),
        *interval_column(rows, f"delta_{metric}", lambda value: signed(value, 1)),
    ]


def interval_column(rows: Sequence[Row], name: str, write: Callable[[float], str], group: str = "") -> list[Column]:
    """Return the column of an interval ``<name>_low`` to ``<name>_high``, if any row has one."""
    ends = [(row.get(f"{name}_low"), row.get(f"{name}_high")) for row in rows]
    if not any(f"{name}_low" in row for row in rows):
        return []
    cells = [_NOTHING if low is None or high is None else f"{write(low)} to {write(high)}" for low, high in ends]
    return [Column(_INTERVAL, cells, group)]


def begins_group(columns: Sequence[Column], number: int) -> bool:
    """Whether a column is the first of its group."""
    return number == 0 or columns[number - 1].group != columns[number].group


def format_table(rows: Sequence[Row], metric: str = "top1") -> str:
    """Return the table of an evaluation as aligned plain text; of methods, each budget below a line of its own.

    Args:
        rows: see :mod:`dynavit.report.rows`.
        metric: the metric to show.

    Raises:
        InputError: no row.

    Example:
        >>> print(format_table([{"model": "dense", "gmacs": 4.599, "top1": 79.85}]))
        model  keep ratio  tokens  GMACs  x fewer  top-1  delta
        -----  ----------  ------  -----  -------  -----  -----
        dense           -       -   4.60        -  79.85      -
    """
    lines = aligned(evaluation_columns(rows, metric)).splitlines()
    head = len(lines) - len(rows)
    text = lines[:head]
    for number, line in enumerate(lines[head:]):
        text += ["", _budget(rows[number])] if _begins_budget(rows, number) else []
        text.append(line)
    return "\n".join(text)


def markdown_table(rows: Sequence[Row], metric: str = "top1") -> str:
    """Return the same as a Markdown table.

    Args:
        rows: see :mod:`dynavit.report.rows`.
        metric: the metric to show.

    Raises:
        InputError: no row.
    """
    columns = evaluation_columns(rows, metric)
    head, rule, *lines = markdown(columns).splitlines()
    text = [head, rule]
    for number, line in enumerate(lines):
        text += [f"| *{_budget(rows[number])}* {'|  ' * (len(columns) - 1)}|"] if _begins_budget(rows, number) else []
        text.append(line)
    return "\n".join(text) + "\n"


def significant(value: float, digits: int = 3) -> str:
    """Write a number with three significant digits and no exponent: 0.0423, 4.60, 1,234.

    Example:
        >>> [significant(x) for x in (0.04231, 4.5989, 17.56, 1234.4, 0)]
        ['0.0423', '4.60', '17.6', '1,234', '0']
    """
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(decimals, 0)}f}"


def signed(value: float, decimals: int) -> str:
    """Write a difference with its sign; what rounds to nothing has none.

    Example:
        >>> [signed(x, 1) for x in (0.42, -0.38, -0.01)]
        ['+0.4', '-0.4', '0.0']
    """
    text = f"{value:+.{decimals}f}"
    return text if float(text) else text[1:]


def _model_columns(rows: Sequence[Row]) -> list[Column]:
    columns = [
        Column("model", [str(row.get("rival", row["model"])) for row in rows], left=True),
        Column("keep ratio", [ratio_text(row) for row in rows]),
        Column("tokens", ["/".join(map(_count, row.get("tokens") or [])) or _NOTHING for row in rows]),
    ]
    if any(is_adaptive(row) for row in rows):
        columns.append(Column("p95", [_cell(row.get("tokens_p95"), _count) for row in rows]))
    return columns


def _method_columns(rows: Sequence[Row]) -> list[Column]:
    """Methods differ in their number of stages, up to one a block: the tokens after the last one are shown."""
    return [
        Column("method", [str(row["method"]) for row in rows], left=True),
        Column("keep ratio", [_ratio_or_pixels(row) for row in rows]),
        Column("tokens left", [_tokens_left(row) for row in rows]),
    ]


def _ratio_or_pixels(row: Row) -> str:
    if is_rival(row):
        return f"{row['image_size'][0]} px"
    return _NOTHING if is_dense(row) else f"{row['keep_ratio']:.3f}"


def _tokens_left(row: Row) -> str:
    if not row.get("tokens"):
        return _NOTHING
    last = _count(row["tokens"][-1])
    return f"{last} (p95 {row['tokens_p95']:.0f})" if "tokens_p95" in row else last


def _budget(row: Row) -> str:
    return f"as dropping at keep ratio {row['budget_ratio']:g}: {significant(row['budget_gmacs'])} GMACs"


def _begins_budget(rows: Sequence[Row], number: int) -> bool:
    ratio = rows[number].get("budget_ratio")
    return ratio is not None and (number == 0 or rows[number - 1].get("budget_ratio") != ratio)


def _cell(value: Any, write: Callable[[Any], str]) -> str:
    return _NOTHING if value is None else write(value)


def _count(tokens: float) -> str:
    return str(tokens) if isinstance(tokens, int) else f"{tokens:.1f}"


def _percent(value: float) -> str:
    return f"{value:.2f}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def _signed(value: float) -> str:
    return signed(value, 2)
