"""Whether an exported model answers as the original does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dynavit.deployment.inputs import repeated
from dynavit.deployment.judging import Judgement
from dynavit.errors import InputError
from dynavit.models import PrunedViT, Trace
from dynavit.tables import Row

_NOTHING_LEFT = "Nothing was written."


@dataclass(frozen=True)
class Verification:
    """What was compared.

    Attributes:
        max_difference: largest absolute difference of any output value.
        scale: standard deviation of the original's outputs, to judge it by.
        images: number of images compared.
        batch_sizes: at which.
        same_answers: share of them with the same most likely class, or, where outputs are embeddings, with the same
            nearest neighbour among them; the least over batch sizes.
        left_out: number of images not compared, because rounding alone decides what becomes of their tokens.
        same_tokens: for each stage the share of kept patches that are the same, over all images.
        judgement: what the exported model is worth on labelled data beside the original; None where that was not
            asked: of classifiers in fp32, which answer the same, and of images without labels.
        speeds: rows of :func:`~dynavit.deployment.speeds.time_exported`; empty where no speed was measured.
    """

    max_difference: float
    scale: float
    images: int
    batch_sizes: tuple[int, ...]
    same_answers: float = 1.0
    left_out: int = 0
    same_tokens: tuple[float, ...] = ()
    judgement: Judgement | None = None
    speeds: tuple[Row, ...] = ()


@torch.inference_mode()
def clear_choices(model: PrunedViT, images: Tensor, units: int = 32, noise: float = 2e-5, trials: int = 2) -> Tensor:
    """Tell for which images ``(B,)`` the choice of tokens is clear: rounding cannot change it.

    Elsewhere two tokens score alike at the edge of what is kept, or two partners for a token to be merged into are as
    similar to it, and another runtime may decide otherwise and be right too. The first is read off the scores; noise
    little above rounding finds the second.

    Args:
        model: in eval mode.
        images: ``(B, 3, H, W)``.
        units: least difference between the last score kept and the first dropped, in units in the last place of fp32.
        noise: relative to each pixel; some ten times what rounding in fp32 does to the tokens.
        trials: how often it is added, and subtracted: a choice between nearly equals changes in one of the two.
    """
    if not any(ratio < 1 for ratio in model.keep_ratios):
        return torch.ones(len(images), dtype=torch.bool)
    clear = torch.ones(len(images) * model.num_spectra, dtype=torch.bool)  # of several spectra each

    def run(images: Tensor) -> Trace:
        _, trace = model(images, return_trace=True, **model.unknown_cameras(len(images)))
        return trace

    trace = run(images)
    counts = model.stage_counts(trace.source.shape[1])
    selecting = [k for k, ratio in zip(counts, model.keep_ratios, strict=True) if ratio < 1]
    for k, choice in zip(selecting if model.selector.needs_scores else [], trace.choices, strict=False):
        if k < choice.logits.shape[1]:
            best = choice.logits.topk(k + 1, dim=1).values.cpu()
            clear &= best[:, k - 1] - best[:, k] > units * torch.finfo(torch.float32).eps * best[:, k].abs()
    chosen, generator = trace.source, torch.Generator().manual_seed(0)
    for _ in range(trials):
        change = noise * torch.randn(images.shape, generator=generator).to(images.device)
        for sign in (1, -1):
            again = run(images * (1 + sign * change)).source
            clear &= (again == chosen).all(dim=1).cpu()
    return clear.unflatten(0, (-1, model.num_spectra)).all(dim=1)


@torch.inference_mode()
def verify(
    original: Callable[[Tensor], Tensor],
    exported: Callable[[Tensor], Tensor],
    images: Tensor,
    batch_sizes: Sequence[int] = (1, 2, 5),
    tolerance: float | None = 1e-3,
    classifies: bool = True,
    clear: Tensor | None = None,
) -> Verification:
    """Compare two models on the same images, at several batch sizes.

    Args:
        original: from ``(B, 3, H, W)`` to ``(B, C)``.
        exported: likewise.
        images: ``(M, 3, H, W)``; all are used at each batch size, the first ones again to fill the last batch.
        batch_sizes: an exporter that baked in one of them fails at the others.
        tolerance: largest difference allowed, in units of the outputs' standard deviation. None, where the exported
            model has fewer bits: nothing is demanded of it here but numbers.
        classifies: the largest output names a class, and has to stay the largest.
        clear: ``(M,)`` bool, which images to compare; see :func:`clear_choices`. All if None.

    Raises:
        InputError: outputs differ by more, the most likely class differs, one is no number, or there is nothing to
            compare.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise InputError(f"batch_sizes={tuple(batch_sizes)}: give one or more, each a whole number of 1 or more.")
    expected = original(images)
    compare = torch.ones(len(images), dtype=torch.bool) if clear is None else clear
    if not compare.any():
        raise InputError(
            "on every image rounding alone decides which tokens are kept or merged, so there is nothing to compare by: "
            "train the scorers first, or check with other images."
        )
    # one number alone has no deviation
    scale, compared = float(expected.std(correction=0)) or float(expected.abs().mean()), expected[compare]
    choose = _most_likely if classifies else _nearest
    worst, same = 0.0, 1.0
    for size in batch_sizes:
        answers = torch.cat([exported(batch) for batch in _whole_batches(images, size)])[: len(images)][compare]
        if not answers.isfinite().all():
            raise InputError(f"the exported model answers at batch size {size} with what is no number: {_NOTHING_LEFT}")
        worst = max(worst, float((answers - compared).abs().max()))
        equal = choose(answers) == choose(compared)
        same = min(same, equal.double().mean().item())
        if tolerance is None:
            continue
        # two classes closer together than the tolerance may change places
        top = compared.topk(min(2, compared.shape[1]), dim=1).values
        wrong = int((~equal & ((top[:, 0] - top[:, -1]) > 2 * tolerance * scale)).sum()) if classifies else 0
        if worst > tolerance * scale or wrong:
            raise InputError(
                f"the exported model differs from the original at batch size {size}: by up to {worst:.2g} where "
                f"outputs have a standard deviation of {scale:.2g}; {wrong} of {len(answers)} images change class. "
                f"{_NOTHING_LEFT} Please report this with the versions of torch and of what runs the file."
            )
    left_out = int((~compare).sum())
    return Verification(worst, scale, len(images) - left_out, tuple(batch_sizes), same, left_out)


