"""Patches that overlap."""

from __future__ import annotations

from typing import Any

from timm.layers.format import nchw_to
from timm.layers.helpers import to_2tuple
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor

from dynavit.errors import InputError


class OverlappingPatchEmbed(PatchEmbed):
    """timm's patch embedding with a stride smaller than the patch.

    Neighbouring patches share pixels, so that what lies on a border is seen whole by one of them: He et
    al. 2021 (TransReID), https://arxiv.org/abs/2102.04378, section 3.1. The grid has
    ``(size - patch) // stride + 1`` rows and columns, which costs that much more. The weights are
    those of the plain embedding.

    Args:
        *args, **kwargs: those of timm's class.
        stride: pixels from one patch to the next, at most the patch size; one number or a pair.

    Attributes:
        unused: ``(rows, columns)`` of pixels at the lower and right border that no patch covers.

    Raises:
        InputError: an impossible stride, or one together with ``dynamic_img_pad``.
    """

    unused: tuple[int, int] | None

    def __init__(self, *args: Any, stride: int | tuple[int, int], **kwargs: Any) -> None:
        self.stride: tuple[int, int] = to_2tuple(stride)  # before timm's, which asks for the grid
        super().__init__(*args, **kwargs)
        if self.dynamic_img_pad:
            raise InputError("patch_stride goes without dynamic_img_pad: images are not padded to a whole grid.")
        self.proj.stride = self.stride

    def _init_img_size(self, img_size: Any) -> Any:
        if any(not isinstance(s, int) or not 1 <= s <= p for s, p in zip(self.stride, self.patch_size, strict=True)):
            raise InputError(
                f"patch_stride={self.stride}: pixels from one patch to the next, from 1 to the patch size "
                f"{tuple(self.patch_size)}."
            )
        if img_size is None:
            self.unused = None
            return None, None, None
        size = to_2tuple(img_size)
        rows, columns = self.dynamic_feat_size(size)
        if min(rows, columns) < 1:
            raise InputError(f"img_size={tuple(size)} is smaller than one patch of {tuple(self.patch_size)} pixels.")
        covered = [(n - 1) * s + p for n, s, p in zip((rows, columns), self.stride, self.patch_size, strict=True)]
        self.unused = (size[0] - covered[0], size[1] - covered[1])
        return size, (rows, columns), rows * columns

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the image or patch size, as timm's method does; the stride stays."""
        super().set_input_size(img_size, patch_size)
        self.proj.stride = self.stride  # timm makes a new projection for another patch size

    def feat_ratio(self, as_scalar: bool = True) -> Any:
        """Return pixels from one token to the next."""
        return max(self.stride) if as_scalar else self.stride

    def dynamic_feat_size(self, img_size: Any) -> tuple[int, int]:
        """Return the grid for an image of this size."""
        (height, width), (p, q), (s, t) = img_size, self.patch_size, self.stride
        return (height - p) // s + 1, (width - q) // t + 1

    def forward(self, x: Tensor) -> Tensor:
        """Turn images ``(B, 3, H, W)`` into patch tokens, as timm's method does."""
        if self.strict_img_size:
            return super().forward(x)
        size = tuple(x.shape[-2:])  # with timm's dynamic_img_size
        rests = [(n - p) % s for n, p, s in zip(size, self.patch_size, self.stride, strict=True)]
        if size != self.img_size and any(rests):
            raise InputError(
                f"images of {size} pixels are not covered by patches of {tuple(self.patch_size)} every {self.stride}: "
                f"{tuple(rests)} pixels are left over."
            )
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2) if self.flatten else nchw_to(x, self.output_fmt))
