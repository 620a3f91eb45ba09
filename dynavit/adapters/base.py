"""What an adapter is: the only code that knows the inside of a timm model.

Shapes: B batch, P prefix tokens, N patch tokens, L = P + N, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from timm.models import checkpoint
from torch import Tensor, nn

from dynavit.adapters.half_blocks import add_mlp
from dynavit.adapters.pooling import weighted_head
from dynavit.errors import UnsupportedBackbone

if TYPE_CHECKING:
    from dynavit.adapters.attention import AttentionView


class BackboneAdapter(ABC):
    """Runs one timm backbone step by step, without changing it.

    ``context`` is whatever a family needs beside the tokens (rotary embeddings, relative positions);
    it is made by :meth:`embed`, shortened by :meth:`gather`, lengthened by :meth:`extend` and read by :meth:`block`
    and its halves. Tokens that a reducer made come last and stand at no place.

    :meth:`attention`, :meth:`view` and :meth:`extend` are needed only by what reads attention, prunes
    inside a block or makes tokens; an adapter without them refuses those.

    Raises:
        UnsupportedBackbone: the backbone has a part that this adapter cannot drive; the message names it.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone: Any = backbone

    @property
    def num_prefix_tokens(self) -> int:
        """P: class, distillation and register tokens, which are never scored nor dropped."""
        return self.backbone.num_prefix_tokens

    @property
    def has_class_token(self) -> bool:
        """Whether token 0 is a class token, not a register or a patch."""
        return getattr(self.backbone, "cls_token", None) is not None

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.backbone.blocks)

    @property
    def stem(self) -> Any:
        """What turns images into patch tokens."""
        return self.backbone.patch_embed

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of images in pixels; None where the backbone has no size of its own."""
        size = self.stem.img_size
        return None if size is None else (int(size[0]), int(size[1]))

    @property
    def in_chans(self) -> int:
        """Channels of images."""
        convolutions = (module for module in self.stem.modules() if isinstance(module, nn.Conv2d))
        return next(convolutions).in_channels

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches at the configured image size."""
        rows, columns = self.stem.grid_size
        return int(rows), int(columns)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        height, width = self.stem.patch_size
        return int(height), int(width)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of images of this height and width in pixels."""
        rows, columns = self.stem.dynamic_feat_size(size)
        return int(rows), int(columns)

    @property
    def pools_prefix(self) -> bool:
        """Whether the head pools over prefix tokens too, where it pools at all."""
        return False

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, Any]:
        """Turn images ``(B, 3, H, W)`` into tokens ``(B, L, D)`` and their context."""

    @abstractmethod
    def gather(self, context: Any, index: Tensor) -> Any:
        """Keep the context of the patches at ``index`` ``(B, k)``, counted among those present."""

    @abstractmethod
    def block(self, number: int, x: Tensor, context: Any, attention_mask: Tensor | None) -> Tensor:
        """Run one block on ``(B, L, D)``; the mask is as scaled-dot-product attention takes it."""

    def attention(self, number: int, x: Tensor, context: Any, attention_mask: Tensor | None) -> Tensor:
        """Run the first half of a block, ``x`` plus attention; with :meth:`mlp` exactly :meth:`block`."""
        raise self._cannot("run half a block", "attention")

    def mlp(self, number: int, x: Tensor) -> Tensor:
        """Run the second half of a block, ``x`` plus MLP, on any tokens ``(B, l, D)``."""
        return self._recomputed(partial(add_mlp, self.backbone.blocks[number]), x)

    def view(self, number: int, x: Tensor, context: Any, attention_mask: Tensor | None) -> AttentionView:
        """Return what a block's attention at its input ``x`` says of the tokens; arguments as for :meth:`block`."""
        raise self._cannot("show a block's attention", "view")

    def extend(self, context: Any, count: int) -> Any:
        """Return the context once ``count`` made tokens stand behind the patches; :meth:`gather` may index them."""
        raise self._cannot("append made tokens", "extend")

    def valid(self, context: Any) -> Tensor | None:
        """Return which patches ``(B, N)`` are no padding; None where all are."""
        return None

    def norm(self, x: Tensor) -> Tensor:
        """Apply what follows the last block and precedes pooling."""
        normalised: Tensor = self.backbone.norm(x)
        return normalised

    def head(self, x: Tensor, weight: Tensor | None, training: bool, pre_logits: bool) -> Any:
        """Pool and classify normalised tokens ``(B, L, D)``.

        ``weight`` ``(B, N)`` is of the patches: 0 for those dropped, and more than 1 for tokens merged of several. None
        means that all of them count alike.
        """
        if weight is None or self.backbone.global_pool in ("token", ""):
            return self.backbone.forward_head(x, pre_logits=pre_logits)
        return weighted_head(self, x, weight, training, pre_logits)

    def _recomputed(self, run: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Call ``run``, and in backward once more instead of storing it where the backbone asks for that."""
        if self.backbone.grad_checkpointing and self.backbone.training:
            return checkpoint(run, *inputs)
        return run(*inputs)

    def _cannot(self, what: str, method: str) -> UnsupportedBackbone:
        return UnsupportedBackbone(
            f"{type(self.backbone).__name__}: {type(self).__name__} cannot {what}; it has no method {method}()."
        )
