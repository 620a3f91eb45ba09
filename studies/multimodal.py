"""Do the other spectra of a sample help to choose its tokens? On the made-up people, trained alike but for the scorer.

Runs are folders of the library's own trainings, as in :mod:`studies.training_by_removal`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import dynavit
from dynavit.data.quickstart_spectra import SPECTRA
from dynavit.metrics import paired_bootstrap
from dynavit.report.table import Column, markdown
from dynavit.scorers import GuidedScorer, StageView, register_scorer
from studies.runner import run_all
from studies.training_by_removal import Judged, judge

_CONFIG = "quickstart/multimodal"
_TEST = {"data.options": {"test_identities": 160}, "data.batch_size": 80}
_FREE = {"name": "topk", "gradient": "none"}
_GUIDES = len(SPECTRA) - 1


@register_scorer
class ShuffledGuides(GuidedScorer):
    """Guided by the spectra of another sample, half a batch away: what guidance is worth that tells nothing."""

    name = "shuffled_guides"

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        assert view is not None
        assert view.guide is not None
        samples = len(view.guide) // (self.guides + 1)
        return super().forward(tokens, mask, replace(view, guide=view.guide.roll(samples // 2 * (self.guides + 1), 0)))


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "guided by the other spectra": {},
    "guided by its own features": {"model.scorer": {"name": "guided", "guides": 0}},
    "unguided": {"model.scorer": "light"},
    "guides of other samples": {"model.scorer": {"name": "shuffled_guides", "guides": _GUIDES}},
    "random": {"model.scorer": "random", "model.selector": _FREE},
}
BASE = "unguided"


def compare_guides(seeds: Sequence[int], folder: Path, workers: int | None = None, names: Any = None) -> str:
    """Train what ``folder`` does not hold yet, and return a table.

    Args:
        seeds: of everything drawn.
        folder: gets a folder for each training, and for the dense model of each seed.
        workers: processes; one a CPU core if None.
        names: of :data:`VARIANTS`; all if None.
    """
    run_all(partial(dense_start, folder), ["dense"], seeds, workers)  # else each would begin with one of its own
    names = list(VARIANTS if names is None else names)
    return table(names, run_all(partial(train, folder), names, seeds, workers))


def dense_start(folder: Path, name: str, seed: int) -> None:
    """Fine-tune the dense model that all variants of a seed start from, if it is not there."""
    path = folder / f"{name}-{seed}"
    if not (path / "answers.npz").exists():
        dynavit.train(_CONFIG, {"model.stages": [], "seed": seed, "output_dir": str(path)}, resume=True)
        np.savez_compressed(path / "answers.npz", values=judge(path, _TEST).values)


def train(folder: Path, name: str, seed: int) -> dict[str, Judged]:
    """Train, or take what was trained, and judge it with all spectra and without each of them.

    Args:
        folder: as for :func:`compare_guides`.
        name: of :data:`VARIANTS`.
        seed: of everything drawn.

    Returns:
        What it gets right with ``all`` spectra, and by the name of the one that is missing.
    """
    path = folder / f"{name.replace(' ', '_')}-{seed}"
    answers = path / "answers.npz"
    if not answers.exists():
        start = {"model.checkpoint": str(folder / f"dense-{seed}"), "seed": seed, "output_dir": str(path)}
        dynavit.train(_CONFIG, start | dict(VARIANTS[name]), resume=True)
        whole = judge(path, _TEST)
        values: dict[str, Any] = {"all": whole.values}
        values |= {missing: judge(path, _TEST, (number,)).values for number, missing in enumerate(SPECTRA)}
        np.savez_compressed(answers, groups=whole.groups, **values)
    saved = np.load(answers)
    return {key: Judged(saved[key], saved["groups"]) for key in ("all", *SPECTRA)}


def table(names: Sequence[str], judged: Mapping[str, Sequence[Mapping[str, Judged]]]) -> str:
    """Return Markdown: mAP of each variant with all spectra and with one missing, means and ranges over seeds.

    Differences are to the unguided variant, with a paired 95 % interval over queries, those of an identity together:
    what mAP is higher by, and what a missing spectrum costs less.
    """

    def mean(name: str, *keys: str) -> NDArray[np.float64]:
        return np.mean([run[key].values for run in judged[name] for key in keys], axis=0)

    groups = judged[names[0]][0]["all"].groups
    columns: dict[str, list[str]] = {"scores": list(names), "mAP": [], "to unguided": [], "95 % interval": []}
    columns |= {f"without {spectrum}": [] for spectrum in SPECTRA}
    columns |= {"lost without one": [], "less than unguided": [], "95 % interval ": []}
    for name in names:
        each = [float(run["all"].values.mean()) for run in judged[name]]
        columns["mAP"].append(f"{np.mean(each):.2f} [{min(each):.2f}, {max(each):.2f}]")
        for spectrum in SPECTRA:
            columns[f"without {spectrum}"].append(f"{mean(name, spectrum).mean():.2f}")
        lost = mean(name, "all") - mean(name, *SPECTRA)
        columns["lost without one"].append(f"{lost.mean():.2f}")
        if BASE in judged:
            compared = [(mean(BASE, "all"), mean(name, "all")), (lost, mean(BASE, "all") - mean(BASE, *SPECTRA))]
            for (first, second), keys in zip(
                compared, (("to unguided", "95 % interval"), ("less than unguided", "95 % interval ")), strict=True
            ):
                change, low, high = paired_bootstrap(first, second, groups=groups, samples=2000)
                columns[keys[0]].append("-" if name == BASE else f"{change:+.2f}")
                columns[keys[1]].append("-" if name == BASE else f"{low:+.2f} to {high:+.2f}")
    filled = {title: cells for title, cells in columns.items() if cells}
    return markdown([Column(title.strip(), cells, left=title == "scores") for title, cells in filled.items()])
