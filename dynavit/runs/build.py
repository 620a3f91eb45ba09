"""From a configuration to models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from dynavit.adapters import create_adapter
from dynavit.checkpoints.start import load_backbone, load_reid_start
from dynavit.config import Config, DataConfig
from dynavit.data.pictures import MODES
from dynavit.errors import InputError
from dynavit.models import PrunedViT, create_model, load, prune
from dynavit.models.factory import OWN
from dynavit.models.pruning import PRUNING


@dataclass(frozen=True)
class StartingModel:
    """The model a run starts from.

    Attributes:
        model: with scorers, ready to train.
        dense: a frozen copy of the starting model in eval mode, which prunes nowhere.
        head_replaced: the classifier, or the neck, is new: the checkpoint had other classes, or none.
        dense_is_trained: ``dense`` knows the classes, so that comparing with it means something.
        side_is_new: the camera embedding, if there is one, was not in the checkpoint.
    """

    model: PrunedViT
    dense: PrunedViT
    head_replaced: bool
    dense_is_trained: bool
    side_is_new: bool = True


def build_start(
    config: Config, classes: Sequence[str] | None, parts: Mapping[str, Any] = MappingProxyType({})
) -> StartingModel:
    """Create the starting model for these classes, or training identities (None: those it has).

    Args:
        config: the run.
        classes: their names.
        parts: what the data demand of a re-identification model, ``side`` and ``spectra`` of
            :func:`~dynavit.models.factory.create_model`.

    Raises:
        InputError: what the configuration asks for does not exist or does not fit.
    """
    if config.model.entry is not None and config.model.checkpoint is None:
        raise InputError(
            f"model.entry={config.model.entry}: it chooses weights in model.checkpoint, which is not given."
        )
    if reserved := [key for key in config.model.kwargs if key in OWN]:
        raise InputError(
            f"model.kwargs={config.model.kwargs}: {reserved[0]} is no argument of timm's; set model.{reserved[0]}, or "
            f"leave it out."
        )
    build = _build_reid if config.task == "reid" else _build_classifier
    return build(config, classes, parts)


def build_outline(config: Config) -> PrunedViT:
    """Create what a run trains without its weights, to ask for sizes and parts.

    Without a checkpoint, which alone may say how its model is made, this costs no memory and draws no random numbers.

    Raises:
        InputError: as :func:`build_start`.
    """
    without = replace(config, model=replace(config.model, pretrained=False))
    with torch.device("meta") if config.model.checkpoint is None else nullcontext():
        return build_start(without, None).model


def _build_classifier(config: Config, classes: Sequence[str] | None, parts: Mapping[str, Any]) -> StartingModel:
    settings = config.model
    if settings.checkpoint is not None:
        with _naming_checkpoint(settings.checkpoint):
            backbone, architecture, kwargs, replaced = load_backbone(
                settings.checkpoint, settings.architecture, classes, entry=settings.entry, **settings.kwargs
            )
        trained = not replaced
    else:
        assert settings.architecture is not None
        kwargs = dict(settings.kwargs)
        if classes is not None:
            kwargs["num_classes"] = len(classes)
        architecture = settings.architecture
        backbone = _created(config, kwargs)
        trained = starts_trained(config, classes)
        replaced = settings.pretrained and not trained
    model = _pruned(config, backbone, architecture, kwargs)
    dense = prune(deepcopy(backbone), stages=())
    return StartingModel(model.train(), dense.eval().requires_grad_(False), replaced, trained)


def _build_reid(config: Config, identities: Sequence[str] | None, parts: Mapping[str, Any]) -> StartingModel:
    settings = config.model
    if identities is not None:
        parts = {"num_identities": len(identities), "embedding": settings.embedding, **parts}
    if settings.checkpoint is not None:
        with _naming_checkpoint(settings.checkpoint):
            start = load_reid_start(
                settings.checkpoint, settings.architecture, identities, entry=settings.entry, **settings.kwargs
            )
        backbone, architecture, kwargs = start.backbone, start.architecture, start.model_kwargs
    else:
        assert settings.architecture is not None
        start, architecture, kwargs = None, settings.architecture, {**settings.kwargs, "num_classes": 0}
        backbone = _created(config, kwargs)
    model = _pruned(config, backbone, architecture, kwargs, **parts)
    restored = start.restore(model) if start is not None else ()
    knows_cameras = start is not None and start.side is not None
    if knows_cameras and identities is not None and "side" not in restored:
        raise InputError(
            f"model.checkpoint={settings.checkpoint} was trained with a camera embedding that does not fit here: set "
            f"model.side.scale=3.0 and train on the same cameras, or start from a model without one."
        )
    dense = prune(deepcopy(backbone), stages=())
    dense.neck, dense.side = deepcopy(model.neck), deepcopy(model.side) if knows_cameras else None
    if start is not None:
        dense.metadata = dict(start.metadata)
    new = {"neck", "side"} - set(restored)
    return StartingModel(
        model.train(), dense.eval().requires_grad_(False), "neck" in new, "neck" not in new, "side" in new
    )


def _created(config: Config, kwargs: dict[str, Any]) -> nn.Module:
    """Create a backbone through dynavit's own factory, whose errors get the names of the settings."""
    settings = config.model
    assert settings.architecture is not None
    try:
        return create_model(settings.architecture, settings.pretrained, stages=(), **kwargs).backbone
    except InputError as error:
        message = str(error)
        if message.partition("=")[0] in settings.kwargs:
            message = f"model.kwargs.{message}"
        elif not message.startswith(("model.", "architecture")):
            message = f"model.architecture={settings.architecture}: {message}"
        raise type(error)(message) from error


