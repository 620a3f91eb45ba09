"""What an evaluation leaves behind: tables, figures and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dynavit.cost.machine import machine
from dynavit.evaluation.drawings import draw_kept_tokens
from dynavit.files import write_together
from dynavit.report.classes import Classes, class_sections
from dynavit.report.figures import png
from dynavit.report.histogram import plot_token_counts
from dynavit.report.html import Section, render_report
from dynavit.report.pareto import plot_cost, plot_methods, plot_pareto, plot_speed
from dynavit.report.rows import batch_sizes, flat, is_adaptive, metric_name
from dynavit.report.table import markdown, markdown_table, spectra_columns
from dynavit.runs.open import Run
from dynavit.selectors.registry import selector_config
from dynavit.tables import Row, csv_text
from dynavit.version import __version__


def write_evaluation(
    run: Run,
    rows: Sequence[Row],
    output: Path,
    sample: Tensor,
    metric: str,
    ranked: Image.Image | None,
    spectra: Sequence[Row] = (),
    classes: Classes | None = None,
    captions: Sequence[str] | None = None,
) -> None:
    """Write the results of evaluating a run.

    Args:
        run: that was evaluated.
        rows: see :mod:`dynavit.report.rows`.
        output: folder for ``evaluation.json``, ``evaluation.csv``, ``pareto.png``, ``kept_tokens.png``,
            ``token_counts.png``, ``ranked_lists.png``, ``classes.csv``, ``confusions.csv`` and ``report.html``, as far
            as there is something to write.
        sample: a few images ``(B, 3, H, W)`` on which to show the tokens.
        metric: of the rows, to be shown.
        ranked: ranked lists of a re-identification model.
        spectra: of a model of several, what is left where some are missing, for ``spectra.json`` and ``spectra.md``.
        classes: of a classifier, what it gets right of each class.
        captions: of the sample, one an image.

    Raises:
        InputError: a file cannot be written; then all that stood there before stays.
    """
    files = _tables("evaluation", rows, rows)
    files["pareto.png"] = png(partial(plot_pareto, rows, metric=metric))
    charts = {f"{metric_name(metric)} over multiply-accumulates": png(partial(plot_cost, rows, metric=metric))}
    if batch_sizes(rows):
        charts[f"{metric_name(metric)} over measured time"] = png(partial(plot_speed, rows, metric=metric))
    pictures: dict[str, Any] = {}
    if run.model.stages and any(ratio < 1 for ratio in run.model.keep_ratios):
        picture = draw_kept_tokens(run, sample, captions)
        files["kept_tokens.png"] = png(partial(picture.save, format="PNG"))
        caption = "Tokens kept after each stage" if run.model.scorers else "Patches merged into one token"
        pictures[caption] = picture
    if any(is_adaptive(row) for row in rows):
        files["token_counts.png"] = png(partial(plot_token_counts, rows))
        pictures["How many tokens images keep, where each keeps as many as it needs"] = files["token_counts.png"]
    if ranked is not None:
        files["ranked_lists.png"] = png(partial(ranked.save, format="PNG"))
        pictures["What is found first for some queries; dropped patches are faded"] = ranked
    if spectra:
        files["spectra.json"] = json.dumps(list(spectra), indent=2) + "\n"
        files["spectra.md"] = markdown(spectra_columns(spectra, metric))
    sections = [Section("Accuracy against cost", images=charts)]
    if classes is not None:
        sections += class_sections(classes)
        files["classes.csv"] = csv_text(classes.rows)
        files["confusions.csv"] = csv_text(classes.confusion_rows())
    if pictures:
        sections.append(Section("Pictures", images=pictures))
    assert run.config is not None
    settings = {
        "folder": str(run.path),
        "architecture": run.model.architecture,
        "stages": list(run.model.stages),
        "selector": selector_config(run.model.selector)["name"],
        **({"scorer": run.model.scorers[0].name} if run.model.scorers else {}),
        "reducer": run.model.reducer.name,
        "data": run.config.data.name,
        **({"data.root": run.config.data.root} if run.config.data.root else {}),
        "images": next((row["images"] for row in rows if "images" in row), 0),
        "seed": run.config.seed,
        "machine": machine(run.device),
        "dynavit": __version__,
        "evaluated": datetime.now().astimezone().isoformat(" ", "minutes"),
    }
    title = f"{run.config.name}: accuracy against cost"
    files["report.html"] = render_report(title, rows, sections, settings, metric)
    write_together(output, files)


def write_methods(rows: Sequence[Row], about: Mapping[str, str], output: Path) -> list[str]:
    """Write ``methods.json``, ``methods.csv``, ``methods.md`` and ``methods.png``; returns their names.

    Args:
        rows: of a comparison of methods; see :mod:`dynavit.report.rows`.
        about: what was compared on what, one line each.
        output: folder, made if it is not there.

    Raises:
        InputError: no row, or a file cannot be written; then all that stood there before stays.
    """
    lines = [f"- {name.replace('_', ' ')}: {value}\n" for name, value in about.items()]
    files = _tables("methods", rows, {**about, "rows": list(rows)})
    files["methods.md"] = f"{markdown_table(rows)}\n{''.join(lines)}"
    files["methods.png"] = png(partial(plot_methods, rows))
    write_together(output, files)
    return list(files)


def _tables(name: str, rows: Sequence[Row], everything: Any) -> dict[str, str | bytes]:
    return {
        f"{name}.json": json.dumps(everything, indent=2) + "\n",
        f"{name}.csv": csv_text([flat(row) for row in rows]),
    }
