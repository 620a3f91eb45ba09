"""What a forward costs: multiply-accumulates (MACs), by arithmetic and by counting.

One MAC is one multiplication and one addition; papers often print it as a "FLOP", PyTorch's counter
as two. Matrix products and convolutions count; biases, norms, activations, softmax and the sorting
of scores do not.

Shapes: P prefix tokens, N original patch tokens, n patch tokens present.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynavit.adapters import BackboneAdapter
from dynavit.errors import InputError
from dynavit.models import PrunedViT


def closed_form_macs(
    model: PrunedViT,
    keep_ratios: float | Sequence[float] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> int:
    """Return the MACs of one image in eval, where dropped tokens are removed, without running it.

    Of a model of several spectra one image is one sample, here and in the other functions.

    Args:
        model: pruned model; not changed.
        keep_ratios: as :meth:`PrunedViT.set_keep_ratio` takes them; the model's own if None. Of a model with
            thresholds the cost of an image that keeps just that; see :func:`mean_macs`.
        image_size: height and width in pixels, or the side of a square; the model's own if None.

    Raises:
        InputError: impossible ratios or size.

    Example:
        >>> import dynavit
        >>> model = dynavit.create_model("test_vit", stages=(2, 4), keep_ratio=0.5)
        >>> closed_form_macs(model) / closed_form_macs(model, keep_ratios=1.0)
        0.635...
    """
    if keep_ratios is not None:
        model = model.at_ratio(keep_ratios)
    size = checked_size(model, image_size)
    macs = _patch_embed_macs(model, size) + sum(_macs(model, size, tokens_per_stage(model, size)))
    return model.num_spectra * macs


def scoring_macs(model: PrunedViT, image_size: int | tuple[int, int] | None = None) -> int:
    """Return the part of :func:`closed_form_macs` that scoring tokens takes, or comparing them to be merged."""
    size = checked_size(model, image_size)
    return model.num_spectra * _macs(model, size, tokens_per_stage(model, size))[1]


def mean_macs(model: PrunedViT, counts: Tensor, image_size: int | tuple[int, int] | None = None) -> float:
    """Return the mean MACs of an image where images keep different numbers of tokens, each run by itself.

    Args:
        model: pruned model with thresholds.
        counts: ``(..., S)`` tokens that each image kept at each stage, those that the reducer made not included.
        image_size: as in :func:`closed_form_macs`.
    """
    size = checked_size(model, image_size)
    kinds, numbers = counts.flatten(0, -2).unique(dim=0, return_counts=True)
    macs = [sum(_macs(model, size, kind)) for kind in kinds.tolist()]
    mean = sum(one * number for one, number in zip(macs, numbers.tolist(), strict=True)) / int(numbers.sum())
    return model.num_spectra * (_patch_embed_macs(model, size) + mean)


def _macs(model: PrunedViT, size: tuple[int, int], counts: Sequence[int]) -> tuple[int, int]:
    """Return the MACs of an image that keeps ``counts`` tokens, from the first block on, and of scoring them."""
    num_prefix, n, steps = model.num_prefix_tokens, _num_patches(model, size), model.steps()
    macs, scoring = 0, 0
    for number, block in enumerate(model.backbone.blocks):
        step, seen = steps.get(number), n
        if step is not None and (model.thresholds or step.keep_ratio < 1):  # otherwise it is skipped
            k = min(counts[step.stage], n)
            choosing, reducing = step.macs(n, k, model.adapter)
            scoring, macs, n = scoring + choosing, macs + reducing, step.leaves(n, k)
        if model.placement == "before":
            seen = n
        macs += _block_macs(block, num_prefix + seen, num_prefix + n)
    return macs + _head_macs(model.adapter, n), scoring


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
    images = model.as_samples(parameter.new_zeros(batch_size, model.adapter.in_chans, *size))
    inputs = model.unknown_cameras(batch_size)
    scorer: Any = next(iter(model.scorers), None)
    if scorer is not None and scorer.guides and model.num_spectra == 1:
        inputs["guide"] = parameter.new_zeros(batch_size, scorer.guides, model.embed_dim)
    return _counted(model, lambda: model(images, **inputs)) // batch_size


def tokens_per_stage(model: PrunedViT, image_size: int | tuple[int, int] | None = None) -> list[int]:
    """Return the number of patch tokens that each stage keeps, without those that the reducer makes.

    Raises:
        InputError: the model does not take this size.

    Example:
        >>> import dynavit
        >>> tokens_per_stage(dynavit.create_model("test_vit", stages=(2, 4), keep_ratio=0.5))
        [50, 25]
    """
    num_patches = _num_patches(model, checked_size(model, image_size))
    counts: list[int] = model.stage_counts(num_patches)
    return counts


def checked_size(model: PrunedViT, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width: the model's own if None is given.

    Raises:
        InputError: a size that the model cannot run at.
    """
    embed, own = model.adapter.stem, model.adapter.image_size
    if image_size is None:
        if own is None:
            raise InputError("the model has no image size of its own; pass image_size=.")
        return own
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if own is not None and getattr(embed, "strict_img_size", False):
        if (height, width) != own:
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
    return math.prod(model.adapter.grid_of(size))


def _linear_macs(module: nn.Module) -> int:
    """MACs of a token that passes once through every linear layer of a module."""
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    return sum(layer.in_features * layer.out_features for layer in layers)


def _patch_embed_macs(model: PrunedViT, size: tuple[int, int]) -> int:
    embed = model.adapter.stem
    if isinstance(embed, PatchEmbed):
        return _num_patches(model, size) * embed.proj.weight.numel()
    # a convolutional stem (hybrid models); its cost does not depend on the tokens, so it is counted
    images = next(embed.parameters()).new_zeros(1, model.adapter.in_chans, *size)
    return _counted(embed, lambda: embed(images))


def _block_macs(block: nn.Module, length: int, mlp_length: int) -> int:
    """A block whose attention sees ``length`` tokens: its linear layers, ``Q K^T`` and the product with V."""
    attention: Any = block.attn
    products = 2
    if type(attention).__name__ == "DiffAttention" and attention.fused_attn:
        products = 3  # two half-wide maps, each of which multiplies the whole V
    linear = length * _linear_macs(attention) + mlp_length * (_linear_macs(block) - _linear_macs(attention))
    return linear + products * length**2 * int(attention.proj.in_features)


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
