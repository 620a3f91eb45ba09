"""Tables of what was run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynavit.metrics import paired_bootstrap
from dynavit.report.table import Column, markdown
from studies.default_method.experiment import DENSE, Cell, read_rows


@dataclass(frozen=True)
class Line:
    """A candidate, trained at one budget and evaluated at one, over its seeds.

    Attributes:
        name: of the candidate; dense ones with their size.
        trained, evaluated: budgets.
        gmacs: of one image.
        top1, cross_entropy: one a seed.
        hits, losses: ``(E,)`` mean over seeds, in percent and nats, one an image.
    """

    name: str
    trained: float
    evaluated: float
    gmacs: float
    top1: list[float]
    cross_entropy: list[float]
    hits: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def mean_top1(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.top1))


def read_lines(folder: Path, seeds: Sequence[int] | None = None) -> list[Line]:
    """Return the lines of a part; with ``seeds`` only those that all of these were run with."""
    groups: dict[tuple[str, float, str], list[tuple[Cell, dict[str, float]]]] = defaultdict(list)
    for row in read_rows(folder):
        cell = Cell(**row["cell"])
        if seeds is None or cell.seed in seeds:
            name = f"{cell.name} at {cell.size} px" if cell.name == DENSE else cell.name
            for evaluated, result in row["results"].items():
                groups[name, cell.budget, evaluated].append((cell, result))
    lines = []
    for (name, trained, evaluated), found in groups.items():
        if seeds is not None and len(found) < len(seeds):
            continue
        files = [np.load(folder / "answers" / f"{cell.file}.npz") for cell, _ in found]
        lines.append(
            Line(
                name,
                trained,
                float(evaluated),
                found[0][1]["gmacs"],
                [result["top1"] for _, result in found],
                [result["cross_entropy"] for _, result in found],
                np.mean([100.0 * file[f"hits-{evaluated}"] for file in files], axis=0),
                np.mean([file[f"loss-{evaluated}"].astype(np.float64) for file in files], axis=0),
            )
        )
    return lines


def table(lines: Iterable[Line]) -> str:
    """Return Markdown: the best first, and how far each is behind it, with a 95 % interval over images."""
    ranked = sorted(lines, key=lambda line: -line.mean_top1)
    best = next(line for line in ranked if not line.name.startswith(DENSE))
    images = np.arange(len(best.hits))
    behind = [paired_bootstrap(best.hits, line.hits, groups=images, samples=2000) for line in ranked]
    return markdown(
        [
            Column("method", [line.name for line in ranked], left=True),
            Column("GMACs", [f"{line.gmacs:.4f}" for line in ranked]),
            Column("top-1", [f"{line.mean_top1:.2f}" for line in ranked]),
            Column("seeds", [f"{min(line.top1):.2f} to {max(line.top1):.2f}" for line in ranked]),
            Column("cross-entropy", [f"{np.mean(line.cross_entropy):.3f}" for line in ranked]),
            Column("to the best", [f"{change:+.2f}" for change, _, _ in behind]),
            Column("95 % interval", [f"{low:+.1f} to {high:+.1f}" for _, low, high in behind]),
        ]
    )


def tables(folder: Path, seeds: Sequence[int]) -> str:
    """Return a table for each budget trained at and evaluated at; the dense rows stand in each."""
    lines = read_lines(folder, seeds)
    dense = [line for line in lines if line.name.startswith(DENSE)]
    parts = []
    for trained, evaluated in sorted({(line.trained, line.evaluated) for line in lines} - {(1.0, 1.0)}, reverse=True):
        some = [line for line in lines if (line.trained, line.evaluated) == (trained, evaluated)]
        parts.append(f"Trained at {trained:g}, evaluated at {evaluated:g}:\n\n{table([*some, *dense])}")
    return "\n\n".join(parts)
