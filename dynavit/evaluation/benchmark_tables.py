"""What a benchmark measured, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from dynavit.report.table import Column, aligned, significant
from dynavit.tables import Row

_MOST_COUNTS = 4  # numbers of tokens that a cell holds

_MODELS_LEGEND = (
    "ms: per image, the time of a batch over its size. oracle: what pruning could save at best, the same blocks on as "
    "few tokens without choosing them. share: how much of the oracle's speed the pruned model has; 95 % interval."
)
_SELECTORS_LEGEND = "ms: of a whole batch, forward and backward; block: one block of the backbone."


def format_models(rows: Sequence[Row]) -> str:
    """Return the rows of :func:`benchmark_models` as an aligned table, and below it the stages that do not pay."""
    remarks = [remark for row in rows for remark in _remarks(row)]
    columns = [
        Column("method", [row["method"] for row in rows], left=True),
        Column("run", [row["run"] for row in rows], left=True),
        Column("dtype", [row["dtype"] for row in rows], left=True),
        Column("batch", [str(row["batch_size"]) for row in rows]),
        Column("keep ratio", [f"{row['keep_ratio']:g}" for row in rows]),
        Column("tokens", [_counts(row["tokens"]) for row in rows]),
        Column("x fewer", [f"{row['macs_ratio']:.2f}x" for row in rows]),
        *(
            Column(f"{name} ms", [significant(row["ms"][name]) for row in rows])
            for name in ("dense", "pruned", "oracle")
        ),
        Column("speedup", [f"{row['speedup'][0]:.2f}x" for row in rows]),
        Column("[min, max]", ["[{1:.2f}, {2:.2f}]".format(*row["speedup"]) for row in rows]),
        Column("oracle", [f"{row['oracle_speedup'][0]:.2f}x" for row in rows]),
        Column("share", [f"{row['share'][0]:.3f}" for row in rows]),
        Column("95 % interval", ["{1:.3f} to {2:.3f}".format(*row["share"]) for row in rows]),
    ]
    return "\n".join([aligned(columns), "", _MODELS_LEGEND, *(["", *remarks] if remarks else [])])


def format_selectors(rows: Sequence[Row]) -> str:
    """Return the rows of :func:`benchmark_selectors` as an aligned table."""
    columns = [
        Column("selector", [row["selector"] for row in rows], left=True),
        Column("batch", [str(row["batch_size"]) for row in rows]),
        Column("tokens", [str(row["tokens"]) for row in rows]),
        *_milliseconds(rows, "selector", "block"),
        Column("% of a block", [f"{row['percent'][0]:.2f}" for row in rows]),
        Column("[min, max]", ["[{1:.2f}, {2:.2f}]".format(*row["percent"]) for row in rows]),
    ]
    return f"{aligned(columns)}\n\n{_SELECTORS_LEGEND}"


def _milliseconds(rows: Sequence[Row], *names: str) -> list[Column]:
    return [Column(f"{name} ms", [significant(row["ms"][name]) for row in rows]) for name in names]


def _counts(tokens: Sequence[int]) -> str:
    return "/".join(map(str, tokens if len(tokens) <= _MOST_COUNTS else [tokens[0], "..", tokens[-1]]))


def _remarks(row: Row) -> list[str]:
    """Say of each stage that does not make the model faster by how much."""
    remarks = []
    for block, (gain, least, largest) in row.get("stages", {}).items():
        if gain < 1:
            verdict = "saves less than it costs" if largest < 1 else "does not clearly pay"
            remarks.append(
                f"{row['dtype']}, batch {row['batch_size']}, keep ratio {row['keep_ratio']:g}: the stage before "
                f"block {block} {verdict}: with it the model runs {gain:.2f}x [{least:.2f}, {largest:.2f}] as fast."
            )
    return remarks
