"""Reading the checkpoint formats that others publish.

Names are turned into timm's, and everything must fit: a tensor too many, too few or of another shape is
an error, never left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from dynavit.checkpoints.formats import FORMATS, detect_format, to_timm
from dynavit.checkpoints.state_dicts import in_full_precision, read_state
from dynavit.errors import InputError
from dynavit.models.backbone import create_backbone
from dynavit.models.factory import OWN, create_model
from dynavit.models.pruned_vit import PrunedViT
from dynavit.models.pruning import quarters

__all__ = ["FORMATS", "convert", "detect_format", "pooling_hint"]


def convert(
    checkpoint: str | Path | Mapping[str, Any],
    architecture: str,
    *,
    entry: str | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> PrunedViT:
    """Make a pruned model from a published checkpoint.

    ==========  =========================================================================================
    format      written by
    ==========  =========================================================================================
    dynamicvit  DynamicViT with DeiT, Rao et al. 2021, https://arxiv.org/abs/2106.02034: with scorers
    timm        timm, DeiT (distilled too) and EViT, which share their names
    hf-vit      Hugging Face ViT
    hf-deit     Hugging Face DeiT, which is distilled: ``deit_*_distilled_*`` in timm
    hf-dinov2   Hugging Face DINOv2, with and without registers
    ==========  =========================================================================================

    Whatever all names begin with (``module.``, ``model.``, ``timm_model.`` ...) is taken off by how well they then
    fit the architecture. What belongs to a larger model (``dino_head``), ``mask_token`` and decoder, which
    pre-training alone needs, and Hugging Face's ``pooler`` are left out, and a warning says so. What a state dict does
    not say comes from the architecture: number of heads, activation, how images are
    normalised, and the epsilon of layer norms, which is 1e-12 in Hugging Face's ViT and DeiT but 1e-6 in
    timm's: a relative difference of about 5e-7 over the tokens' variance.

    Args:
        checkpoint: file, folder with Hugging Face's ``model.safetensors`` or ``pytorch_model.bin`` (or an index of
            their shards), or the loaded content of one; see
            :func:`~dynavit.checkpoints.files.read_checkpoint`.
        architecture: timm name of the backbone.
        entry: which weights to take of a file with several sets, such as "model" or "model_ema"; averaged ones if
            None, by the rule of :func:`~dynavit.checkpoints.state_dicts.read_state`.
        num_classes: those of the checkpoint if None; another number leaves the head new.
        options: everything else that :func:`~dynavit.models.factory.create_model` takes. ``stages`` must
            be those that DynamicViT's scorers were trained for, (3, 6, 9) of 12 blocks by default;
            with ``img_size``, position embeddings of another (square) grid are resampled.

    Returns:
        The model in eval mode. ``model.metadata["converted_from"]`` names the format, and
        ``model.metadata["new_parts"]`` the parts that the checkpoint says nothing of.

    Warns:
        UserWarning: what was taken of a file that holds more than these weights.

    Raises:
        InputError: an unreadable file, an unknown format, weights that are not finite, or that do not fit the
            architecture; the message lists all that are missing, unknown or of another shape.

    Example:
        >>> import timm
        >>> published = timm.create_model("test_vit", num_classes=10).state_dict()
        >>> model = convert({"model": published}, "test_vit", keep_ratio=0.5)
        >>> model.num_classes, model.metadata
        (10, {'converted_from': 'timm', 'new_parts': []})
    """
    state = read_state(checkpoint, entry)
    if any(name.startswith("scorers.") for name in state.tensors):
        raise InputError(f"{state.where} is a model that dynavit saved: dynavit.load reads its folder.")
    state, source, problems = to_timm(state, _backbone_names(architecture, options))
    weights = state.tensors
    in_checkpoint = _classes(weights)
    if options.get("num_identities") is not None and num_classes is None:
        num_classes = 0
    wanted = in_checkpoint if num_classes is None else num_classes
    if source == "dynamicvit":
        options = _published_options(weights) | options
    model = create_model(architecture, num_classes=wanted, **options).eval()
    if source == "dynamicvit":
        _check_stages(weights, model)
    if wanted != in_checkpoint:
        weights = {name: value for name, value in weights.items() if not _is_head(name)}
    if "img_size" in options:
        _resample_positions(weights, model)
    own = model.state_dict()
    expected = ("backbone.", "scorers.") if source == "dynamicvit" else ("backbone.",)
    new = {name for name in own if not name.startswith(expected) or (_is_head(name) and wanted != in_checkpoint)}
    problems["missing"] += own.keys() - weights.keys() - new
    problems["unknown"] += weights.keys() - own.keys()
    problems["of another shape"] += [
        f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    ]
    _refuse(problems, state.where, source, architecture)
    model.load_state_dict(in_full_precision(replace(state, tensors=weights), own), strict=False)
    state.tell()
    parts = {"head" if name.startswith("backbone.") else name.partition(".")[0] for name in new}
    model.metadata = {"converted_from": source, "new_parts": sorted(parts)}
    return model


def _backbone_names(architecture: str, options: Mapping[str, Any]) -> list[str]:
    kwargs = {name: value for name, value in options.items() if name not in OWN}
    with torch.device("meta"):  # its names are all that is asked for
        return list(create_backbone(architecture, **kwargs, num_classes=1).state_dict())


def _is_head(name: str) -> bool:
    return name.startswith(("backbone.head.", "backbone.head_dist."))


def _classes(weights: Mapping[str, Tensor]) -> int:
    return next((len(value) for name, value in weights.items() if name.startswith("backbone.head.") and value.ndim), 0)


def _published_options(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return how DynamicViT prunes: at a quarter, half and three quarters of the depth, by learned scores."""
    depth = len({name.split(".")[2] for name in weights if name.startswith("backbone.blocks.")})
    return {"stages": quarters(depth), "selector": "topk", "scorer": "mlp", "reducer": "drop"}


