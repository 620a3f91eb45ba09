"""Whether an exported model answers as the original does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.models import PrunedViT, Trace


@dataclass(frozen=True)
class Verification:
    """What was compared.

    Attributes:
        max_difference: largest absolute difference of any output value.
        scale: standard deviation of the original's outputs, to judge it by.
        images: number of images compared.
        batch_sizes: at which.
        left_out: number of images not compared, because two tokens score alike at the edge of the choice.
    """

    max_difference: float
    scale: float
    images: int
    batch_sizes: tuple[int, ...]
    left_out: int = 0


def clear_choices(model: PrunedViT, trace: Trace, units: int = 32) -> Tensor:
    """Tell for which images ``(B,)`` the last token kept and the first one dropped differ clearly in score.

    Where they do not, rounding alone decides, and another runtime may keep the other one.

    Args:
        model: in eval mode, gathering.
        trace: of its forward.
        units: least difference of the logits at every stage, in units in the last place of fp32.
    """
    selecting = [stage for stage, ratio in enumerate(model.keep_ratios) if ratio < 1]
    counts = model.stage_counts(trace.masks[0].shape[1]) if trace.masks else []
    clear = torch.ones(len(trace.scores[0]) if trace.scores else 0, dtype=torch.bool)
    for stage, scores in zip(selecting if model.selector.needs_scores else [], trace.scores, strict=False):
        k = counts[stage]
        if k < scores.shape[1]:
            best = scores.topk(k + 1, dim=1).values.cpu()
            clear &= best[:, k - 1] - best[:, k] > units * torch.finfo(torch.float32).eps * best[:, k].abs()
    return clear


@torch.inference_mode()
def verify(
    original: Callable[[Tensor], Tensor],
    exported: Callable[[Tensor], Tensor],
    images: Tensor,
    batch_sizes: Sequence[int] = (1, 2, 5),
    tolerance: float = 1e-3,
    classifies: bool = True,
    clear: Tensor | None = None,
) -> Verification:
    """Compare two models on the same images, at several batch sizes.

    Args:
        original: from ``(B, 3, H, W)`` to ``(B, C)``.
        exported: likewise.
        images: ``(M, 3, H, W)``, at least as many as the largest batch size; all are used.
        batch_sizes: an exporter that baked in one of them fails at the others.
        tolerance: largest difference allowed, in units of the outputs' standard deviation.
        classifies: the largest output names a class, and has to stay the largest.
        clear: ``(M,)`` bool, which images to compare; see :func:`clear_choices`. All if None.

    Raises:
        InputError: outputs differ by more, the most likely class differs, or there is nothing to compare.
    """
    expected = original(images)
    compare = torch.ones(len(images), dtype=torch.bool) if clear is None or len(clear) == 0 else clear
    if not compare.any():
        raise InputError(
            "on every image two tokens score alike at the edge of the choice, so there is nothing to compare by: train "
            "the predictors first, or check with other images."
        )
    scale = float(expected.std())
    worst = 0.0
    for size in batch_sizes:
        found = torch.cat([exported(batch) for batch in images.split(size) if len(batch) == size])
        found, compared = found[compare[: len(found)]], expected[: len(found)][compare[: len(found)]]
        worst = max(worst, float((found - compared).abs().max()))
        # two classes closer together than the tolerance may change places
        top = compared.topk(min(2, compared.shape[1]), dim=1).values
        clear = (top[:, 0] - top[:, -1]) > 2 * tolerance * scale
        wrong = int(((found.argmax(1) != compared.argmax(1)) & clear).sum()) if classifies else 0
        if worst > tolerance * scale or wrong:
            raise InputError(
                f"the exported model differs from the original at batch size {size}: by up to {worst:.2g} where "
                f"outputs have a standard deviation of {scale:.2g}; {wrong} of {len(found)} images change class. "
                f"Nothing was written. Please report this with the versions of torch, onnx and onnxruntime."
            )
    left_out = int((~compare).sum())
    return Verification(worst, scale, len(images) - left_out, tuple(batch_sizes), left_out)
