"""As many tokens as an image needs: thresholds on the scores, calibrated to a mean number of tokens.

Learned thresholds: LTMP, Bonnaerens & Dambre 2023, https://arxiv.org/abs/2307.10780, section 3.1. Here they are
quantiles of the scores on some images, so nothing has to be trained.

Shapes: B batch, S stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynavit.errors import InputError
from dynavit.models.pruned_vit import PrunedViT
from dynavit.models.trace import Trace
from dynavit.selectors.functional import hard_topk
from dynavit.text import listed

_TOLD = ("cameras", "views", "guide", "present")
_KEEP_ALL, _KEEP_NONE = float("-inf"), float("inf")


@torch.inference_mode()
def calibrate(
    model: PrunedViT,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    keep_ratios: float | Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Find and set thresholds at which the model keeps, on average over images, what its keep ratios ask for.

    Images with much to see then keep more tokens, others fewer. Stages are calibrated one after the other,
    each with the thresholds of those before it, so the images are run once for every stage.

    Args:
        model: scores tokens; set to eval mode, and given the thresholds.
        batches: the images to calibrate on: a list of batches, a DataLoader, or a function that returns them, the
            same images each time. A batch is what the model takes, or a tuple that begins with it: labels and so on
            are left alone, but of a pair the second may be a mapping with cameras, views, guide and present.
            Where there is none, cameras are unknown.
        keep_ratios: mean ratios, as :meth:`PrunedViT.set_keep_ratio` takes them; the model's own if None.

    Returns:
        One threshold a stage.

    Raises:
        InputError: no images, something else than batches, an iterator that can be gone through only once where the
            model has several stages, impossible ratios, or a model that chooses without logits. Whatever is raised,
            the model has the ratios and thresholds that it had.
    """
    again = _restartable(batches, len(model.stages))
    model.eval()
    before = model.keep_ratios, model.thresholds
    num_stages = len(model.stages)
    thresholds: list[float] = []
    try:
        if keep_ratios is not None:
            model.set_keep_ratio(keep_ratios)
        for _ in range(num_stages):
            model.set_thresholds([*thresholds, *[_KEEP_ALL] * (num_stages - len(thresholds))])
            thresholds.append(_calibrated(model, len(thresholds), again()))
        model.set_thresholds(thresholds)
    except BaseException:  # an interruption, too, leaves the model as it was
        model.keep_ratios, model.thresholds = before
        raise
    return tuple(thresholds)


def kept_counts(trace: Trace) -> Tensor:
    """Return how many tokens each stage kept of each image, ``(B, S)`` int64, those that a reducer made not included.

    Args:
        trace: of a forward in eval mode by a model with thresholds, which select at every stage.
    """
    return torch.stack([choice.num_kept for choice in trace.choices], dim=1)


def _calibrated(model: PrunedViT, stage: int, batches: Iterable[Any]) -> float:
    """Return the threshold of a stage; those before it have theirs, and it keeps everything as yet."""
    others, wanted = [], 0
    for batch in batches:
        if batch is None:  # all of its pictures were skipped as unreadable
            continue
        images, inputs = _parts(batch)
        _, trace = model(images, return_trace=True, **(_unknown(model, images) if inputs is None else inputs))
        patches = trace.choices[0].candidates.sum(dim=1)
        scores, candidates = trace.choices[stage].logits, trace.choices[stage].candidates
        if torch.isnan(scores).any():
            raise InputError(
                f"calibrate: the scores of stage {stage} are NaN for some image: images or weights hold NaN or "
                f"infinity, or numbers too large for {scores.dtype}."
            )
        best = hard_topk(scores, candidates, 1)  # kept whatever the threshold
        others.append(scores[candidates & ~best].cpu())
        wanted += int((model.stage_counts(patches)[stage] - 1).sum())
    if not others:
        again = ", when asked for once more for the next stage: return them anew at each call" if stage else ""
        raise InputError(f"calibrate: there are no images to calibrate on{again}.")
    return _threshold(torch.cat(others), wanted)


def _restartable(batches: Any, passes: int) -> Callable[[], Iterable[Any]]:
    """Return the function that begins the batches anew."""
    if callable(batches) and not isinstance(batches, nn.Module):
        return lambda: _checked(batches(), " from the function")
    _checked(batches)
    if isinstance(batches, Iterator) and passes > 1:
        raise InputError(
            f"calibrate: the images are gone through {passes} times, once for every stage, but a "
            f"{type(batches).__name__} ends for good: give a list, a DataLoader, or a function that returns them."
        )
    return lambda: batches


def _checked(batches: Any, what: str = "") -> Iterable[Any]:
    if isinstance(batches, Tensor | Mapping | str | nn.Module) or not isinstance(batches, Iterable):
        one = " A single batch is given as [batch]." if isinstance(batches, Tensor | Mapping) else ""
        raise InputError(
            f"calibrate: batches is a list of batches, a DataLoader, or a function that returns them, got "
            f"{type(batches).__name__}{what}.{one}"
        )
    return batches


def _parts(batch: Any) -> tuple[Any, Mapping[str, Any] | None]:
    """Return images, and what else the model takes if it is told."""
    images, rest = (batch[0], batch[1:]) if isinstance(batch, tuple | list) and len(batch) else (batch, ())
    if not (isinstance(images, Mapping) or (isinstance(images, Tensor) and images.ndim in (4, 5))):
        got = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"calibrate: a batch is a tensor (B, C, H, W), of M spectra (B, M, C, H, W), what a NaFlexVit takes, or a "
            f"tuple that begins with one of these, got {got}."
        )
    if isinstance(images, Mapping) and not isinstance(images.get("patches"), Tensor):
        got = listed(map(str, images))
        raise InputError(f"calibrate: a batch that is a mapping lacks 'patches'; it has {got}.")
    if len(rest) != 1 or not isinstance(rest[0], Mapping):
        return images, None
    unknown = [str(key) for key in rest[0] if key not in _TOLD]
    if unknown:
        raise InputError(f"calibrate: a mapping beside the images has {', '.join(_TOLD)}, got {listed(unknown)}.")
    return images, rest[0]


def _unknown(model: PrunedViT, images: Any) -> dict[str, Tensor]:
    return model.unknown_cameras(len(images["patches"] if isinstance(images, Mapping) else images))


def _threshold(scores: Tensor, count: int) -> float:
    """Return a value that ``count`` of the scores exceed, half way between two of them."""
    if count >= len(scores):
        return _KEEP_ALL
    if count <= 0:
        return _KEEP_NONE
    ordered = scores.sort(descending=True).values
    return float((ordered[count - 1] + ordered[count]) / 2)
