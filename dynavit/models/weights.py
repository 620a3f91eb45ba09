"""Starting from one's own weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from dynavit.errors import InputError
from dynavit.models.factory import create_backbone, load
from dynavit.models.pruned_vit import PrunedViT

_GRID = ("img_size", "patch_stride")  # what may differ from a saved model: positions are resampled
_RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")  # no weights depend on it


def load_backbone(
    checkpoint: str | Path, architecture: str | None, classes: Sequence[str] | None, **kwargs: Any
) -> tuple[nn.Module, str, dict[str, Any], bool]:
    """Build a backbone from a checkpoint of one's own.

    Args:
        checkpoint: a folder that dynavit wrote, or a state dict (.safetensors, .pth, .pt, .bin).
        architecture: timm name; needed for a state dict, checked against a folder.
        classes: names of the classes wanted; the head is replaced where the checkpoint has others.
        kwargs: for timm, with a state dict.

    Returns:
        The backbone, its timm name and arguments, and whether the head was replaced.

    Raises:
        InputError: missing, damaged or mismatching checkpoint; mismatches are listed.
    """
    path = _existing(checkpoint)
    if path.is_dir():
        model = _load_folder(path, architecture)
        if kwargs:
            raise InputError(
                f"model.kwargs={kwargs}: {path} already says how its {model.architecture} is built; "
                f"leave model.kwargs out."
            )
        assert model.architecture is not None
        replaced = classes is not None and (model.neck is not None or list(classes) != _classes_of(model))
        if classes is not None and replaced:
            model.backbone.reset_classifier(len(classes))
        return model.backbone, model.architecture, model.model_kwargs, replaced
    if architecture is None:
        raise InputError(f"{path}: a state dict needs model.architecture=TIMM_NAME.")
    if classes is not None:
        kwargs = {**kwargs, "num_classes": len(classes)}
    backbone = create_backbone(architecture, **kwargs)
    return backbone, architecture, kwargs, _load_matching(backbone, _read_state(path), path)


@dataclass(frozen=True)
class ReidStart:
    """What a re-identification run starts from.

    Attributes:
        backbone: without a classifier.
        architecture: its timm name.
        model_kwargs: what it is made with.
        neck: state of the checkpoint's neck, where that was trained on the same identities.
        side: state of the checkpoint's side embedding, if it has one.
        metadata: what was saved with the checkpoint, such as the names of its cameras.
    """

    backbone: nn.Module
    architecture: str
    model_kwargs: dict[str, Any]
    neck: Mapping[str, Tensor] | None = None
    side: Mapping[str, Tensor] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def restore(self, model: PrunedViT) -> tuple[str, ...]:
        """Give a model around this backbone what else of the checkpoint fits it.

        Returns:
            Those of "neck" and "side" that were restored; the others are as new.
        """
        restored = []
        for name, state in (("neck", self.neck), ("side", self.side)):
            part = getattr(model, name)
            if part is None or state is None:
                continue
            shapes = {key: value.shape for key, value in part.state_dict().items()}
            if shapes == {key: value.shape for key, value in state.items()}:
                part.load_state_dict(state)
                restored.append(name)
        return tuple(restored)


def load_reid_start(
    checkpoint: str | Path, architecture: str | None, identities: Sequence[str] | None, **kwargs: Any
) -> ReidStart:
    """Read the start of a re-identification run from a checkpoint of one's own.

    Args:
        checkpoint: a folder that dynavit wrote, for classification or re-identification, or a state
            dict; classifiers are left out.
        architecture: timm name; needed for a state dict, checked against a folder.
        identities: names of the training identities; None for those of the checkpoint.
        kwargs: for timm, with a state dict; with a folder drop rates may differ from it, and ``img_size``
            and ``patch_stride``, for which position embeddings are resampled.

    Raises:
        InputError: missing, damaged or mismatching checkpoint; mismatches are listed.
    """
    path = _existing(checkpoint)
    if not path.is_dir():
        if architecture is None:
            raise InputError(f"{path}: a state dict needs model.architecture=TIMM_NAME.")
        kwargs = {**kwargs, "num_classes": 0}
        backbone = create_backbone(architecture, **kwargs)
        _load_matching(backbone, _read_state(path), path)
        return ReidStart(backbone, architecture, kwargs)
    model = _load_folder(path, architecture)
    assert model.architecture is not None
    if not kwargs.keys() <= {*_GRID, *_RATES}:
        raise InputError(
            f"model.kwargs={kwargs}: {path} already says how its {model.architecture} is built; give "
            f"{', '.join((*_GRID, *_RATES))} at most."
        )
    same = identities is None or list(identities) == _classes_of(model)
    neck = None if model.neck is None or not same else model.neck.state_dict()
    side = None if model.side is None else model.side.state_dict()
    model.backbone.reset_classifier(0)
    kwargs = {**model.model_kwargs, **kwargs, "num_classes": 0}
    backbone = model.backbone
    if any(kwargs.get(key) != model.model_kwargs.get(key) for key in (*_GRID, *_RATES)):
        backbone = _regridded(backbone, model.architecture, kwargs)
    return ReidStart(backbone, model.architecture, kwargs, neck, side, model.metadata)


def _existing(checkpoint: str | Path) -> Path:
    path = Path(checkpoint)
    if not path.exists():
        raise InputError(
            f"{path} does not exist, seen from {Path.cwd()}: model.checkpoint names a folder that dynavit wrote, or a "
            f"state dict."
        )
    return path


def _load_folder(path: Path, architecture: str | None) -> PrunedViT:
    model = load(path)
    if architecture not in (None, model.architecture):
        raise InputError(
            f"model.architecture={architecture} but {path} holds a {model.architecture}: leave "
            f"model.architecture out, or start from another checkpoint."
        )
    return model


def _classes_of(model: PrunedViT) -> list[str]:
    return list(model.metadata.get("class_names") or [str(number) for number in range(model.num_classes)])


def _regridded(old: Any, architecture: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return the same backbone for another image size or stride."""
    new: Any = create_backbone(architecture, **kwargs)
    new.reset_classifier(0, old.global_pool)
    state = old.state_dict()
    if "pos_embed" in state:
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"],
            new_size=list(new.patch_embed.grid_size),
            old_size=list(old.patch_embed.grid_size),
            num_prefix_tokens=0 if old.no_embed_class else old.num_prefix_tokens,
        )
    try:
        new.load_state_dict(state)
    except RuntimeError as error:  # positions that are not one embedding a patch
        reason = " ".join(str(error).split()[:40])
        raise InputError(
            f"img_size, patch_stride: {architecture} cannot take another grid of patches ({reason} ...)."
        ) from None
    return new


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: model.checkpoint names a folder or a state dict.") from None
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is no readable state dict ({reason}).") from None
    for wrapper in ("state_dict_ema", "state_dict", "model", "module"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict: expected a mapping of names to tensors.")
    # resampling positions in half precision would round them once more
    half = (torch.float16, torch.bfloat16)
    state = {name: value.float() if value.dtype in half else value for name, value in state.items()}
    return {name.removeprefix("module."): value for name, value in state.items()}


def _load_matching(backbone: Any, state: dict[str, Tensor], path: Path) -> bool:
    """Load everything but a head of other classes; returns whether the head was left new."""
    try:
        state = checkpoint_filter_fn(state, cast(VisionTransformer, backbone))
    except RuntimeError as error:  # positions of a grid that cannot be guessed
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} does not fit the architecture: its tensors cannot be resampled ({reason}).") from None
    own = backbone.state_dict()
    head = {name for name in state if name.startswith("head")}
    if backbone.num_classes > 0:  # one that fits, or that the architecture does not know, is no other head
        head = {name for name in head if name in own and state[name].shape != own[name].shape}
    for name in head:
        del state[name]
    shapes = [
        f"{name} {tuple(value.shape)} != {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    missing = sorted(name for name in own.keys() - state.keys() if not name.startswith("head"))
    problems = {"missing": missing, "unknown": sorted(state.keys() - own.keys()), "other shape": shapes}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(names[:5])}" for kind, names in problems.items() if names)
        raise InputError(f"{path} does not fit the architecture. {listed}.")
    backbone.load_state_dict(state, strict=False)
    return bool(head) or not any(name.startswith("head") for name in state)
