"""What became of the tokens of images, as JSON for other programs.

Shapes: B images, N original patches, n tokens beside the prefix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.files import replacing
from dynavit.models import Trace
from dynavit.models.trace import StageChoice
from dynavit.runs.open import Run


class TokenFile:
    """Receives images and their traces, and writes each down at once.

    Args:
        file: to write to.
        run: whose model made the traces.
    """

    def __init__(self, file: TextIO, run: Run) -> None:
        self._file, self._model = file, run.model
        self._between = "\n"

    def add(self, paths: Sequence[Path], images: Tensor, trace: Trace) -> None:
        """Write what became of the tokens of images ``(B, C, H, W)``."""
        height, width = images.shape[-2:]
        grid = self._model.adapter.grid_of((height, width))
        described = describe_tokens(trace, self._model.selector.needs_scores)
        for path, tokens in zip(paths, described, strict=True):
            entry = {"image": str(path), "grid": list(grid), **tokens}
            self._file.write(self._between + json.dumps(entry, allow_nan=False))
            self._between = ",\n"


@contextmanager
def token_file(path: str | Path, run: Run) -> Iterator[TokenFile]:
    """Write a file of tokens, whole or not at all: docs/images.md says what it holds.

    Raises:
        InputError: the model is dense, or the file cannot be written.
    """
    if not run.model.stages:
        raise InputError(f"--tokens {path}: {run.path} holds a dense model, which keeps every token; leave it out.")
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"blocks": {json.dumps(list(run.model.stages))}, "images": [')
        yield TokenFile(file, run)
        file.write("\n]}\n")


def describe_tokens(trace: Trace, scored: bool = True) -> list[dict[str, Any]]:
    """Return for each of B images what became of its patches, counted from 0, row by row.

    Args:
        trace: of a forward in eval.
        scored: whether the model chooses by scores at all.

    Returns:
        ``stages``, for each the patches ``kept`` and the ``scores`` of all patches, None for one that had no token of
        its own to be scored any more; None in place of the list where a stage scored nothing. And ``sources``: for
        each patch the one whose token holds it in the end, -1 for a token that stands at no place, None if it was
        dropped.
    """
    token = trace.source.clamp(min=0)
    sources = torch.where(trace.source >= 0, trace.positions.gather(1, token), -2).tolist()
    images: list[dict[str, Any]] = [
        {"stages": [], "sources": [None if patch < -1 else patch for patch in row]} for row in sources
    ]
    for stage in trace.stages:
        kept = stage.kept.cpu()
        scores = _scores(stage.choice, kept.shape[1]) if scored and stage.choice is not None else [None] * len(kept)
        for image, mask, values in zip(images, kept, scores, strict=True):
            image["stages"].append({"kept": mask.nonzero()[:, 0].tolist(), "scores": values})
    return images


def _scores(choice: StageChoice, num_patches: int) -> list[list[float | None]]:
    """Return the logits by original patch; their decimals tell fp32 numbers exactly, and no more."""
    known = choice.candidates & (choice.positions >= 0)
    place = torch.where(known, choice.positions, num_patches)
    empty = torch.full((len(place), num_patches + 1), torch.nan, device=place.device)
    scores = empty.scatter(1, place, choice.logits.float())[:, :num_patches].cpu().numpy()
    return [[float(str(value)) if math.isfinite(value) else None for value in row] for row in scores]
