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


Judge = Callable[[Answering], Judgement]
"""Raises :class:`~dynavit.InputError` if a file is not as good as its model."""


def create_judge(run: Run, data: Any, batch: int | None) -> Judge:
    """Return what judges files of a run that take batches of one size, or of any."""
    return _Search(run, data, batch) if isinstance(data, ReidData) else _Accuracy(run, data, batch)


class _Accuracy:
    """Judges classifiers on validation images, the same ones each time."""

    def __init__(self, run: Run, data: Any, batch: int | None) -> None:
        stream = isinstance(data.validation, IterableDataset)
        self._dataset = data.validation if stream else random_subset(data.validation, _JUDGED)
        self._size = batch or _BATCH
        self._original = self._measure(run.answer)

    def __call__(self, exported: Answering) -> Judgement:
        original, (found, images) = self._original[0], self._measure(exported)
        if original - found > _POINTS:
            raise InputError(
                f"the exported model has a top-1 of {found:.2f} % on {images} validation images where the original has "
                f"{original:.2f} %, and may lose {_POINTS:g} points. Nothing was written: choose another precision."
            )
        return Judgement({"top1": original}, {"top1": found}, f"{images:,} validation images")

    @torch.inference_mode()
    def _measure(self, answer: Answering) -> tuple[float, int]:
        right = count = 0
        for images, labels in self._batches():
            right += int((_filled(answer, images, self._size).argmax(dim=1) == labels).sum())
            count += len(images)
        return 100 * right / max(1, count), count

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = (batch for batch in make_loader(self._dataset, self._size, workers=0) if batch is not None)
        for images, labels, _ in islice(batches, -(-_JUDGED // self._size)):
            yield images, labels


class _Search:
    """Judges embeddings by a search in part of the data: some queries, and images of their identities."""

    def __init__(self, run: Run, data: ReidData, batch: int | None) -> None:
        queries = [index for index in range(data.num_query) if data.has_match[index]][:_QUERIES]
        wanted = set(data.identities[queries].tolist())
        found = range(data.num_query, len(data.identities))
        gallery = [index for index in found if int(data.identities[index]) in wanted][:_SEARCHED]
        samples = [(index, data.validation[index]) for index in [*queries, *gallery]]
        readable = [(index, sample[0]) for index, sample in samples if sample is not None]
        self._data, self._size = data, batch or _BATCH
        self._indices = torch.tensor([index for index, _ in readable])
        self._images = torch.stack([image for _, image in readable])
        self._original = self._measure(run.answer)
        self._queries = len(queries)
        cameras = ", told no cameras" if run.model.side is not None else ""
        self._on = (
            f"{len(queries)} queries and {len(gallery)} gallery images{cameras} (a part of the data: at most "
            f"{_QUERIES} queries and {_SEARCHED:,} images of their identities, so it is not what evaluate finds on all)"
        )

    def __call__(self, exported: Answering) -> Judgement:
        judgement = Judgement(self._original, self._measure(exported), self._on)
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
    def _measure(self, answer: Answering) -> dict[str, float]:
        embeddings = torch.cat([_filled(answer, batch, self._size) for batch in self._images.split(self._size)])
        return Searchable(embeddings, self._indices, self._data).search().summary()


def _in_words(metrics: dict[str, float]) -> str:
    if "map" in metrics:
        return f"mAP {metrics['map']:.2f} %, rank-1 {metrics['rank1']:.2f} %"
    return f"top-1 {metrics['top1']:.2f} %"


def _filled(answer: Answering, images: Tensor, size: int) -> Tensor:
    """Answer to a batch that may be too small for a file of one batch size: its first images fill it."""
    return answer(repeated(images, size))[: len(images)]