def _check_stages(weights: Mapping[str, Tensor], model: PrunedViT) -> None:
    stages = {name.split(".")[1] for name in weights if name.startswith("scorers.")}
    if len(stages) != len(model.stages):
        raise InputError(
            f"stages={list(model.stages)}: the checkpoint has scorers for {len(stages)} stages; give the block "
            f"numbers that it was trained for."
        )


def _resample_positions(weights: dict[str, Tensor], model: PrunedViT) -> None:
    name = "backbone.pos_embed"
    own, theirs = getattr(model.backbone, "pos_embed", None), weights.get(name)
    if own is None or theirs is None or theirs.ndim != 3 or theirs.shape == own.shape:
        return
    prefix = 0 if model.backbone.no_embed_class else model.num_prefix_tokens
    side = isqrt(max(theirs.shape[1] - prefix, 0))
    if side > 0 and side**2 == theirs.shape[1] - prefix:
        new = list(model.adapter.grid_size)
        weights[name] = resample_abs_pos_embed(theirs, new_size=new, old_size=[side] * 2, num_prefix_tokens=prefix)


def _refuse(problems: Mapping[str, list[str]], where: str, source: str, architecture: str) -> None:
    found = {kind: _grouped(name.removeprefix("backbone.") for name in names) for kind, names in problems.items()}
    listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in found.items() if names)
    if not listed:
        return
    hint = ""
    shapes = found["of another shape"]
    if source == "hf-dinov2" and any(name.startswith("head.") for name in shapes):
        hint = (
            " Hugging Face's classifier reads the class token and the mean patch, timm's the class token alone: take "
            "num_classes=0, and model.reset_classifier for a new head."
        )
    elif any(name.startswith("pos_embed") for name in shapes):
        hint = " img_size=... resamples the position embeddings of a square grid."
    hint += pooling_hint(found["missing"], found["unknown"])
    raise InputError(f"{where}, in the format {source}, does not fit {architecture}. {listed}.{hint}")


def pooling_hint(missing: Iterable[str], unknown: Iterable[str], key: str = "") -> str:
    """Return what to do where all that differs is whether the last norm is before or after the tokens' mean."""
    last = [{name.partition(".")[0] for name in names} for names in (missing, unknown)]
    if "norm" in last[0] and "fc_norm" in last[1]:
        return f" Its last norm is fc_norm, so it was trained on the mean of the tokens: give {key}global_pool=avg."
    if "fc_norm" in last[0] and "norm" in last[1]:
        return f" Its last norm is that of all tokens: leave {key}global_pool out, or add {key}fc_norm=False."
    return ""


def _grouped(names: Iterable[str]) -> list[str]:
    """Write names that differ in their first number as one: ``blocks.{0,1}.norm1.bias``."""
    groups: dict[str, list[int]] = defaultdict(list)
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        numbers = groups[name if number is None else f"{name[: number.start()]}#{name[number.end() :]}"]
        if number is not None:
            numbers.append(int(number[0]))
    return sorted(name.replace("#", _braced(numbers)) for name, numbers in groups.items())


def _braced(numbers: list[int]) -> str:
    listed = ",".join(map(str, sorted(numbers)))
    return f"{{{listed}}}" if len(numbers) > 1 else listed
