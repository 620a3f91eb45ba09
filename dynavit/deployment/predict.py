"""Outputs for images of one's own: labels, or embeddings and who looks like whom.

Shapes: M images, G images of a gallery, C classes, D width of features.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from dynavit.deployment.token_file import TokenFile
from dynavit.errors import InputError
from dynavit.files import replacing, write_text
from dynavit.metrics.retrieval import rank_gallery
from dynavit.runs.images import read_images
from dynavit.runs.open import Run
from dynavit.tables import Row, write_csv

Batches = Iterator[tuple[list[Path], Tensor]]
"""Paths and images ``(B, channels, H, W)``."""
_ALONE = "there is one image only, so nothing to compare it with: give --images, or --gallery, a folder with several."
Embedded = tuple[list[str], Tensor]
"""Paths of M images and their embeddings ``(M, D)``, of length 1."""


def readable(
    run: Run, paths: Sequence[Path], batch_size: int, workers: int, report: Callable[[Sequence[str]], None]
) -> Batches:
    """Yield the images that can be read, in batches; the others are reported."""
    for good, images, problems in read_images(run, paths, batch_size, workers):
        report(problems)
        if good:
            yield good, images


def label_images(run: Run, batches: Batches, top: int = 1, tokens: TokenFile | None = None) -> list[Row]:
    """Return for every image its most likely classes and their probabilities, the first one first.

    Raises:
        InputError: the model has no classifier, or fewer classes than ``top``.
    """
    run.require_classifier()
    if top > len(run.class_names):
        raise InputError(f"--top={top}: the model knows {len(run.class_names)} classes; give as many or fewer.")
    rows = []
    for paths, images in batches:
        probabilities, labels = _answer(run, paths, images, tokens).softmax(dim=1).topk(top, dim=1)
        for path, numbers, values in zip(paths, labels.tolist(), probabilities.tolist(), strict=True):
            names = [run.class_names[number] for number in numbers]
            rows.append({"image": str(path), **_ranked("label", names, "probability", values)})
    return rows


def embed_images(run: Run, batches: Batches, tokens: TokenFile | None = None) -> Embedded:
    """Return the embedding of every image."""
    names: list[str] = []
    embeddings = []
    for paths, images in batches:
        names += map(str, paths)
        embeddings.append(_answer(run, paths, images, tokens).cpu())
    return names, torch.cat(embeddings)


def describe_images(run: Run, batches: Batches) -> tuple[list[str], Tensor, Tensor]:
    """Return paths, features ``(M, D)`` and probabilities ``(M, C)`` of every image, all fp32.

    Raises:
        InputError: the model has no classifier.
    """
    run.require_classifier()
    names: list[str] = []
    features, probabilities = [], []
    for paths, images in batches:
        names += map(str, paths)
        with torch.inference_mode():
            pooled, logits = run.features_and_logits(images)
        features.append(pooled.float().cpu())
        probabilities.append(logits.float().softmax(dim=1).cpu())
    return names, torch.cat(features), torch.cat(probabilities)


def own_places(names: Iterable[str | Path], gallery: Iterable[str | Path]) -> list[int]:
    """Return for every image which one of the gallery is the same file, or -1."""
    places = {os.path.realpath(name): place for place, name in enumerate(gallery)}
    return [places.get(os.path.realpath(name), -1) for name in names]


def check_top(top: int, paths: Sequence[Path], gallery: Sequence[Path]) -> None:
    """Refuse to find more images than there are for any of those that are asked about, beside itself.

    Raises:
        InputError: there are fewer, or none.
    """
    others = len(gallery) - (min(own_places(paths, gallery)) >= 0)
    if not others:
        raise InputError(_ALONE)
    if top > others:
        raise InputError(f"--top={top}: there are {others} other images to find; give as many or fewer.")


def nearest_images(queries: Embedded, gallery: Embedded, top: int = 1) -> list[Row]:
    """Return for every image those of a gallery most like it, and the cosines of their embeddings.

    An image does not find itself. Where fewer than ``top`` others can be read, the rest of the row is None.

    Raises:
        InputError: the gallery holds nothing but one of the images.
    """
    (names, embeddings), (others, features) = queries, gallery
    own = own_places(names, others)
    if len(others) == 1 and min(own) == 0:
        raise InputError(_ALONE)
    unknown = [torch.zeros(len(found), dtype=torch.int64) for found in (names, others)]
    nearest = rank_gallery(embeddings, features, *unknown, metric="cosine", exclude=own, top=top)
    nearest = pad(nearest, (0, top - nearest.shape[1]), value=-1)
    similarity = torch.stack([(embeddings * features[column]).sum(dim=1) for column in nearest.T], dim=1)
    rows = []
    for name, places, cosines in zip(names, nearest.tolist(), similarity.tolist(), strict=True):
        found = [others[place] if place >= 0 else None for place in places]
        values = [value if place >= 0 else None for place, value in zip(places, cosines, strict=True)]
        rows.append({"image": name, **_ranked("nearest", found, "similarity", values)})
    return rows


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON where the file's name ends in ``.json``, or else as CSV.

    Raises:
        InputError: the file cannot be written.
    """
    if path.suffix.lower() == ".json":
        write_text(path, json.dumps(rows, indent=2) + "\n")
    else:
        write_csv(rows, path)


def write_arrays(path: Path, arrays: Mapping[str, Sequence[str] | Tensor]) -> None:
    """Write ``.npz`` with arrays of text and numbers.

    Raises:
        InputError: the file cannot be written.
    """
    plain: dict[str, Any] = {name: np.asarray(values) for name, values in arrays.items()}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **plain)


def _answer(run: Run, paths: Sequence[Path], images: Tensor, tokens: TokenFile | None) -> Tensor:
    """Return what the model says, in fp32; what became of the tokens is written down if asked."""
    with torch.inference_mode():
        answer = run.answer(images, return_trace=tokens is not None)
        if tokens is not None:
            answer, trace = answer
            tokens.add(paths, images, trace)
        return answer.float()


def _ranked(what: str, found: Sequence[Any], number: str, values: Sequence[float | None]) -> Row:
    """Return columns of the best, of the second (``what_2`` and ``number_2``) and so on."""
    row: Row = {}
    for place, (one, value) in enumerate(zip(found, values, strict=True), start=1):
        ending = f"_{place}" if place > 1 else ""
        row |= {what + ending: one, number + ending: None if value is None else round(value, 4)}
    return row