def require_same_answers(found: Verification) -> None:
    """Refuse a file with fewer bits that answers otherwise on more than one image in 200, or on two of 16 or more.

    Raises:
        InputError: it does, or there are too few images to tell.
    """
    if found.images < 3:
        raise InputError(
            f"a file with fewer bits is compared on {found.images} images: give three or more. {_NOTHING_LEFT}"
        )
    changed = round((1 - found.same_answers) * found.images)
    if changed > max(int(found.images >= 16), found.images // 200):
        raise InputError(
            f"the exported model answers otherwise than the original on {changed} of {found.images} images. "
            f"{_NOTHING_LEFT} Choose another precision, or check with more images."
        )


def _whole_batches(images: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return all images in batches of one size, the first ones again to fill the last."""
    return repeated(images, -(-len(images) // size) * size).split(size)


def _most_likely(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)


def _nearest(embeddings: Tensor) -> Tensor:
    """Return of each row the other one with the largest cosine."""
    unit = functional.normalize(embeddings, dim=1)
    return (unit @ unit.T).fill_diagonal_(-2).argmax(dim=1)


@torch.inference_mode()
def same_tokens(
    original: Callable[[Tensor], Sequence[Tensor]],
    exported: Callable[[Tensor], Sequence[Tensor]],
    images: Tensor,
    batch_sizes: Sequence[int],
    least: float = 0.97,
) -> tuple[float, ...]:
    """Return for each stage the share of kept patches that two models have in common, the least over batch sizes.

    Args:
        original: from ``(B, 3, H, W)`` to an answer and positions ``(B, k)`` int64 of each stage, ascending.
        exported: likewise.
        images: ``(M, 3, H, W)``; whole batches of each size are compared, the first images again to fill the last.
        batch_sizes: as for :func:`verify`.
        least: share to be had at every stage.

    Raises:
        InputError: a stage has less.
    """
    shares: list[list[float]] = []
    for size in batch_sizes:
        batches = _whole_batches(images, size)
        both = [[one(batch)[1:] for batch in batches] for one in (original, exported)]
        stages = [[torch.cat(parts) for parts in zip(*batches, strict=True)] for batches in both]
        shares.append([_common(ours, theirs) for ours, theirs in zip(*stages, strict=True)])
    worst = tuple(min(of_stage) for of_stage in zip(*shares, strict=True))
    for stage, share in enumerate(worst):
        if share < least:
            raise InputError(
                f"the exported model keeps other tokens than the original: at stage {stage + 1} {100 * share:.1f} % "
                f"are the same, where {100 * least:.0f} % or more should be. {_NOTHING_LEFT}"
            )
    return worst


def _common(ours: Tensor, theirs: Tensor) -> float:
    return (ours[:, :, None] == theirs[:, None, :]).any(dim=2).double().mean().item()
