"""Runs a study and writes what it found."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from studies import selection, stability
from studies.figures import plot_selection, plot_stability
from studies.results import short, with_range
from studies.selection import SelectionRow, run_selection
from studies.selection_problem import NUM_FOREGROUND, NUM_TOKENS
from studies.selection_variants import LEFT_OUT
from studies.stability import StabilityRow, run_stability
from studies.writer import Column, format_text, write_results

_STABILITY_COLUMNS = [
    Column[StabilityRow]("variant", lambda row: row.variant, left=True),
    Column[StabilityRow]("first", lambda row: short(row.first_loss.mean)),
    Column[StabilityRow]("final loss", lambda row: with_range(row.final_loss, 1)),
    Column[StabilityRow]("largest", lambda row: short(row.largest_loss.mean)),
    Column[StabilityRow]("|g| backbone", lambda row: short(row.backbone_gradient_median.mean)),
    Column[StabilityRow]("p99", lambda row: short(row.backbone_gradient_p99.mean)),
    Column[StabilityRow]("|g| predictor", lambda row: short(row.predictor_gradient_median.mean)),
    Column[StabilityRow]("accuracy", lambda row: with_range(row.accuracy, 2)),
    Column[StabilityRow]("kept", lambda row: "/".join(short(stage.mean) for stage in row.kept)),
    Column[StabilityRow]("verdict", lambda row: row.verdict, left=True),
]
_LEGEND = (
    "first: mean loss of the first 5 steps; final: of the last 30; largest: from step 30 on; |g|: median gradient "
    "norm over the steps, p99 its 99th percentile; accuracy: on new images; kept: by each stage at the "
    "end of training. Means over the seeds, and [lowest, highest]."
)
_WHAT = Column[StabilityRow]("what it is", lambda row: row.summary, left=True)

_SELECTION_COLUMNS = [
    Column[SelectionRow]("variant", lambda row: row.variant, left=True),
    Column[SelectionRow]("kind", lambda row: row.kind, left=True),
    Column[SelectionRow]("accuracy", lambda row: with_range(row.accuracy, 3)),
    Column[SelectionRow]("foreground recall", lambda row: with_range(row.foreground_recall, 3)),
    Column[SelectionRow]("|g| predictor", lambda row: short(row.predictor_gradient_median.mean)),
    Column[SelectionRow]("p99", lambda row: short(row.predictor_gradient_p99.mean)),
]
_SELECTOR = Column[SelectionRow]("selector", lambda row: row.selector, left=True)


def report_stability(
    output: Path, seeds: Sequence[int], steps: int | None = None, variants: Sequence[str] | None = None
) -> str:
    """Run the stability study, write ``stability.{json,csv,md,png}`` to ``output``, return the table.

    Raises:
        InputError: unknown variant, bad seeds, too few steps, or an output that cannot be written.
    """
    steps = 250 if steps is None else steps
    rows = run_stability(seeds, steps, variants)
    settings = {"seeds": list(seeds), "steps": steps, "learning rate": stability.LEARNING_RATE}
    columns = [*_STABILITY_COLUMNS[:1], _WHAT, *_STABILITY_COLUMNS[1:]]
    notes = [_LEGEND, _sentence(stability.RULE)]
    write_results(output, "stability", columns, rows, settings, notes, partial(plot_stability, rows))
    return "\n\n".join([format_text(_STABILITY_COLUMNS, rows), _LEGEND, _sentence(stability.RULE)])


def report_selection(
    output: Path, seeds: Sequence[int], steps: int | None = None, variants: Sequence[str] | None = None
) -> str:
    """Run the selection study, write ``selection.{json,csv,md,png}`` to ``output``, return the table.

    Raises:
        InputError: unknown variant, bad seeds, too few steps, or an output that cannot be written.
    """
    steps = 400 if steps is None else steps
    rows = run_selection(seeds, steps, variants)
    settings = {"seeds": list(seeds), "steps": steps, "learning rate": selection.LEARNING_RATE}
    note = (
        f"{NUM_FOREGROUND} of {NUM_TOKENS} tokens show the class; chance is 0.125 for both accuracy and recall. |g|: "
        f"median gradient norm of the predictor over the steps, p99 its 99th percentile. Means and [lowest, highest]. "
        f"Left out: {', '.join(f'{name} ({reason})' for name, reason in LEFT_OUT.items())}."
    )
    columns = [*_SELECTION_COLUMNS[:1], _SELECTOR, *_SELECTION_COLUMNS[1:]]
    write_results(output, "selection", columns, rows, settings, [note], partial(plot_selection, rows))
    return f"{format_text(_SELECTION_COLUMNS, rows)}\n\n{note}"


def _sentence(rule: str) -> str:
    return f"Verdicts. {rule}"
