"""Rotary embeddings whose rows follow the patches, and those of tokens that stand at no place.

Shapes: B batch, H heads, n patches present, d width of the rotary embedding, S sizes of image in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MixedRotary:
    """Rotary embeddings that every head of every block learns for itself.

    A copy of all blocks' embeddings for every image would be large: there is one table for each size of image, and
    a block looks up its own rows.

    Attributes:
        tables: S embeddings ``(depth, H, rows * columns, d)``.
        size: ``(B,)`` the table of each image; ``(1,)`` where they share one.
        positions: ``(B, n)`` row of the table that each patch takes, -1 for one that stands at no place;
            ``(1, n)`` where images do not differ; None for all rows in order.
    """

    tables: tuple[Tensor, ...]
    size: Tensor
    positions: Tensor | None = None

    @classmethod
    def shared(cls, table: Tensor) -> MixedRotary:
        """Return embeddings ``(depth, H, N, d)`` of images of one size, all patches in order."""
        return cls((table,), torch.zeros(1, dtype=torch.long, device=table.device))

    def gather(self, index: Tensor) -> MixedRotary:
        """Keep the patches at ``index`` ``(B, k)``."""
        if self.positions is None:
            return replace(self, positions=index)
        return replace(self, positions=self.positions.expand(index.shape[0], -1).gather(1, index))

    def extend(self, count: int) -> MixedRotary:
        """Append tokens that stand at no place."""
        positions = self.positions
        if positions is None:
            positions = torch.arange(self.tables[0].shape[2], device=self.size.device).unsqueeze(0)
        return replace(self, positions=nn.functional.pad(positions, (0, count), value=-1))

    def of(self, number: int) -> Tensor:
        """Return what block ``number`` takes: ``(B or 1, H, n, d)``, or ``(H, n, d)`` for all rows in order."""
        if self.positions is None:
            return self.tables[0][number]
        rows = 1 + max(table.shape[2] for table in self.tables)  # the last one, at -1, turns nothing
        padded = [without_rotation(table[number], rows - table.shape[2]) for table in self.tables]
        return torch.stack(padded)[self.size[:, None], :, self.positions].transpose(1, 2)


Rotary = Tensor | MixedRotary | None
"""Axial embeddings, the same in every block: ``(N, d)``, and ``(B, 1, n, d)`` once images differ; mixed ones; none."""


def gather_rotary(rope: Rotary, index: Tensor) -> Rotary:
    """Keep the embeddings of the patches at ``index`` ``(B, k)``."""
    if rope is None:
        return None
    if isinstance(rope, MixedRotary):
        return rope.gather(index)
    if rope.ndim == 2:
        return rope[index].unsqueeze(1)
    return rope.gather(2, index[:, None, :, None].expand(-1, -1, -1, rope.shape[-1]))


def extend_rotary(rope: Rotary, count: int) -> Rotary:
    """Append embeddings of tokens that stand at no place."""
    if rope is None:
        return None
    return rope.extend(count) if isinstance(rope, MixedRotary) else without_rotation(rope, count)


def rotary_of(rope: Rotary, number: int) -> dict[str, Tensor]:
    """Return what block ``number`` is given: ``rope``, broadcast against queries ``(B, H, n, d)``; or nothing."""
    if rope is None:
        return {}
    return {"rope": rope.of(number) if isinstance(rope, MixedRotary) else rope}


def without_rotation(rope: Tensor, count: int) -> Tensor:
    """Append embeddings to ``(..., n, d)`` that turn nothing: sines of 0, then cosines of 1."""
    half = rope.new_zeros(*rope.shape[:-2], count, rope.shape[-1] // 2)
    return torch.cat([rope, torch.cat([half, half + 1], dim=-1)], dim=-2)