@contextmanager
def _naming_checkpoint(path: str) -> Iterator[None]:
    """Say of what a checkpoint is found to be which setting gave it."""
    try:
        yield
    except InputError as error:
        message = str(error)
        if "model.checkpoint" in message:
            raise
        raise type(error)(f"model.checkpoint={'' if message.startswith(path) else f'{path}: '}{message}") from error


def _pruned(config: Config, backbone: nn.Module, architecture: str, kwargs: dict[str, Any], **parts: Any) -> PrunedViT:
    settings = config.model
    try:
        pruning = {name: getattr(settings, name) for name in PRUNING}
        if settings.keep_ratios is not None:
            pruning["keep_ratio"] = None  # has a default in a configuration, which one ratio a stage replaces
        model = prune(backbone, **pruning, **parts)
    except InputError as error:
        # arguments of prune are settings of the model
        message = str(error)
        raise type(error)(f"model.{message}" if message.partition("=")[0] in OWN else message) from error
    model.architecture, model.model_kwargs = architecture, kwargs  # which did make it: nothing to find out
    model.execution = settings.execution
    model.probes = settings.probes
    model.mask_form = settings.mask_form
    return model


def starts_trained(config: Config, classes: Sequence[str] | None) -> bool:
    """Whether timm's weights, if the run starts from those, know as many classes."""
    settings = config.model
    if not settings.pretrained or settings.architecture is None or classes is None or config.task != "classify":
        return False
    known = timm.get_pretrained_cfg(settings.architecture)
    return known is not None and known.num_classes == len(classes)


