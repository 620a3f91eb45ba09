"""What pruning does to each class, which the accuracy over all of them hides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch
from scipy.stats import binomtest

from dynavit.metrics.accuracy import accuracy_interval
from dynavit.report.classes import Classes
from dynavit.report.rows import accuracy_base, first_ratio, is_dense, is_rival, row_name
from dynavit.tables import Row
from dynavit.tasks import Evaluation, Predicted


def compare_classes(
    rows: Sequence[Row], evaluations: Sequence[Evaluation | None], class_names: Sequence[str], deployed: int
) -> Classes | None:
    """Return what the pruned model gets right of each class, beside the dense one; None if nothing is classified.

    Args:
        rows: of an evaluation; see :mod:`dynavit.report.rows`.
        evaluations: of each.
        class_names: in the order of the labels.
        deployed: number of the row of the model as it was trained; where there is none, the row that prunes most is
            taken, or the dense model, by itself, where none prunes.
    """
    base = accuracy_base(rows, "top1")
    pruned = [n for n, row in enumerate(rows) if not (is_dense(row) or is_rival(row)) and first_ratio(row) < 1]
    chosen = deployed if deployed in pruned else min(pruned, key=lambda n: first_ratio(rows[n]), default=base)
    compared, found = evaluations[base], evaluations[chosen]
    if compared is None or compared.predicted is None or found is None or found.predicted is None:
        return None
    against = compared.predicted if chosen != base else None
    return Classes(
        class_names,
        class_rows(class_names, found.predicted, against),
        confusions(found.predicted),
        row_name(rows[chosen]),
        None if against is None else row_name(rows[base]),
    )


def class_rows(class_names: Sequence[str], model: Predicted, base: Predicted | None = None) -> list[Row]:
    """Return a row for each class that has images, those that lose most, or are told worst, first.

    A row has ``class``, ``images``, and in percent ``top1`` with its 95 % interval ``top1_low`` to ``top1_high``; with
    a model to compare with ``base_top1`` likewise, ``delta_top1`` in points, and ``p``: how often images that only one
    of the models gets right would be shared out at least as unevenly by chance (the exact sign test; McNemar 1947).

    Args:
        class_names: in the order of the labels.
        model: what it says.
        base: what another model says of the same images.
    """
    labels = model.labels.numpy()
    said = {"top1": model.answers.numpy(), **({} if base is None else {"base_top1": base.answers.numpy()})}
    rows: list[Row] = []
    for label in np.unique(labels).tolist():
        mine = labels == label
        row: Row = {"class": class_names[label], "images": int(mine.sum())}
        hits = {name: answers[mine] == label for name, answers in said.items()}
        for name, hit in hits.items():
            low, high = accuracy_interval(int(hit.sum()), len(hit))
            row |= {name: 100 * float(hit.mean()), f"{name}_low": low, f"{name}_high": high}
        if base is not None:
            gained, lost = (int((one & ~other).sum()) for one, other in permutations(hits.values()))
            row["delta_top1"] = row["top1"] - row["base_top1"]
            row["p"] = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
        rows.append(row)
    return sorted(rows, key=lambda row: (row.get("delta_top1", 0), row["top1"]))


def confusions(predicted: Predicted) -> dict[tuple[int, int], int]:
    """Return how many images of a class are taken for a class, by the two, where there are any."""
    pairs, counts = torch.stack([predicted.labels, predicted.answers], dim=1).unique(dim=0, return_counts=True)
    return {(true, said): count for (true, said), count in zip(pairs.tolist(), counts.tolist(), strict=True)}
