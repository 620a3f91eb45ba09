"""Starting from one's own weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from dynavit.checkpoints.matching import load_matching
from dynavit.checkpoints.state_dicts import check_numbers, read_state
from dynavit.errors import InputError
from dynavit.models.backbone import RATES, create_backbone
from dynavit.models.loading import load
from dynavit.models.pruned_vit import PrunedViT
from dynavit.text import first_line

_GRID = ("img_size", "patch_stride")  # what may differ from a saved model: positions are resampled


def load_backbone(
    checkpoint: str | Path,
    architecture: str | None,
    classes: Sequence[str] | None,
    *,
    entry: str | None = None,
    **kwargs: Any,
) -> tuple[nn.Module, str, dict[str, Any], bool]:
    """Build a backbone from a checkpoint of one's own.

    Args:
        checkpoint: a folder that dynavit wrote, or whatever :func:`~dynavit.checkpoints.state_dicts.read_state` reads.
        architecture: timm name; needed for a state dict, checked against a folder.
        classes: names of the classes wanted; the head is replaced where the checkpoint has others.
        entry: which weights to take of a state dict's file with several sets.
        kwargs: for timm; with a folder they have to be its own, but for drop rates, and for ``img_size`` and
            ``patch_stride``, for which position embeddings are resampled.

    Returns:
        The backbone, its timm name and arguments, and whether the head was replaced.

    Warns:
        UserWarning: what was taken of a file that holds more than these weights; not without ``classes``, which is
            but a look at the backbone.

    Raises:
        InputError: missing, damaged or mismatching checkpoint; mismatches are listed.
    """
    path = _existing(checkpoint)
    if _is_ours(path):
        model = _load_folder(path, architecture, entry)
        assert model.architecture is not None
        replaced = classes is not None and (model.neck is not None or list(classes) != _classes_of(model))
        if classes is not None and replaced:
            model.backbone.reset_classifier(len(classes))
        kwargs = _folder_kwargs(model, kwargs, path) | {"num_classes": model.backbone.num_classes}
        return _with_kwargs(model, kwargs), model.architecture, kwargs, replaced
    architecture = _architecture(path, architecture)
    if classes is not None:
        kwargs = {**kwargs, "num_classes": len(classes)}
    backbone = create_backbone(architecture, **kwargs)
    return backbone, architecture, kwargs, load_matching(backbone, read_state(path, entry), classes is not None)


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
    checkpoint: str | Path,
    architecture: str | None,
    identities: Sequence[str] | None,
    *,
    entry: str | None = None,
    **kwargs: Any,
) -> ReidStart:
    """Read the start of a re-identification run from a checkpoint of one's own.

    Args:
        checkpoint: a folder that dynavit wrote, for classification or re-identification, or a state
            dict; classifiers are left out.
        identities: names of the training identities; None for those of the checkpoint.
        architecture, entry, kwargs: as for :func:`load_backbone`.

    Warns:
        UserWarning: what was taken of a file that holds more than these weights.

    Raises:
        InputError: missing, damaged or mismatching checkpoint; mismatches are listed.
    """
    path = _existing(checkpoint)
    if not _is_ours(path):
        architecture = _architecture(path, architecture)
        kwargs = {**kwargs, "num_classes": 0}
        backbone = create_backbone(architecture, **kwargs)
        load_matching(backbone, read_state(path, entry), identities is not None)
        return ReidStart(backbone, architecture, kwargs)
    model = _load_folder(path, architecture, entry)
    assert model.architecture is not None
    same = identities is None or list(identities) == _classes_of(model)
    neck = None if model.neck is None or not same else model.neck.state_dict()
    side = None if model.side is None else model.side.state_dict()
    model.backbone.reset_classifier(0)
    kwargs = _folder_kwargs(model, kwargs, path) | {"num_classes": 0}
    return ReidStart(_with_kwargs(model, kwargs), model.architecture, kwargs, neck, side, model.metadata)


def _existing(checkpoint: str | Path) -> Path:
    path = Path(checkpoint)
    if not path.exists():
        raise InputError(
            f"{path} does not exist, seen from {Path.cwd()}: model.checkpoint names a folder that dynavit wrote, or a "
            f"state dict."
        )
    return path


def _is_ours(path: Path) -> bool:
    """Whether this is a folder that dynavit wrote, or one that is meant to be: not one of the Hugging Face Hub."""
    if not path.is_dir():
        return False
    config = _config_of(path)
    return (
        config is None
        or "keep_ratios" in config
        or not {"model_type", "architectures", "pretrained_cfg"} & config.keys()
    )


def _config_of(folder: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # whose reader says what is wrong
        return None
    return config if isinstance(config, dict) else None


def _architecture(path: Path, architecture: str | None) -> str:
    if architecture is not None:
        return architecture
    named = (_config_of(path) or {}).get("architecture")
    hint = f" Its config.json says {first_line(named)!r}." if isinstance(named, str) else ""
    raise InputError(f"{path}: a state dict needs model.architecture=TIMM_NAME.{hint}")


def _load_folder(path: Path, architecture: str | None, entry: str | None) -> PrunedViT:
    if entry is not None:
        raise InputError(f"model.entry={entry}: {path} is a folder that dynavit wrote, with one set of weights.")
    model = load(path)
    if architecture is not None and architecture.partition(".")[0] != str(model.architecture).partition(".")[0]:
        raise InputError(
            f"model.architecture={architecture} but {path} holds a {model.architecture}: leave "
            f"model.architecture out, or start from another checkpoint."
        )
    check_numbers(model.state_dict(), path)
    return model


def _folder_kwargs(model: PrunedViT, kwargs: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what the backbone is to be built with: as it was saved, but for its grid and its drop rates."""
    saved = model.model_kwargs
    other = {
        key: value
        for key, value in kwargs.items()
        if key not in (*_GRID, *RATES, "num_classes") and not (key in saved and _plain(saved[key]) == _plain(value))
    }
    if other:
        listing = ", ".join(f"{key}={value}" for key, value in other.items())
        raise InputError(
            f"model.kwargs: {listing}, but {path} already says how its {model.architecture} is built; give other "
            f"{', '.join((*_GRID, *RATES))} at most."
        )
    return {**saved, **kwargs}


def _plain(value: Any) -> Any:
    """Return sizes as pairs, however they were written."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value, value) if type(value) is int else value


def _with_kwargs(model: PrunedViT, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return the model's backbone, with another grid or other drop rates if they differ."""
    saved, backbone = model.model_kwargs, model.backbone
    if all(_plain(kwargs.get(key)) == _plain(saved.get(key)) for key in (*_GRID, *RATES)):
        return backbone
    assert model.architecture is not None
    return _regridded(backbone, model.architecture, kwargs)


def _classes_of(model: PrunedViT) -> list[str]:
    return list(model.metadata.get("class_names") or [str(number) for number in range(model.num_classes)])


def _regridded(old: Any, architecture: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return the same backbone for another image size or stride."""
    new: Any = create_backbone(architecture, **kwargs)
    if new.global_pool != old.global_pool:
        new.reset_classifier(old.num_classes, old.global_pool)
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
