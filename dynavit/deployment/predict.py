"""Outputs for images of one's own: labels, or embeddings and who looks like whom."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.files import replacing, write_text
from dynavit.metrics.retrieval import rank_gallery
from dynavit.runs.open import Run, list_images, read_images
from dynavit.tables import Row, write_csv


def label_images(run: Run, folder: str | Path, batch_size: int, report: Callable[[Sequence[str]], None]) -> list[Row]:
    """Return image, label and probability of every readable image in a folder."""
    run.require_classifier()
    rows = []
    for paths, images, problems in read_images(run, list_images(folder), batch_size):
        report(problems)
        if not paths:
            continue
        with torch.inference_mode():
            probabilities, labels = run.answer(images).float().softmax(dim=1).max(dim=1)
        for path, probability, label in zip(paths, probabilities.tolist(), labels.tolist(), strict=True):
            rows.append({"image": str(path), "label": run.class_names[label], "probability": round(probability, 4)})
    return rows


def embed_images(
    run: Run, folder: str | Path, batch_size: int, report: Callable[[Sequence[str]], None]
) -> tuple[list[str], Tensor]:
    """Return paths and embeddings ``(M, D)``, of length 1, of every readable image in a folder."""
    names: list[str] = []
    embeddings = []
    for paths, images, problems in read_images(run, list_images(folder), batch_size):
        report(problems)
        if paths:
            names += map(str, paths)
            with torch.inference_mode():
                embeddings.append(run.answer(images).float().cpu())
    return names, torch.cat(embeddings)


def nearest_images(names: Sequence[str], embeddings: Tensor) -> list[Row]:
    """Return for every image the one that looks most like it, and the cosine of their embeddings.

    Raises:
        InputError: fewer than two images.
    """
    if len(names) < 2:
        raise InputError("there is one image only, so nothing to compare it with: give a folder with several.")
    unknown = torch.zeros(len(names), dtype=torch.int64)
    itself = torch.arange(len(names))
    nearest = rank_gallery(embeddings, embeddings, unknown, unknown, metric="cosine", exclude=itself, top=1)[:, 0]
    similarity = (embeddings * embeddings[nearest]).sum(dim=1).tolist()
    return [
        {"image": name, "nearest": names[other], "similarity": round(value, 4)}
        for name, other, value in zip(names, nearest.tolist(), similarity, strict=True)
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON where the file's name ends in ``.json``, or else as CSV.

    Raises:
        InputError: the file cannot be written.
    """
    if path.suffix.lower() == ".json":
        write_text(path, json.dumps(rows, indent=2) + "\n")
    else:
        write_csv(rows, path)


def write_embeddings(path: Path, names: Sequence[str], embeddings: Tensor) -> None:
    """Write ``.npz`` with arrays ``images`` ``(M,)`` and ``embeddings`` ``(M, D)``.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, images=np.array(names), embeddings=embeddings.numpy())
