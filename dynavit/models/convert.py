"""Reading the checkpoint formats that others publish.

Names are turned into timm's, and everything must fit: a tensor too many, too few or of another shape is
an error, never left out.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from dynavit.errors import InputError
from dynavit.models.factory import create_model
from dynavit.models.pruned_vit import PrunedViT

FORMATS = ("dynamicvit", "timm", "hf-vit", "hf-deit", "hf-dinov2")

_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder of the Hugging Face Hub
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_PREDICTOR_PARTS = {"in_conv": "embed", "out_conv": "score"}

_HF_PREFIX = re.compile(r"^(vit|deit|dinov2|dinov2_with_registers)\.")
_HF_DROPPED = {"embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"}
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
    dynamicvit  DynamicViT with DeiT, Rao et al. 2021, https://arxiv.org/abs/2106.02034: with predictors
    timm        timm, DeiT (distilled too) and EViT, which share their names
    hf-vit      Hugging Face ViT
    hf-deit     Hugging Face DeiT, which is distilled: ``deit_*_distilled_*`` in timm
    hf-dinov2   Hugging Face DINOv2, with and without registers
    ==========  =========================================================================================

    Of Hugging Face's, ``mask_token`` (needed in pre-training only) and ``pooler`` are left out. What a
    state dict does not say comes from the architecture: number of heads, activation, how images are
    normalised, and the epsilon of layer norms, which is 1e-12 in Hugging Face's ViT and DeiT but 1e-6 in
    timm's: a relative difference of about 5e-7 over the tokens' variance.

    Args:
        checkpoint: file, folder with Hugging Face's ``model.safetensors`` or ``pytorch_model.bin``, or
            the loaded content of one. Pickles may hold plain data, tensors and ``argparse.Namespace``.
        architecture: timm name of the backbone.
        entry: which weights to take of a file with several sets, such as "model" or "model_ema".
        num_classes: those of the checkpoint if None; another number leaves the head new.
        options: everything else that :func:`~dynavit.models.factory.create_model` takes. ``stages`` must
            be those that DynamicViT's predictors were trained for, (3, 6, 9) of 12 blocks by default;
            with ``img_size``, position embeddings of another (square) grid are resampled.

    Returns:
        The model in eval mode. ``model.metadata["converted_from"]`` names the format, and
        ``model.metadata["new_parts"]`` the parts that the checkpoint says nothing of.

    Raises:
        InputError: an unreadable file, an unknown format, or weights that do not fit the architecture;
            the message lists all that are missing, unknown or of another shape.

    Example:
        >>> import timm
        >>> published = timm.create_model("test_vit", num_classes=10).state_dict()
        >>> model = convert({"model": published}, "test_vit", keep_ratio=0.5)
        >>> model.num_classes, model.metadata
        (10, {'converted_from': 'timm', 'new_parts': ['predictors']})
    """
    state = _unwrapped(_read(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint, entry)
    source = detect_format(state)
    weights, problems = _renamed(state, source)
    given = _classes(weights)
    if options.get("num_identities") is not None and num_classes is None:
        num_classes = 0
    wanted = given if num_classes is None else num_classes
    model = create_model(architecture, num_classes=wanted, **options).eval()
    if source == "dynamicvit":
        _check_stages(weights, model)
    if wanted != given:
        weights = {name: value for name, value in weights.items() if not _is_head(name)}
    if "img_size" in options:
        _resample_positions(weights, model)
    own = model.state_dict()
    told = ("backbone.", "predictors.") if source == "dynamicvit" else ("backbone.",)
    new = {name for name in own if not name.startswith(told) or (_is_head(name) and wanted != given)}
    problems["missing"] += own.keys() - weights.keys() - new
    problems["unknown"] += weights.keys() - own.keys()
    problems["of another shape"] += [
        f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    ]
    _refuse(problems, source, architecture)
    model.load_state_dict(weights, strict=False)
    parts = {"head" if name.startswith("backbone.") else name.partition(".")[0] for name in new}
    model.metadata = {"converted_from": source, "new_parts": sorted(parts)}
    return model


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
        f"names such as {', '.join(sorted(state)[:3])} belong to none of the known formats: {', '.join(FORMATS)}.{hint}"
    )


