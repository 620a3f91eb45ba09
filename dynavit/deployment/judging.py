"""Whether a file does its work as well as the model it was written of, on the data of its run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from dynavit.data.reid import ReidData
from dynavit.deployment.inputs import repeated
from dynavit.errors import InputError
from dynavit.runs.loading import make_loader, random_subset
from dynavit.runs.open import Run
from dynavit.tasks.reid import Searchable

Answering = Callable[[Tensor], Tensor]
"""From images ``(B, 3, H, W)`` to an answer ``(B, C)``."""

_BATCH = 32
_JUDGED = 1000  # images
_POINTS = 0.5  # that a file with fewer bits may lose
_QUERIES, _SEARCHED = 100, 1000


@dataclass(frozen=True)
class Judgement:
    """What a file and its model are worth on the same images.

    Attributes:
        original: metrics in percent by name, of the model.
        exported: of the file.
        on: on what, in words.
    """

    original: dict[str, float]
    exported: dict[str, float]
    on: str

    def text(self) -> str:
        """Say it in a sentence."""
        return f"On {self.on}: {_in_words(self.exported)}; the original: {_in_words(self.original)}."


Judge = Callable[[Answering, int | None], Judgement]
"""Given a file and the one batch size that it takes, or None, raises :class:`~dynavit.InputError` if it is too bad."""


def create_judge(run: Run, data: Any) -> Judge:
    """Return what judges files of a run."""
    return _Search(run, data) if isinstance(data, ReidData) else _Accuracy(run, data)


class _Accuracy:
    """Judges classifiers on validation images, the same ones each time."""

    def __init__(self, run: Run, data: Any) -> None:
        stream = isinstance(data.validation, IterableDataset)
        self._dataset = data.validation if stream else random_subset(data.validation, _JUDGED)
        self._original, _ = self._measure(run.answer)

    def __call__(self, exported: Answering, batch: int | None) -> Judgement:
        original, (found, images) = self._original, self._measure(exported, batch)
        if original - found > _POINTS:
            raise InputError(
                f"the exported model has a top-1 of {found:.2f} % on {images} validation images where the original has "
                f"{original:.2f} %, and may lose {_POINTS:g} points. Nothing was written: choose another precision."
            )
        return Judgement({"top1": original}, {"top1": found}, f"{images:,} validation images")

    @torch.inference_mode()
    def _measure(self, answer: Answering, batch: int | None = None) -> tuple[float, int]:
        right = count = 0
        for images, labels in self._batches():
            right += int((_answers(answer, images, batch).argmax(dim=1) == labels).sum())
            count += len(images)
        return 100 * right / max(1, count), count

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = (batch for batch in make_loader(self._dataset, _BATCH, workers=0) if batch is not None)
        for images, labels, _ in islice(batches, -(-_JUDGED // _BATCH)):
            yield images, labels


class _Search:
    """Judges embeddings by a search in part of the data: some queries, and images of their identities."""

    def __init__(self, run: Run, data: ReidData) -> None:
        queries = [index for index in range(data.num_query) if data.has_match[index]][:_QUERIES]
        wanted = set(data.identities[queries].tolist())
        found = range(data.num_query, len(data.identities))
        gallery = [index for index in found if int(data.identities[index]) in wanted][:_SEARCHED]
        samples = [(index, data.validation[index]) for index in [*queries, *gallery]]
        readable = [(index, sample[0]) for index, sample in samples if sample is not None]
        self._data = data
        self._indices = torch.tensor([index for index, _ in readable])
        self._images = torch.stack([image for _, image in readable])
        self._original = self._measure(run.answer)
        self._queries = len(queries)
        cameras = ", told no cameras" if run.model.side is not None else ""
        cameras += ", of which missing spectra count as black" if data.present is not None else ""
        self._on = (
            f"{len(queries)} queries and {len(gallery)} gallery images{cameras} (a part of the data: at most "
            f"{_QUERIES} queries and {_SEARCHED:,} images of their identities, so it is not what evaluate finds on all)"
        )

    def __call__(self, exported: Answering, batch: int | None) -> Judgement:
        judgement = Judgement(self._original, self._measure(exported, batch), self._on)
        # one query may find another image first, and on few of them that is much
        loss = {"map": max(_POINTS, 50 / self._queries)}
        if any(
            value - judgement.exported[name] > loss.get(name, 0.05 + 100 / self._queries)
            for name, value in self._original.items()
        ):
            raise InputError(
                f"searching with the exported model gives {_in_words(judgement.exported)}, with the original "
                f"{_in_words(judgement.original)}. Nothing was written."
            )
        return judgement

    @torch.inference_mode()
    def _measure(self, answer: Answering, batch: int | None = None) -> dict[str, float]:
        embeddings = _answers(answer, self._images, batch)
        return Searchable(embeddings, self._indices, self._data).search().summary()


def _in_words(metrics: dict[str, float]) -> str:
    if "map" in metrics:
        return f"mAP {metrics['map']:.2f} %, rank-1 {metrics['rank1']:.2f} %"
    return f"top-1 {metrics['top1']:.2f} %"


def _answers(answer: Answering, images: Tensor, batch: int | None) -> Tensor:
    """Answer to images in batches; where these have one size alone, the first images of the last fill it."""
    size = batch or _BATCH
    whole = (some if batch is None else repeated(some, size) for some in images.split(size))
    return torch.cat([answer(some) for some in whole])[: len(images)]
