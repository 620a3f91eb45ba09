"""Running models over a data set, on any number of processes, each sample once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dynavit.errors import InputError
from dynavit.metrics.foreground import foreground_recall, patch_mask
from dynavit.models import PrunedViT, Trace
from dynavit.models.thresholds import kept_counts


@dataclass(frozen=True)
class Outputs:
    """What a model said of S samples, in the order of their indices.

    Attributes:
        indices: ``(S,)`` int64.
        labels: ``(S,)`` int64.
        answers: ``(S, ...)``.
        kept: ``(S, M N)`` bool, patches kept by the first stage that prunes, of each of M spectra where there are
            several; None if none does, or merges instead.
        expected: ``(S, stages that prune)`` fp32, expected fractions kept; None likewise.
        counts: ``(S, M, stages)`` int64, tokens kept by each stage, where thresholds decide how many; else None.
    """

    indices: Tensor
    labels: Tensor
    answers: Tensor
    kept: Tensor | None = None
    expected: Tensor | None = None
    counts: Tensor | None = None


@torch.no_grad()
def collect_outputs(
    models: Sequence[PrunedViT],
    loader: DataLoader[Any],
    accelerator: Accelerator,
    answer: Callable[[Tensor], Tensor],
    inputs: Callable[[PrunedViT, Tensor], dict[str, Tensor]] = lambda model, indices: {},
    title: str = "",
) -> list[Outputs]:
    """Run models over a prepared loader, which is gone through once, and gather what all processes found.

    Args:
        models: in eval mode.
        loader: yields images, labels and sample indices. Samples that appear on several processes count
            once.
        accelerator: gathers the processes' answers.
        answer: what to keep of a model's output ``(B, ...)``.
        inputs: from a model and sample indices ``(B,)`` to what else it is given.
        title: of the progress bar.

    Returns:
        The answers of each model.

    Raises:
        InputError: no sample can be read.
    """
    found: list[list[dict[str, Tensor]]] = [[] for _ in models]
    bar = tqdm(loader, desc=title, leave=False, disable=None if accelerator.is_main_process else True)
    for batch in bar:
        if batch is None:  # every image of it was skipped
            continue
        images, labels, indices = batch
        for model, parts in zip(models, found, strict=True):
            device = next(model.parameters()).device  # streams are not moved by the accelerator
            output, trace = model(images.to(device), return_trace=True, **inputs(model, indices))
            part = {"indices": indices, "labels": labels, "answers": answer(output), **_choices(model, trace)}
            parts.append({name: tensor.cpu() for name, tensor in part.items()})
    return [_gathered(parts) for parts in found]


def _choices(model: PrunedViT, trace: Trace) -> dict[str, Tensor]:
    part: dict[str, Tensor] = {}
    by_sample = (-1, model.num_spectra)
    if trace.choices:
        expected = torch.stack([choice.expected for choice in trace.choices], dim=1)
        first = next(stage for stage in trace.stages if stage.choice is not None)
        kept = first.kept.unflatten(0, by_sample).flatten(1)
        part |= {"kept": kept, "expected": expected.unflatten(0, by_sample).mean(dim=1)}
    if model.thresholds is not None:
        part["counts"] = kept_counts(trace).unflatten(0, by_sample)
    return part


def _gathered(found: list[dict[str, Tensor]]) -> Outputs:
    """Put together what all processes found with one model, each sample once."""
    own = {name: torch.cat([part[name] for part in found]) for name in (found[0] if found else ())}
    parts = [part for part in gather_object([own]) if part]
    if not parts:
        raise InputError("the validation split holds no image that can be read.")
    together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    # the first of each index: padding repeats samples on other processes
    order = together["indices"].argsort(stable=True)
    ordered = together["indices"][order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return Outputs(**{name: tensor[order[first]] for name, tensor in together.items()})


def selection_metrics(model: PrunedViT, answers: Outputs, foreground: Any = None) -> dict[str, float]:
    """Return what tells how well tokens were chosen.

    Args:
        model: that gave the answers.
        answers: of a data set.
        foreground: function from a sample index to its pixel mask ``(H, W)``, if the data has masks.

    Returns:
        ``foreground_recall``, the share of foreground patches that the first pruning stage keeps, if there are masks;
        for selectors that a keep-ratio loss trains ``expected_minus_ratio``, the mean keep probability of the first
        stage that prunes minus the share of patches that it keeps, unless thresholds decide. A model that merges
        chooses no tokens.
    """
    metrics: dict[str, float] = {}
    if answers.kept is None or answers.expected is None:
        return metrics
    if foreground is not None:
        masks = [patch_mask(foreground(index), model.adapter.grid_size) for index in answers.indices.tolist()]
        recall = foreground_recall(answers.kept, torch.from_numpy(np.tile(masks, model.num_spectra)))
        metrics["foreground_recall"] = float(recall.nanmean())
    if not model.selector.fixed_k and model.thresholds is None:
        # of the count, which the count rule makes of the ratio
        metrics["expected_minus_ratio"] = float(
            (answers.expected[:, 0].double() - answers.kept.double().mean(1)).mean()
        )
    return metrics
