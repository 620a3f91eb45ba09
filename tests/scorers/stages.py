"""Blocks of every family, with the attention that a scorer is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynavit.adapters import BackboneAdapter, create_adapter
from dynavit.adapters.attention import AttentionView
from dynavit.functional import log_mask
from dynavit.scorers import Scorer, StageView

BATCH, NUMBER = 2, 1


class Stage:
    """Tokens as they enter the second block, with their context and, if some are hidden, a mask."""

    def __init__(self, backbone: nn.Module, images: Tensor) -> None:
        self.backbone: Any = backbone
        self.adapter: BackboneAdapter = create_adapter(backbone)
        with torch.no_grad():
            self.x, self.context = self.adapter.embed(images)
            self.x = self.adapter.block(0, self.x, self.context, None)
        n = self.x.shape[1] - self.num_prefix
        self.positions = torch.arange(n).expand(BATCH, n)
        self.mask: Tensor | None = None

    @property
    def num_prefix(self) -> int:
        return self.adapter.num_prefix_tokens

    @property
    def attn(self) -> Any:
        return self.backbone.blocks[NUMBER].attn

    @property
    def patches(self) -> Tensor:
        return self.x[:, self.num_prefix :]

    def gather(self, index: Tensor) -> None:
        prefix = torch.arange(self.num_prefix).expand(len(index), -1)
        whole = torch.cat([prefix, index + self.num_prefix], dim=1)
        self.x = self.x.gather(1, whole[..., None].expand(-1, -1, self.x.shape[2]))
        self.context = self.adapter.gather(self.context, index)
        self.positions = self.positions.gather(1, index)

    def attention_mask(self, training: bool = False) -> Tensor | None:
        if self.mask is None:
            return None
        keys = nn.functional.pad(self.mask, (self.num_prefix, 0), value=1.0)[:, None, None]
        return log_mask(keys) if training else keys > 0.5

    def view(self, training: bool = False) -> AttentionView:
        return self.adapter.view(NUMBER, self.x, self.context, self.attention_mask(training))

    def attended(self) -> Tensor:
        """What the block's own first half makes of the tokens."""
        return self.adapter.attention(NUMBER, self.x, self.context, self.attention_mask())

    def score(self, scorer: Scorer, training: bool = False, **more: Any) -> Tensor:
        class_token = self.x[:, 0] if self.adapter.has_class_token else None
        view = StageView(0, self.positions, self.view(training), class_token, **more)
        return scorer(self.patches, self.mask, view)


def make_stage(
    backbone_of: Callable[..., nn.Module],
    images_for: Callable[..., Tensor],
    family: str,
    *,
    gathered: bool = False,
    hidden: bool = False,
    **options: Any,
) -> Stage:
    """Return the stage before the second of two blocks of a family's small model, with timm's options."""
    backbone = backbone_of(family, **{"depth": 2, **options})
    for name, buffer in backbone.named_buffers():
        if name.endswith("k_bias"):  # always 0 in timm; here it has to count
            buffer.normal_(generator=torch.Generator().manual_seed(2))
    stage = Stage(backbone, images_for(backbone, BATCH))
    generator = torch.Generator().manual_seed(1)
    if gathered:
        n = stage.patches.shape[1]
        stage.gather(torch.stack([torch.randperm(n, generator=generator)[: n - 4] for _ in range(BATCH)]))
    if hidden:
        stage.mask = (torch.rand(stage.positions.shape, generator=generator) < 0.6).float()
    return stage
