"""What a forward costs: multiply-accumulates (MACs), by arithmetic and by counting.

One MAC is one multiplication and one addition; papers often print it as a "FLOP", PyTorch's counter
as two. Matrix products and convolutions count; biases, norms, activations, softmax and the sorting
of scores do not.

Shapes: P prefix tokens, N original patch tokens, n patch tokens present.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynavit.errors import InputError
from dynavit.models import PrunedViT
from dynavit.models.adapters import BackboneAdapter
from dynavit.reducers import Drop
from dynavit.selectors import num_keep


def closed_form_macs(
    model: PrunedViT,
    keep_ratios: float | Sequence[float] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> int:
    """Return the MACs of one image in eval, where dropped tokens are removed, without running it.

    Args:
        model: pruned model; not changed.
        keep_ratios: as :meth:`PrunedViT.set_keep_ratio` takes them; the model's own if None.
        image_size: height and width in pixels, or the side of a square; the model's own if None.

    Raises:
        InputError: impossible ratios or size, or a reducer whose tokens and cost are not known here.

    Example:
        >>> import dynavit
        >>> model = dynavit.create_model("test_vit", stages=(2, 4), keep_ratio=0.5)
        >>> closed_form_macs(model) / closed_form_macs(model, keep_ratios=1.0)
        0.638...
    """
    if not isinstance(model.reducer, Drop):
        raise InputError(
            f"closed_form_macs knows the reducer 'drop'; {type(model.reducer).__name__} makes tokens or "
            f"costs of its own. count_macs counts any model."
        )
    if keep_ratios is not None:
        model = copy.copy(model)  # shallow: shares every module, but the ratios below are its own
        model.set_keep_ratio(keep_ratios)
    size = checked_size(model, image_size)
    num_prefix = model.num_prefix_tokens
    n = _num_patches(model, size)
    counts = tokens_per_stage(model, size)
    macs = _patch_embed_macs(model, size)
    for number, block in enumerate(model.backbone.blocks):
        if number in model.stages:
            stage = model.stages.index(number)
            if model.keep_ratios[stage] < 1:  # otherwise the stage is skipped
                if model.selector.needs_scores:
                    macs += n * _linear_macs(model.predictors[stage])
                n = counts[stage]
        macs += _block_macs(block, num_prefix + n)
    return macs + _head_macs(model.adapter, n)


def count_macs(model: PrunedViT, image_size: int | tuple[int, int] | None = None, batch_size: int = 1) -> int:
    """Run the model once in eval and return the MACs counted, per image.

    Attention is counted under the math backend: PyTorch's counter misses fused attention on CPU
    altogether (https://github.com/pytorch/pytorch/issues/195460).

    Args:
        model: pruned model, run as its ``execution`` says; left as it was.
        image_size: height and width in pixels, or the side of a square; the model's own if None.
        batch_size: images in the forward.

    Raises:
        InputError: the model does not take this size.
    """
    size = checked_size(model, image_size)
    parameter = next(model.parameters())
    images = parameter.new_zeros(batch_size, in_channels(model), *size)
    inputs = model.unknown_cameras(batch_size)
    return _counted(model, lambda: model(images, **inputs)) // batch_size


def tokens_per_stage(model: PrunedViT, image_size: int | tuple[int, int] | None = None) -> list[int]:
    """Return the number of patch tokens kept after each stage.

    Raises:
        InputError: the model does not take this size.

    Example:
        >>> import dynavit
        >>> tokens_per_stage(dynavit.create_model("test_vit", stages=(2, 4), keep_ratio=0.5))
        [50, 25]
    """
    num_patches = _num_patches(model, checked_size(model, image_size))
    return [num_keep(num_patches, ratio) for ratio in model.keep_ratios]


def checked_size(model: PrunedViT, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width: the model's own if None is given.

    Raises:
        InputError: a size that the model cannot run at.
    """
    embed = model.backbone.patch_embed
    own = embed.img_size
    if image_size is None:
        if own is None:
            raise InputError("the model has no image size of its own; pass image_size=.")
        return own[0], own[1]
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if own is not None and embed.strict_img_size:
        if (height, width) != tuple(own):
            raise InputError(
                f"image_size={height}x{width}: the model takes {own[0]}x{own[1]} only; call "
                f"model.set_input_size(img_size=...) or create it with dynamic_img_size=True."
            )
        return height, width
    rows, columns = model.adapter.patch_size
    if min(height, width) < 1 or (not embed.dynamic_img_pad and (height % rows or width % columns)):
        raise InputError(f"image_size={height}x{width} is no multiple of the patch size {rows}x{columns}.")
    return height, width


def _num_patches(model: PrunedViT, size: tuple[int, int]) -> int:
    rows, columns = model.backbone.patch_embed.dynamic_feat_size(size)
    return int(rows) * int(columns)


def in_channels(model: PrunedViT) -> int:
    """Return the number of channels of the model's images."""
    convolutions = (m for m in model.backbone.patch_embed.modules() if isinstance(m, nn.Conv2d))
    return next(convolutions).in_channels


def _linear_macs(module: nn.Module) -> int:
    """MACs of a token that passes once through every linear layer of a module."""
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    return sum(layer.in_features * layer.out_features for layer in layers)


def _patch_embed_macs(model: PrunedViT, size: tuple[int, int]) -> int:
    embed = model.backbone.patch_embed
    if isinstance(embed, PatchEmbed):
        return _num_patches(model, size) * embed.proj.weight.numel()
    # a convolutional stem (hybrid models); its cost does not depend on the tokens, so it is counted
    images = next(embed.parameters()).new_zeros(1, in_channels(model), *size)
    return _counted(embed, lambda: embed(images))


def _block_macs(block: nn.Module, length: int) -> int:
    """A block on ``length`` tokens: its linear layers, ``Q K^T`` and the product with V."""
    attention: Any = block.attn
    products = 2
    if type(attention).__name__ == "DiffAttention" and attention.fused_attn:
        products = 3  # two half-wide maps, each of which multiplies the whole V
    return length * _linear_macs(block) + products * length**2 * int(attention.proj.in_features)


def _head_macs(adapter: BackboneAdapter, n: int) -> int:
    vit, num_prefix, macs = adapter.backbone, adapter.num_prefix_tokens, 0
    outputs = num_prefix + n if vit.global_pool == "" else 1  # without pooling all tokens are classified
    pool = getattr(vit, "attn_pool", None)
    if pool is not None:
        keys = n + (num_prefix if adapter.pools_prefix else 0)
        width = pool.kv.in_features
        queries = pool.latent_len
        macs += keys * _linear_macs(pool.kv) + 2 * queries * keys * width
        macs += queries * (_linear_macs(pool) - _linear_macs(pool.kv))
    heads = [vit.head, getattr(vit, "head_dist", None)]
    return macs + outputs * sum(_linear_macs(head) for head in heads if head is not None)


def _counted(module: nn.Module, forward: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with plain_inference(module), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        forward()
    return counter.get_total_flops() // 2


@contextmanager
def plain_inference(module: nn.Module) -> Iterator[None]:
    """Set eval mode and freeze the parameters; afterwards each has its own state again.

    Under ``no_grad`` a view of a trainable parameter, such as the query of attention pooling, still
    says that it requires a gradient; the counter then looks for a graph that does not exist.
    """
    modes = [(part, part.training) for part in module.modules()]
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        module.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)