def _read(checkpoint: str | Path) -> Any:
    path = Path(checkpoint)
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).exists()]
        if not found:
            raise InputError(f"{path} holds neither {' nor '.join(_FILES)}: name the file itself.")
        path = found[0]
    if not path.exists():
        raise InputError(f"{path} does not exist, seen from {Path.cwd()}: give a file or a folder.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):  # the arguments of the training script
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way it likes
        # torch explains at length; what went wrong, and with which class, stands behind this
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0].partition(". ")[0]
        raise InputError(
            f"{path} cannot be read ({reason or type(error).__name__}). A file with more in it than tensors, plain "
            f"data and argparse.Namespace has to be saved again with its weights alone, by someone who trusts it."
        ) from error


def _unwrapped(content: Any, entry: str | None) -> dict[str, Tensor]:
    """Return the weights in a checkpoint, by plain names and in full precision."""
    if not _is_state(content):
        sets = (
            {key: value for key, value in content.items() if _is_state(value)} if isinstance(content, Mapping) else {}
        )
        if not sets:
            raise InputError("the checkpoint holds no state dict: expected a mapping of names to tensors.")
        # timm's tools prefer the average, DeiT's the plain weights: no choice would be right for all
        if entry is None and len(sets) > 1:
            raise InputError(f"the checkpoint holds several sets of weights: choose with entry={_either(sets)}.")
        if entry is not None and entry not in sets:
            raise InputError(f"entry={entry!r}: the checkpoint has no such weights; it has {_either(sets)}.")
        content = sets[entry] if entry is not None else next(iter(sets.values()))
    elif entry is not None:
        raise InputError(f"entry={entry!r}: the checkpoint is one plain state dict; leave entry out.")
    state = {name: value.float() if value.is_floating_point() else value for name, value in content.items()}
    while prefix := next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _either(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _renamed(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Return the weights by our names, and what was wrong with theirs."""
    rename = {"timm": _of_backbone, "dynamicvit": _from_dynamicvit}.get(source, _from_hf)
    problems: dict[str, list[str]] = {"missing": [], "unknown": [], "twice there": [], "of another shape": []}
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        target = rename(name)
        if target in weights:
            problems["twice there"].append(name)
        elif target is not None:
            weights[target] = value
        elif _HF_PREFIX.sub("", name) not in _HF_DROPPED or rename is not _from_hf:
            problems["unknown"].append(name)
    if source == "dynamicvit":
        _merge_outputs(weights, problems)
    if rename is _from_hf:
        _merge_qkv(weights, problems)
        _merge_class_position(weights)
    return weights, problems


def _of_backbone(name: str) -> str:
    return f"backbone.{name}"


def _from_dynamicvit(name: str) -> str | None:
    if not name.startswith("score_predictor."):
        return _of_backbone(name)
    match = re.fullmatch(r"score_predictor\.(\d+)\.(in_conv|out_conv)\.(.+)", name)
    return match and f"predictors.{match[1]}.{_PREDICTOR_PARTS[match[2]]}.{match[3]}"


def _merge_outputs(weights: dict[str, Tensor], problems: dict[str, list[str]]) -> None:
    """Make one logit of two outputs, of which the first means keep.

    They end in a LogSoftmax, and softmax([l0, l1])[0] = sigmoid(l0 - l1).
    """
    for name in [name for name in weights if re.fullmatch(r"predictors\.\d+\.score\.4\.(weight|bias)", name)]:
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


def _is_head(name: str) -> bool:
    return name.startswith(("backbone.head.", "backbone.head_dist."))


def _classes(weights: Mapping[str, Tensor]) -> int:
    return next((len(value) for name, value in weights.items() if name.startswith("backbone.head.") and value.ndim), 0)


def _check_stages(weights: Mapping[str, Tensor], model: PrunedViT) -> None:
    stages = {name.split(".")[1] for name in weights if name.startswith("predictors.")}
    if len(stages) != len(model.stages):
        raise InputError(
            f"stages={list(model.stages)}: the checkpoint has predictors for {len(stages)} stages; give the block "
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


def _refuse(problems: Mapping[str, list[str]], source: str, architecture: str) -> None:
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
    raise InputError(f"the {source} checkpoint does not fit {architecture}. {listed}.{hint}")


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
