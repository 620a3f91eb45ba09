"""Accuracy of a model on a data set, the same for any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from dynavit.errors import InputError
from dynavit.metrics.accuracy import topk_accuracy
from dynavit.metrics.foreground import foreground_recall, patch_mask
from dynavit.models import PrunedViT


@torch.no_grad()
def evaluate_accuracy(
    model: PrunedViT,
    loader: DataLoader[Any],
    accelerator: Accelerator,
    foreground: Any = None,
    title: str = "",
) -> dict[str, float]:
    """Return top-1 and top-5 in percent, and what tells how well tokens were chosen.

    Args:
        model: in eval mode.
        loader: prepared by the accelerator; yields images, labels and sample indices. Samples that
            appear on several processes count once.
        accelerator: gathers the processes' answers.
        foreground: function from a sample index to its pixel mask ``(H, W)``, if the data has masks:
            adds ``foreground_recall``, the share of foreground patches kept by the first stage.
        title: of the progress bar.

    Returns:
        The metrics; for selectors that a keep-ratio loss trains also ``expected_minus_ratio``, the mean
        keep probability of the first stage that prunes minus its keep ratio.
    """
    pruned = any(ratio < 1 for ratio in model.keep_ratios)
    found: dict[int, dict[str, Any]] = {}
    bar = tqdm(loader, desc=title, leave=False, disable=None if accelerator.is_main_process else True)
    for batch in bar:
        if batch is None:  # every image of it was skipped
            continue
        images, labels, indices = batch
        images = images.to(accelerator.device)  # streams are not moved by the accelerator
        with accelerator.autocast():
            logits, trace = model(images, return_trace=True) if pruned else (model(images), None)
        best = logits.float().topk(min(5, logits.shape[1])).indices.cpu()
        kept = trace.masks[0].cpu() if trace is not None and foreground is not None else None
        expected = torch.stack(trace.expected, 1).cpu() if trace is not None else None
        for row, index in enumerate(indices.tolist()):
            found[index] = {
                "best": best[row].tolist(),
                "label": int(labels[row]),
                "kept": kept[row].tolist() if kept is not None else None,
                "expected": expected[row].tolist() if expected is not None else None,
            }
    # a list of one dictionary a process; the union drops the samples that padding repeated
    everything = {index: row for part in gather_object([found]) for index, row in part.items()}
    rows = [everything[index] for index in sorted(everything)]
    if not rows:
        raise InputError("the validation split holds no image that can be read.")
    best = torch.tensor([row["best"] for row in rows])
    metrics = topk_accuracy(best, torch.tensor([row["label"] for row in rows]))
    if pruned and foreground is not None:
        masks = [patch_mask(foreground(index), model.adapter.grid_size) for index in sorted(everything)]
        recall = foreground_recall(torch.tensor([row["kept"] for row in rows]), torch.from_numpy(np.stack(masks)))
        metrics["foreground_recall"] = float(recall.nanmean())
    if pruned and model.selector.budget == "expected":
        mean = sum(row["expected"][0] for row in rows) / len(rows)
        metrics["expected_minus_ratio"] = mean - next(ratio for ratio in model.keep_ratios if ratio < 1)
    return metrics
