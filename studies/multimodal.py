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
_TEST = {"data.options": {"test_identities": 96}, "data.batch_size": 80}
_FREE = {"name": "topk", "gradient": "none"}
_GUIDES = len(SPECTRA) - 1


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
    "unguided": {"model.scorer": "light"},
    "guides of other samples": {"model.scorer": {"name": "shuffled_guides", "guides": _GUIDES}},
    "random": {"model.scorer": "random", "model.selector": _FREE},
}
DENSE = "dense"
BASE = "unguided"


def compare_guides(seeds: Sequence[int], folder: Path, workers: int | None = None, names: Any = None) -> str:
    """Train what ``folder`` does not hold yet, and return a table.

    Args:
        seeds: of everything drawn.
        folder: gets a folder for each training, and for the dense model of each seed.
        workers: processes; one a CPU core if None.
        names: of :data:`VARIANTS`; all if None.
    """
    dense = run_all(partial(train, folder), [DENSE], seeds, workers)  # else each would begin with one of its own
    names = list(VARIANTS if names is None else names)
    return table([DENSE, *names], dense | run_all(partial(train, folder), names, seeds, workers))


def train(folder: Path, name: str, seed: int) -> dict[str, Judged]:
    """Train, or take what was trained, and judge it with all spectra and without each of them.

    Args:
        folder: as for :func:`compare_guides`.
        name: of :data:`VARIANTS`, or :data:`DENSE`, the model that those of a seed start from.
        seed: of everything drawn.

    Returns:
        What it gets right with ``all`` spectra, and by the name of the one that is missing.
    """
    register_scorer(ShuffledGuides)  # in this process; importing the study adds nothing to the library
    path = folder / f"{name.replace(' ', '_')}-{seed}"
    answers = path / "answers.npz"
    if not answers.exists():
        start = {"model.checkpoint": str(folder / f"{DENSE}-{seed}"), **VARIANTS.get(name, {})}
        changed = {"model.stages": []} if name == DENSE else start
        dynavit.train(_CONFIG, {"seed": seed, "output_dir": str(path), **changed}, resume=True)
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

    def compared(name: str, first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[str, str]:
        if name == BASE:
            return "-", "-"
        change, low, high = paired_bootstrap(first, second, groups=judged[name][0]["all"].groups, samples=2000)
        return f"{change:+.2f}", f"{low:+.2f} to {high:+.2f}"

    lines = []
    for name in names:
        each = [float(run["all"].values.mean()) for run in judged[name]]
        lost, usual = (mean(one, "all") - mean(one, *SPECTRA) for one in (name, BASE))
        lines.append(
            [
                name,
                f"{np.mean(each):.2f} [{min(each):.2f}, {max(each):.2f}]",
                *compared(name, mean(BASE, "all"), mean(name, "all")),
                *(f"{mean(name, spectrum).mean():.2f}" for spectrum in SPECTRA),
                f"{lost.mean():.2f}",
                *compared(name, lost, usual),
            ]
        )
    titles = ["scores", "mAP", f"to {BASE}", "95 % interval", *(f"without {spectrum}" for spectrum in SPECTRA)]
    titles += ["lost without one", "less lost", "95 % interval"]
    columns = zip(titles, zip(*lines, strict=True), strict=True)
    return markdown([Column(title, list(cells), left=title == "scores") for title, cells in columns])
