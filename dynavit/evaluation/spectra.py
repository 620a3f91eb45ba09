"""What a model of several spectra is worth where some are missing."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import combinations

from dynavit.evaluation.variants import Variant
from dynavit.runs.open import Run
from dynavit.tables import Row
from dynavit.tasks import Evaluation, Task


def spectra_variants(run: Run) -> list[Variant]:
    """Return the run's model without each of its spectra, and with each alone; nothing where it sees one."""
    count, variants = run.model.num_spectra, []
    names = run.model.metadata.get("spectra") or [str(number) for number in range(count)]
    for left_out in sorted({1, count - 1}) if count > 1 else ():
        for absent in combinations(range(count), left_out):
            model = copy(run.model)
            model.absent = absent
            left = [name for number, name in enumerate(names) if number not in absent]
            variants.append(Variant("pruned", 1.0, model, about={"spectra": left}))
    return variants


def spectra_rows(
    variants: Sequence[Variant], evaluations: Sequence[Evaluation | None], whole: Evaluation, task: Task
) -> list[Row]:
    """Return what is left with each set of spectra, first of all with all of them.

    Args:
        variants: what :func:`spectra_variants` returned.
        evaluations: of each.
        whole: of the model with all spectra.
        task: that evaluated them.

    Returns:
        Rows with ``spectra``, their names; the metrics, the task's with its interval; and but for the first row
        ``delta_<metric>``, points against it, with its interval.
    """
    rows: list[Row] = [{"spectra": "all", **whole.metrics, **task.interval(whole.detail)}]
    for variant, found in zip(variants, evaluations, strict=True):
        assert found is not None
        change = found.metrics[task.metric] - whole.metrics[task.metric]
        row = {"spectra": variant.about["spectra"], **found.metrics, **task.interval(found.detail)}
        rows.append({**row, f"delta_{task.metric}": change, **task.difference(whole.detail, found.detail)})
    return rows
