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
_RIVALS_LEGEND = (
    "Rivals, instead of pruning, are compared with the dense model; what they cost in accuracy says evaluate."
)
_MODES_LEGEND = "Speedup and share compare in one mode; over eager: with the dense model that is not compiled."
_PARTS_LEGEND = (
    "Of the pruned model's milliseconds: scorers, selector, removing or merging tokens, each repeated alone on the "
    "tokens that it finds, and all else."
)
_TRAINING_LEGEND = (
    "teacher: the dense model, the pruned one and the oracle all have one, or none has. saved: what the forward of a "
    "step keeps for its backward; peak, on CUDA: the most that a step allocates; both of the pruned model."
)
_SELECTORS_LEGEND = "ms: of a whole batch, forward and backward; block: one block of the backbone."


def format_models(rows: Sequence[Row]) -> str:
    """Return the rows of :func:`benchmark_models` as an aligned table, and below it the stages that do not pay."""
    remarks = [remark for row in rows for remark in _remarks(row)]
    training = all("teacher" in row for row in rows)
    columns = [
        Column("method", [row["method"] for row in rows], left=True),
        Column("run", [row["run"] for row in rows], left=True),
        *([Column("teacher", ["yes" if row["teacher"] else "no" for row in rows], left=True)] if training else []),
        Column("dtype", [row["dtype"] for row in rows], left=True),
        *_told_apart(rows),
        Column("batch", [str(row["batch_size"]) for row in rows]),
        Column("keep ratio", [f"{row['keep_ratio']:g}" if "keep_ratio" in row else "-" for row in rows]),
        Column("tokens", [_counts(row["tokens"]) or "-" for row in rows]),
        Column("x fewer", [f"{row['macs_ratio']:.2f}x" for row in rows]),
        *_milliseconds(rows, "dense", "pruned", "oracle"),
        Column("speedup", [f"{row['speedup'][0]:.2f}x" for row in rows]),
        Column("[min, max]", ["[{1:.2f}, {2:.2f}]".format(*row["speedup"]) for row in rows]),
        *_over_eager(rows),
        Column("oracle", [_of(row, "oracle_speedup", "{0:.2f}x") for row in rows]),
        Column("share", [_of(row, "share", "{0:.3f}") for row in rows]),
        Column("95 % interval", [_of(row, "share", "{1:.3f} to {2:.3f}") for row in rows]),
        *_memory(rows, "saved"),
        *_memory(rows, "peak"),
        *_parts(rows),
    ]
    legend = [_MODELS_LEGEND, *([_TRAINING_LEGEND] if training else [])]
    legend += [_MODES_LEGEND] if any("over_eager" in row for row in rows) else []
    legend += [_PARTS_LEGEND] if any("parts" in row for row in rows) else []
    legend += [_RIVALS_LEGEND] if any("keep_ratio" not in row for row in rows) else []
    return "\n".join([aligned(columns), "", *legend, *(["", *remarks] if remarks else [])])


def _told_apart(rows: Sequence[Row]) -> list[Column]:
    """Return what rows differ in beside the batch size: a mode, an image size, a number of threads."""
    titles = {"mode": "mode", "image_size": "pixels", "threads": "threads"}
    cells = {title: [str(row.get(name, "")) for row in rows] for name, title in titles.items()}
    return [
        Column(title, values, left=title == "mode")
        for title, values in cells.items()
        if len(set(values)) > 1 or values[0] in ("compile", "graphs")
    ]


def _over_eager(rows: Sequence[Row]) -> list[Column]:
    if not any("over_eager" in row for row in rows):
        return []
    return [Column("over eager", [_of(row, "over_eager", "{0:.2f}x") for row in rows])]


def _parts(rows: Sequence[Row]) -> list[Column]:
    """Return what of the pruned model's milliseconds goes into what."""
    names = next((list(row["parts"]) for row in rows if "parts" in row), [])
    return [
        Column(name, [significant(row["parts"][name]) if "parts" in row else "-" for row in rows], "of pruned ms")
        for name in names
    ]


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
    cells = {name: [row["ms"].get(name) for row in rows] for name in names}
    return [
        Column(f"{name} ms", ["-" if ms is None else significant(ms) for ms in times]) for name, times in cells.items()
    ]


def _of(row: Row, name: str, form: str) -> str:
    """Return what was measured as text; rivals have no oracle."""
    return form.format(*row[name]) if name in row else "-"


def _memory(rows: Sequence[Row], kind: str) -> list[Column]:
    """Return the columns of what training steps keep or allocate, where that was measured."""
    measured = [row.get(f"{kind}_bytes") for row in rows]
    if not any(measured):
        return []
    return [
        Column(f"{kind} MB", [significant(sizes["pruned"] / 1e6) if sizes else "-" for sizes in measured]),
        Column("of dense", [f"{sizes['pruned'] / sizes['dense']:.2f}x" if sizes else "-" for sizes in measured]),
    ]


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