def build_teacher(config: Config, start: StartingModel) -> nn.Module | None:
    """Return the frozen teacher, a timm model, or None where no distillation is asked for.

    Raises:
        InputError: a teacher of other classes, or one that has not learned them.
    """
    weights = [f"loss.{part}_distillation_weight" for part in ("logit", "token", "score")]
    asked = [name for name in weights if getattr(config.loss, name.removeprefix("loss."))]
    if not asked:
        return None
    without = " and ".join(f"{name}=0" for name in asked)
    if config.task == "reid" and config.loss.logit_distillation_weight:
        raise InputError(
            "loss.logit_distillation_weight: a re-identification model answers with an embedding, not with logits; use "
            "loss.token_distillation_weight."
        )
    if config.loss.teacher == "start":
        if not start.dense_is_trained:
            raise InputError(
                f"loss.teacher=start: the starting model does not know these classes yet, so it cannot teach them. "
                f"Train it first (model.stages=[]), name another loss.teacher, or set {without}."
            )
        _refuse_cameras(start.dense, without)
        return start.dense.backbone
    teacher, student = load(config.loss.teacher), start.model
    _refuse_cameras(teacher, without)
    compared: dict[str, tuple[Any, Any]] = {}
    if config.loss.logit_distillation_weight:
        compared["number of classes"] = (teacher.num_classes, student.num_classes)
    sizes = [model.adapter.image_size for model in (teacher, student)]
    compared["image size"] = (sizes[0], sizes[1])
    for name in ("mean", "std"):
        theirs = teacher.metadata.get("preprocessing", student.metadata["preprocessing"])[name]
        compared[name] = (theirs, student.metadata["preprocessing"][name])
    if config.loss.token_distillation_weight or config.loss.score_distillation_weight:
        compared["patch grid"] = (teacher.adapter.grid_size, student.adapter.grid_size)
    if config.loss.token_distillation_weight:
        compared["width"] = (teacher.embed_dim, student.embed_dim)
    for what, (theirs, ours) in compared.items():
        if theirs != ours:
            raise InputError(f"loss.teacher={config.loss.teacher} has another {what}: {theirs}, the student {ours}.")
    return teacher.backbone.eval().requires_grad_(False)


def _refuse_cameras(teacher: PrunedViT, without: str) -> None:
    if teacher.side is not None:
        raise InputError(
            f"the teacher was trained with a camera embedding, which distillation does not give it: set {without}, or "
            f"name a loss.teacher without one."
        )


def resolve_preprocessing(config: DataConfig, backbone: Any, squash: bool = False) -> dict[str, Any]:
    """Return image size, mean, std, interpolation and crop fraction: the model's unless configured.

    Mean and std have a number for each input channel: models made for another number of channels than their
    weights were take the average, as grey, or as the value of channels beyond the colours.

    Args:
        config: what is configured.
        backbone: a timm model.
        squash: distort images to the size, whole, as re-identification does.

    Raises:
        InputError: a model without image size, or with channels that pictures do not have.
    """
    adapter = create_adapter(backbone)
    size, channels = adapter.image_size, adapter.in_chans
    if size is None:
        raise InputError("the backbone has no image size of its own: set model.kwargs.img_size.")
    if channels not in MODES:
        raise InputError(
            f"in_chans={channels}: pictures are read with 1 channel (grey), 3 (colours) or 4 (colours and opacity); "
            f"give the model one of these."
        )
    resolved = resolve_data_config({"crop_pct": config.crop_pct, "interpolation": config.interpolation}, model=backbone)
    return {
        "image_size": list(size),
        "mean": _for_channels("mean", config.mean, resolved["mean"], channels),
        "std": _for_channels("std", config.std, resolved["std"], channels),
        "interpolation": resolved["interpolation"],
        "crop_pct": 1.0 if squash else resolved["crop_pct"],
        "crop_mode": "squash" if squash else resolved["crop_mode"],
    }


def _for_channels(key: str, values: Sequence[float] | None, usual: Sequence[float], channels: int) -> list[float]:
    if values is not None:
        if len(values) != channels:
            raise InputError(
                f"data.{key}={list(values)}: the model has {channels} input channel(s), give a number each."
            )
        return list(values)
    if len(usual) == channels:
        return list(usual)
    average = sum(usual) / len(usual)
    return [average] if channels == 1 else [*usual[:channels], *[average] * (channels - len(usual))]
