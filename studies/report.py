"""Runs a study and writes what it found."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dynavit.report.table import Column, aligned
from studies import selection, stability
from studies.figures import plot_selection, plot_spectra, plot_stability
from studies.selection import SelectionRow, run_selection
from studies.selection_problem import NUM_FOREGROUND, NUM_TOKENS
from studies.selection_variants import LEFT_OUT
from studies.spread import short, with_range
from studies.stability import StabilityRow, run_stability
from studies.writer import write_results

_LEGEND = (
    "first: mean loss of the first 5 steps; final: of the last 30; largest: from step 30 on; |g|: median gradient "
    "norm over the steps, p99 its 99th percentile; accuracy: on new images; kept: by each stage at the "
    "end of training. Means over the seeds, and [lowest, highest]."
)


def report_stability(
    output: Path, seeds: Sequence[int], steps: int | None = None, variants: Sequence[str] | None = None
) -> str:
    """Run the stability study, write ``stability.{json,csv,md,png}`` to ``output``, return the table.

    Of three spectra there is another figure, ``stability-spectra.png``.

    Raises:
        InputError: unknown variant, bad seeds, too few steps, or an output that cannot be written.
    """
    steps = 250 if steps is None else steps
    rows = run_stability(seeds, steps, variants)
    settings = {"seeds": list(seeds), "steps": steps, "learning rate": stability.LEARNING_RATE}
    name, *numbers = _stability_columns(rows)
    columns = [name, Column("what it is", [row.summary for row in rows], left=True), *numbers]
    notes = [_LEGEND, _sentence(stability.RULE)]
    plots = {"stability": partial(plot_stability, rows)}
    if any(row.place == "spectra" for row in rows):
        plots["stability-spectra"] = partial(plot_spectra, rows)
    write_results(output, "stability", columns, rows, settings, notes, plots)
    return "\n\n".join([aligned([name, *numbers]), _LEGEND, _sentence(stability.RULE)])


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
    name, *numbers = _selection_columns(rows)
    columns = [name, Column("selector", [row.selector for row in rows], left=True), *numbers]
    plots = {"selection": partial(plot_selection, rows)}
    write_results(output, "selection", columns, rows, settings, [note], plots)
    return f"{aligned([name, *numbers])}\n\n{note}"


def _stability_columns(rows: Sequence[StabilityRow]) -> list[Column]:
    return [
        Column("variant", [row.variant for row in rows], left=True),
        Column("first", [short(row.first_loss.mean) for row in rows]),
        Column("final loss", [with_range(row.final_loss, 1) for row in rows]),
        Column("largest", [short(row.largest_loss.mean) for row in rows]),
        Column("|g| backbone", [short(row.backbone_gradient_median.mean) for row in rows]),
        Column("p99", [short(row.backbone_gradient_p99.mean) for row in rows]),
        Column("|g| predictor", [short(row.predictor_gradient_median.mean) for row in rows]),
        Column("accuracy", [with_range(row.accuracy, 2) for row in rows]),
        Column("kept", ["/".join(short(stage.mean) for stage in row.kept) for row in rows]),
        Column("verdict", [row.verdict for row in rows], left=True),
    ]


def _selection_columns(rows: Sequence[SelectionRow]) -> list[Column]:
    return [
        Column("variant", [row.variant for row in rows], left=True),
        Column("kind", [row.kind for row in rows], left=True),
        Column("accuracy", [with_range(row.accuracy, 3) for row in rows]),
        Column("foreground recall", [with_range(row.foreground_recall, 3) for row in rows]),
        Column("|g| predictor", [short(row.predictor_gradient_median.mean) for row in rows]),
        Column("p99", [short(row.predictor_gradient_p99.mean) for row in rows]),
    ]


def _sentence(rule: str) -> str:
    return f"Verdicts. {rule}"
