"""Names that others give to the weights of Vision Transformers, turned into timm's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dynavit.checkpoints.state_dicts import StateDict, fit_names
from dynavit.errors import InputError
from dynavit.text import listed, spread

FORMATS = ("dynamicvit", "timm", "hf-vit", "hf-deit", "hf-dinov2")

_PREDICTOR_PARTS = {"in_conv": "embed", "out_conv": "score"}

_HF_PREFIX = re.compile(r"^(vit|deit|dinov2|dinov2_with_registers)\.")
_HF_DROPPED = {"embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"}
# of pre-training only, in timm's names: of DINOv2 and BEiT, and the decoder of MAE
_PRETRAINING = re.compile(r"mask_token|decoder_.+|decoder\..+")
_DINOV2 = {"register_tokens": "reg_token"}
_DINOV2_MLP = {"w12": "fc1", "w3": "fc2"}  # SwiGLU of the giant one
_HF_TOKENS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
}
_HF_MODULES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
    "cls_classifier": "head",
    "distillation_classifier": "head_dist",
}
_HF_BLOCK = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)")
# the names in files, and those that transformers 5 has in memory
_HF_IN_BLOCK = {
    "layernorm_before": "norm1",
    "norm1": "norm1",
    "attention.attention.query": "attn.query",
    "attention.q_proj": "attn.query",
    "attention.attention.key": "attn.key",
    "attention.k_proj": "attn.key",
    "attention.attention.value": "attn.value",
    "attention.v_proj": "attn.value",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layer_scale1": "ls1",
    "layernorm_after": "norm2",
    "norm2": "norm2",
    "intermediate.dense": "mlp.fc1",
    "mlp.fc1": "mlp.fc1",
    "mlp.weights_in": "mlp.fc1",  # SwiGLU of the giant DINOv2
    "output.dense": "mlp.fc2",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_out": "mlp.fc2",
    "layer_scale2": "ls2",
}


def detect_format(state: Mapping[str, Any]) -> str:
    """Return which of ``FORMATS`` the names of a state dict are written in.

    DeiT and EViT add nothing to timm's names, so theirs are "timm".

    Raises:
        InputError: none of them.

    Example:
        >>> detect_format({"vit.embeddings.cls_token": None, "vit.layernorm.weight": None})
        'hf-vit'
    """
    names = {_HF_PREFIX.sub("", name) for name in state}
    if any(name.startswith("score_predictor.") for name in names):
        return "dynamicvit"
    if any(name.startswith("embeddings.") for name in names):
        if any(".layer_scale1." in name for name in names):
            return "hf-dinov2"
        return "hf-deit" if "embeddings.distillation_token" in names else "hf-vit"
    if any(name.startswith("blocks.") for name in names):
        return "timm"
    hint = " dynavit.load reads what dynavit saved." if any(name.startswith("backbone.") for name in names) else ""
    raise InputError(
        f"names such as {listed(spread(state), 5)} belong to none of the known formats: {', '.join(FORMATS)}.{hint}"
    )


def to_timm(state: StateDict, own: Iterable[str]) -> tuple[StateDict, str, dict[str, list[str]]]:
    """Turn the names of a state dict into a pruned model's, after taking off what they all begin with.

    Args:
        state: as read.
        own: names of the backbone's weights, as timm has them.

    Returns:
        The weights, by names that begin with ``backbone.`` or, of DynamicViT, ``scorers.``; which of ``FORMATS``
        they were in; and which names are wrong, by kind of fault.

    Raises:
        InputError: names of no known format.
    """
    names = {_of_backbone(name) for name in own}
    names |= {name.replace(".qkv.", f".{part}.") for name in names for part in ("query", "key", "value")}
    state = fit_names(state, names, lambda name: _from_hf(name) or _of_backbone(name))
    try:
        source = detect_format(state.tensors)
    except InputError as error:
        raise InputError(f"{state.where}: {error}") from None
    weights, problems, dropped = _renamed(state.tensors, source)
    return replace(state, tensors=weights, left_out=(*state.left_out, *dropped)), source, problems


def _renamed(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, list[str]], list[str]]:
    """Return the weights by our names, what was wrong with theirs, and what is of no use here."""
    timm = _from_dinov2 if {"mask_token", "register_tokens"} & state.keys() else _of_backbone
    rename = {"timm": timm, "dynamicvit": _from_dynamicvit}.get(source, _from_hf)
    problems: dict[str, list[str]] = {"missing": [], "unknown": [], "twice there": [], "of another shape": []}
    weights: dict[str, Tensor] = {}
    dropped: list[str] = []
    for name, value in state.items():
        target = rename(name)
        if _HF_PREFIX.sub("", name) in _HF_DROPPED if rename is _from_hf else _PRETRAINING.fullmatch(name):
            dropped.append(name)
        elif target in weights:
            problems["twice there"].append(name)
        elif target is not None:
            weights[target] = value
        else:
            problems["unknown"].append(name)
    if source == "dynamicvit":
        _merge_outputs(weights, problems)
    if rename is _from_hf:
        _merge_qkv(weights, problems)
    if rename in (_from_hf, _from_dinov2):
        _merge_class_position(weights)
    return weights, problems, dropped


def _of_backbone(name: str) -> str:
    return f"backbone.{name}"


def _from_dinov2(name: str) -> str:
    """Return our name for one of the released DINOv2, which are nearly timm's."""
    module, _, kind = name.rpartition(".")
    block, _, part = module.rpartition(".")
    if block.endswith(".mlp") and part in _DINOV2_MLP:
        name = f"{block}.{_DINOV2_MLP[part]}.{kind}"
    return _of_backbone(_DINOV2.get(name, name))


