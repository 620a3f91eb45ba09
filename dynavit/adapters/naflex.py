"""timm's NaFlexVit: images at their own aspect ratio and resolution, padded to a common number of patches.

NaFlex: Tschannen et al. 2025 (SigLIP 2), https://arxiv.org/abs/2502.14786, section 2.4.2, after NaViT, Dehghani et al.
2023, https://arxiv.org/abs/2307.06304. Positions are absolute (learned, factorized) or rotary (axial or mixed).

Shapes: B batch, N patches of the longest image, n patches present, P prefix tokens, d width of the rotary embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.eva import EvaBlock
from timm.models.naflexvit import NaFlexRopeIterator, NaFlexVit
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dynavit.adapters.images import check_images
from dynavit.adapters.prenorm import PreNormAdapter
from dynavit.adapters.registry import register_adapter
from dynavit.adapters.rotary import MixedRotary, Rotary, extend_rotary, gather_rotary, rotary_of
from dynavit.errors import InputError

_KEYS = ("patches", "patch_coord", "patch_valid")


@dataclass(frozen=True)
class NaFlexContext:
    """Where the patches are, and which of them are there at all.

    Attributes:
        rope: axial ``(n, d)``, or ``(B, 1, n, d)`` where images differ; or mixed; None without rotary embeddings.
        valid: ``(B, n)`` bool, False where an image is padded; None for images of one size.
    """

    rope: Rotary
    valid: Tensor | None


@register_adapter(NaFlexVit)
class NaFlexVitAdapter(PreNormAdapter):
    """Drives the pre-norm blocks of ViT or EVA, and hides padding from them.

    Images of one size are a tensor ``(B, 3, H, W)``. Others come as timm's NaFlex loader makes them::

        {"patches": (B, N, P * P * 3), "patch_coord": (B, N, 2) row and column, "patch_valid": (B, N) bool}

    each image's patches first, row by row, then padding, whose content does not matter.
    """

    blocks = (Block, EvaBlock)

    @property
    def stem(self) -> Any:
        """What turns images into patch tokens, ``patch_embed`` elsewhere in timm."""
        return self.backbone.embeds

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that images are brought to where nothing else is asked for; the model takes any.

        Raises:
            InputError: the backbone was made without one.
        """
        size = self.stem.default_img_size
        if size is None:
            size = getattr(self.backbone, "pretrained_cfg", {}).get("input_size", ())[1:]
        if not size:
            raise InputError(
                "this NaFlexVit has no image size of its own: create it with timm.create_model, where "
                "pretrained_cfg_overlay={'input_size': (3, H, W)} sets another."
            )
        return int(size[0]), int(size[1])

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches at :attr:`image_size`; other images have others."""
        return self.grid_of(self.image_size)

    @property
    def patch_size(self) -> tuple[int, int]:
        height, width = self.stem.patch_size
        return int(height), int(width)

    @property
    def in_chans(self) -> int:
        """Number of channels of the images."""
        return int(self.stem.in_chans)

    @property
    def has_class_token(self) -> bool:
        return bool(self.backbone.has_class_token)

    @property
    def pools_prefix(self) -> bool:
        return bool(self.backbone.pool_include_prefix)

    def embed(self, images: Tensor | Mapping[str, Any]) -> tuple[Tensor, NaFlexContext]:
        """Turn images, or the patches of images, into tokens ``(B, P + N, D)`` and their context.

        Raises:
            InputError: neither a tensor ``(B, 3, H, W)`` of whole patches nor a mapping as described above.
        """
        vit = self.backbone
        if isinstance(images, Mapping):
            patches, coordinates, valid = self._checked_patches(images)
            # timm reads the size of an image off its largest coordinate
            coordinates = coordinates.masked_fill(~valid.unsqueeze(-1), 0)
            patches = patches.masked_fill(~valid.reshape(*valid.shape, *[1] * (patches.ndim - 2)), 0)
        else:
            self._check_image(images)
            patches, coordinates, valid = images, None, None
        # without patch_valid: the mask that timm would make of it has N x N numbers an image
        embedded = vit._forward_embeds(patches, patch_coord=coordinates, patch_valid=None, attn_mask=None)
        x, rope = embedded["patches"], embedded["rope_embeds"]
        if isinstance(rope, NaFlexRopeIterator):
            assert valid is not None
            rope = _mixed(rope, valid, x.dtype)
        elif rope is not None and vit.rope_is_mixed:
            rope = MixedRotary.shared(rope)
        return x, NaFlexContext(rope, valid)

    def valid(self, context: NaFlexContext) -> Tensor | None:
        """Return which patches present are no padding, ``(B, n)`` bool; None for images of one size: all are."""
        return context.valid

    def gather(self, context: NaFlexContext, index: Tensor) -> NaFlexContext:
        valid = context.valid
        return NaFlexContext(gather_rotary(context.rope, index), None if valid is None else valid.gather(1, index))

    def extend(self, context: NaFlexContext, count: int) -> NaFlexContext:
        valid = None if context.valid is None else nn.functional.pad(context.valid, (0, count), value=True)
        return NaFlexContext(extend_rotary(context.rope, count), valid)

    def _options(self, number: int, context: NaFlexContext) -> dict[str, Tensor]:
        return rotary_of(context.rope, number)

    def _mask(self, context: NaFlexContext, attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Hide padding for good: the mask of a training step would only make it faint."""
        mask = attention_mask
        if context.valid is not None:
            keys = nn.functional.pad(context.valid, (self.num_prefix_tokens, 0), value=True)[:, None, None, :]
            if mask is None:
                mask = keys
            else:
                mask = mask & keys if mask.dtype == torch.bool else mask.masked_fill(~keys, -torch.inf)
        return super()._mask(context, mask, dtype)

    def _check_image(self, images: Tensor) -> None:
        check_images(images, self, f", or patches of images of different sizes as a mapping with {', '.join(_KEYS)}")
        (height, width), (p, q) = images.shape[-2:], self.patch_size
        if not self.stem.dynamic_img_pad and (height % p or width % q):
            raise InputError(
                f"images of {height}x{width} pixels are no multiple of the patch size {p}x{q}: resize them, or create "
                f"the model with dynamic_img_pad=True."
            )

    def _checked_patches(self, images: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        missing = [key for key in _KEYS if not isinstance(images.get(key), Tensor)]
        if missing:
            raise InputError(f"a batch of patches needs the tensors {', '.join(_KEYS)}; {missing[0]} is missing.")
        if images.get("attn_mask") is not None:
            raise InputError("a batch of patches with an attn_mask: leave it out; padding is what patch_valid says.")
        if not self.stem.is_linear:
            raise InputError("this model embeds whole images: create it with embed_proj_type='linear' for patches.")
        patches, coordinates, valid = (images[key] for key in _KEYS)
        shape = tuple(patches.shape[:2])
        if patches.ndim not in (3, 5) or tuple(coordinates.shape) != (*shape, 2) or tuple(valid.shape) != shape:
            raise InputError(
                f"patches {tuple(patches.shape)}, patch_coord {tuple(coordinates.shape)} and patch_valid "
                f"{tuple(valid.shape)} do not fit: B images of N patches have (B, N, pixels), (B, N, 2) and (B, N)."
            )
        valid = valid.bool()
        if valid.device.type == "cpu" and not torch.compiler.is_compiling() and not valid.any(dim=1).all():
            raise InputError("patch_valid: an image of the batch has no patch at all.")
        return patches, coordinates, valid


def _mixed(rope: NaFlexRopeIterator, valid: Tensor, dtype: torch.dtype) -> MixedRotary:
    """Take over the tables that timm has made, one for each size of image."""
    size = torch.empty(len(valid), dtype=torch.long)
    for number, rows_columns in enumerate(rope.unique_sizes):
        size[rope.size_to_indices[rows_columns]] = number
    tables = tuple(rope._embeddings_per_size[rows_columns].to(dtype) for rows_columns in rope.unique_sizes)
    positions = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape).masked_fill(~valid, -1)
    return MixedRotary(tables, size.to(valid.device), positions)
