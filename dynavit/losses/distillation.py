"""Losses that keep a pruned student near its unpruned teacher.

Shapes: B batch, C classes, N original patch tokens, n patch tokens of the student, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dynavit.functional import NEVER, full_precision, take


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``T^2 KL(teacher || student)`` of the class distributions at temperature T.

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531; the factor keeps gradients comparable
    between temperatures. The teacher gets no gradient.

    Args:
        student: logits ``(B, C)``.
        teacher: logits ``(B, C)``.
        temperature: above 0; larger values pay more attention to the unlikely classes.

    Returns:
        A scalar in fp32 (fp64 for fp64 logits): the sum over classes, averaged over images.
    """
    log_student = _log_softmax(student, temperature)
    log_teacher = _log_softmax(teacher.detach(), temperature)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def token_distillation(student_features: Tensor, teacher_features: Tensor, positions: Tensor, kept: Tensor) -> Tensor:
    """Return the mean squared difference of the tokens that the student kept until the end.

    DynamicViT, Rao et al. 2021, https://arxiv.org/abs/2106.02034, eq. 10. The teacher gets no
    gradient. One call serves both executions: a masked student has n = N tokens, some not kept; a
    gathered one has n = k tokens.

    Args:
        student_features: ``(B, n, D)``, ``trace.features``.
        teacher_features: ``(B, N, D)``, the features of the unpruned model.
        positions: ``(B, n)`` int64, ``trace.positions``: the original patch of each student token; -1 for
            tokens that stand at no place, which are left out.
        kept: ``(B, N)`` bool, ``trace.stages[-1].kept``.

    Returns:
        A scalar in fp32 (fp64 for fp64 features): the mean over the elements of all kept tokens of
        the batch; zero where none was kept.
    """
    width = student_features.shape[-1]
    place = positions.clamp(min=0)
    target = take(teacher_features.detach(), place)
    counts = (kept.gather(1, place) & (positions >= 0)).unsqueeze(-1)
    difference = full_precision(student_features) - full_precision(target)
    # filled, not multiplied: a dropped row may hold NaN
    squared = difference.masked_fill(~counts, 0.0).square().sum()
    return squared / (counts.sum() * width).clamp(min=1)


def score_distillation(logits: Tensor, attention: Tensor, positions: Tensor, alive: Tensor) -> Tensor:
    """Return ``KL(teacher || student)`` of how attention is shared out among the patches still there.

    The student's shares are the softmax of its scores, so that these are to be, up to a constant, the logarithm of the
    teacher's attention, as in attention transfer (Zagoruyko and Komodakis 2017, https://arxiv.org/abs/1612.03928) to
    what chooses tokens instead of to features. The teacher gets no gradient.

    Args:
        logits: ``(B, n)``, the scores of a stage.
        attention: ``(B, N)``, what each original patch gets from the teacher, at least 0.
        positions: ``(B, n)`` int64, the original patch of each token; -1 for tokens that stand at no place, which are
            left out.
        alive: ``(B, n)`` bool, the tokens that the stage chooses among; others are left out, too.

    Returns:
        A scalar in fp32 (fp64 for fp64 logits): the sum over tokens, averaged over images; 0 for an image of which
        nothing is left.
    """
    counts = alive & (positions >= 0)
    shares = full_precision(attention.detach()).gather(1, positions.clamp(min=0)).masked_fill(~counts, 0.0)
    shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
    log_student = functional.log_softmax(full_precision(logits).masked_fill(~counts, NEVER), dim=1)
    return functional.kl_div(log_student, shares, reduction="batchmean")


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return functional.log_softmax(full_precision(logits) / temperature, dim=-1)
