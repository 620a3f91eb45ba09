"""Starting from one's own weights."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from dynavit.errors import InputError
from dynavit.models.factory import load


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
    path = Path(checkpoint)
    if not path.exists():
        raise InputError(
            f"{path} does not exist, seen from {Path.cwd()}: model.checkpoint names a folder that dynavit wrote, or a "
            f"state dict."
        )
    if path.is_dir():
        model = load(path)
        if architecture not in (None, model.architecture):
            raise InputError(
                f"model.architecture={architecture} but {path} holds a {model.architecture}: leave "
                f"model.architecture out, or start from another checkpoint."
            )
        if kwargs:
            raise InputError(
                f"model.kwargs={kwargs}: {path} already says how its {model.architecture} is built; "
                f"leave model.kwargs out."
            )
        assert model.architecture is not None
        known = model.metadata.get("class_names") or [str(number) for number in range(model.num_classes)]
        replaced = classes is not None and list(classes) != list(known)
        if classes is not None and replaced:
            model.reset_classifier(len(classes))
        return model.backbone, model.architecture, model.model_kwargs, replaced
    if architecture is None:
        raise InputError(f"{path}: a state dict needs model.architecture=TIMM_NAME.")
    if classes is not None:
        kwargs = {**kwargs, "num_classes": len(classes)}
    backbone = timm.create_model(architecture, **kwargs)
    return backbone, architecture, kwargs, _load_matching(backbone, _read_state(path), path)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
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
    return {name.removeprefix("module."): value for name, value in state.items()}


def _load_matching(backbone: nn.Module, state: dict[str, Tensor], path: Path) -> bool:
    """Load everything but a head of other classes; returns whether the head was left new."""
    state = checkpoint_filter_fn(state, cast(VisionTransformer, backbone))
    own = backbone.state_dict()
    head = {name for name in state if name in own and name.startswith("head") and state[name].shape != own[name].shape}
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