def _from_dynamicvit(name: str) -> str | None:
    if not name.startswith("score_predictor."):
        return _of_backbone(name)
    match = re.fullmatch(r"score_predictor\.(\d+)\.(in_conv|out_conv)\.(.+)", name)
    return match and f"scorers.{match[1]}.{_PREDICTOR_PARTS[match[2]]}.{match[3]}"


def _merge_outputs(weights: dict[str, Tensor], problems: dict[str, list[str]]) -> None:
    """Make one logit of two outputs, of which the first means keep.

    They end in a LogSoftmax, and softmax([l0, l1])[0] = sigmoid(l0 - l1).
    """
    for name in [name for name in weights if re.fullmatch(r"scorers\.\d+\.score\.4\.(weight|bias)", name)]:
        value = weights.pop(name)
        if value.shape[:1] == (2,):
            weights[name] = value[:1] - value[1:]
        else:
            problems["of another shape"].append(f"{name} {tuple(value.shape)} instead of two outputs")


def _from_hf(name: str) -> str | None:
    name = _HF_PREFIX.sub("", name)
    if name in _HF_TOKENS:
        return _of_backbone(_HF_TOKENS[name])
    module, _, kind = name.rpartition(".")
    kind = "gamma" if kind == "lambda1" else kind
    if module in _HF_MODULES:
        return _of_backbone(f"{_HF_MODULES[module]}.{kind}")
    match = _HF_BLOCK.fullmatch(module)
    if match is None or match[2] not in _HF_IN_BLOCK:
        return None
    return _of_backbone(f"blocks.{match[1]}.{_HF_IN_BLOCK[match[2]]}.{kind}")


def _merge_qkv(weights: dict[str, Tensor], problems: dict[str, list[str]]) -> None:
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name in [name for name in weights if re.search(r"\.attn\.(query|key|value)\.(weight|bias)$", name)]:
        before, part, kind = name.rsplit(".", 2)
        parts[f"{before}.qkv.{kind}"][part] = weights.pop(name)
    for name, found in parts.items():
        absent = {"query", "key", "value"} - found.keys()
        problems["missing"] += [name.replace("qkv", part) for part in absent]
        if len({value.shape for value in found.values()}) > 1:
            problems["of another shape"].append(f"{name}: its query, key and value differ")
        elif not absent:
            weights[name] = torch.cat([found["query"], found["key"], found["value"]])


def _merge_class_position(weights: dict[str, Tensor]) -> None:
    """Add the class token's position to it where there are registers, as timm's models have none for it."""
    names = [f"backbone.{name}" for name in ("reg_token", "cls_token", "pos_embed")]
    _, token, positions = names
    if all(name in weights for name in names) and weights[token].shape == weights[positions][:, :1].shape:
        weights[token] = weights[token] + weights[positions][:, :1]
        weights[positions] = weights[positions][:, 1:]
