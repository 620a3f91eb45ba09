"""What a frozen dense teacher says of a batch: its features, its answer, and what it looks at.

Shapes: B batch, C classes, P prefix tokens, N patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynavit.adapters import create_adapter
from dynavit.adapters.attention import check_attention
from dynavit.config import LossConfig
from dynavit.errors import InputError, UnsupportedBackbone
from dynavit.models import PrunedViT


@dataclass(frozen=True)
class Lesson:
    """What students are compared with.

    Attributes:
        features: ``(B, N, D)``, the patches after the last norm.
        answer: ``(B, C)`` logits.
        attention: ``(B, N)``, what :func:`late_attention` gives; None where nobody asks for it.
    """

    features: Tensor
    answer: Tensor
    attention: Tensor | None


@torch.no_grad()
def teach(teacher: Any, images: Tensor, attention: bool) -> Lesson:
    """Run a teacher once.

    Args:
        teacher: dense timm model.
        images: ``(B, 3, H, W)``.
        attention: also read what it looks at.
    """
    tokens, looked = late_attention(teacher, images) if attention else (teacher.forward_features(images), None)
    return Lesson(tokens[:, teacher.num_prefix_tokens :], teacher.forward_head(tokens), looked)


def late_attention(teacher: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a dense model's tokens ``(B, P + N, D)`` after its last norm, and its late attention ``(B, N)``.

    That is the attention of the class token in the last third of the blocks, mean over blocks and heads; where there is
    no class token, of the mean of the patches, as the scorer ``mean_attention`` has it. The last third, whatever the
    stage: these blocks are what the answer is read from, while early ones look at everything alike; one target asks all
    stages for one order of the patches, so that a later stage wants a part of what the earlier ones kept; and a teacher
    may have any number of blocks.
    """
    adapter = create_adapter(teacher)
    x, context = adapter.embed(images)
    looked = []
    for number in range(adapter.depth):
        if number in _late(adapter.depth):
            view = adapter.view(number, x, context, None)
            attention = view.class_attention() if adapter.has_class_token else view.mean_attention()
            looked.append(attention.mean(dim=1)[:, adapter.num_prefix_tokens :])
        x = adapter.block(number, x, context, None)
    return adapter.norm(x), torch.stack(looked).mean(dim=0)


def check_attends(teacher: Any) -> None:
    """Refuse a teacher whose late attention cannot be read.

    Raises:
        UnsupportedBackbone: naming the part in the way.
    """
    for number in _late(len(teacher.blocks)):
        try:
            check_attention(teacher.blocks[number].attn)
        except UnsupportedBackbone as error:
            raise UnsupportedBackbone(f"loss.score_distillation_weight: of the teacher, {error}") from error


def check_score_distillation(settings: LossConfig, model: PrunedViT) -> None:
    """Refuse a target for scores where nothing learns to score.

    Raises:
        InputError: naming the setting.
    """
    learned = model.selector.needs_scores and any(scorer.learned for scorer in model.scorers)
    if settings.score_distillation_weight and not learned:
        raise InputError(
            f"loss.score_distillation_weight={settings.score_distillation_weight}: nothing here learns to score; leave "
            f"it out, or choose model.scorer.name=anchored, or another that learns, and a selector that reads scores."
        )


def _late(depth: int) -> range:
    return range(2 * depth // 3, depth)
