"""From a configuration to data and models."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import timm
from timm.data import resolve_data_config
from torch import nn

from dynavit.config import Config, DataConfig
from dynavit.data.classification import ClassificationData, create_classification_data
from dynavit.data.transforms import create_transforms
from dynavit.errors import InputError
from dynavit.models import PrunedViT, create_model, load, prune
from dynavit.models.weights import load_backbone


@dataclass(frozen=True)
class Start:
    """The model a run starts from.

    Attributes:
        model: with predictors, ready to train.
        dense: a frozen copy of the starting backbone, in eval mode.
        head_replaced: the classifier is new, because the checkpoint had other classes.
        dense_is_trained: ``dense`` knows the classes, so that comparing with it means something.
    """

    model: PrunedViT
    dense: nn.Module
    head_replaced: bool
    dense_is_trained: bool


def build_start(config: Config, classes: Sequence[str] | None) -> Start:
    """Create the starting model for these classes (None: those it has).

    Raises:
        InputError: what the configuration asks for does not exist or does not fit.
    """
    settings = config.model
    if settings.checkpoint is not None:
        backbone, architecture, kwargs, replaced = load_backbone(
            settings.checkpoint, settings.architecture, classes, **settings.kwargs
        )
        trained = not replaced
    else:
        assert settings.architecture is not None
        kwargs = dict(settings.kwargs)
        if classes is not None:
            kwargs["num_classes"] = len(classes)
        architecture = settings.architecture
        # through dynavit's own factory, for its error messages
        backbone = create_model(architecture, settings.pretrained, stages=(), **kwargs).backbone
        trained = starts_trained(config, classes)
        replaced = settings.pretrained and not trained
    model = prune(
        backbone,
        stages=settings.stages,
        keep_ratio=None if settings.keep_ratios else settings.keep_ratio,
        keep_ratios=settings.keep_ratios,
        selector=settings.selector,
        reducer=settings.reducer,
        architecture=architecture,
        model_kwargs=kwargs,
    )
    model.execution = settings.execution  # type: ignore[assignment]
    model.mask_form = settings.mask_form  # type: ignore[assignment]
    dense = deepcopy(backbone).eval().requires_grad_(False)
    return Start(model.train(), dense, replaced, trained)


def starts_trained(config: Config, classes: Sequence[str] | None) -> bool:
    """Whether timm's weights, if the run starts from those, know as many classes."""
    settings = config.model
    if not settings.pretrained or settings.architecture is None or classes is None:
        return False
    known = timm.get_pretrained_cfg(settings.architecture)
    return known is not None and known.num_classes == len(classes)


def build_teacher(config: Config, start: Start) -> nn.Module | None:
    """Return the frozen teacher, or None where no distillation is asked for.

    Raises:
        InputError: a teacher of other classes, or one that has not learned them.
    """
    if not (config.loss.logit_distillation or config.loss.token_distillation):
        return None
    if config.loss.teacher == "start":
        if not start.dense_is_trained:
            raise InputError(
                "loss.teacher=start: the starting model does not know these classes yet, so it cannot "
                "teach them. Train it first (model.stages=[]), name another loss.teacher, or set "
                "loss.logit_distillation=0 and loss.token_distillation=0."
            )
        return start.dense
    teacher, student = load(config.loss.teacher), start.model
    compared: dict[str, tuple[Any, Any]] = {"classes": (teacher.num_classes, student.num_classes)}
    sizes = [tuple(model.backbone.patch_embed.img_size) for model in (teacher, student)]
    compared["image size"] = (sizes[0], sizes[1])
    for name in ("mean", "std"):
        theirs = teacher.metadata.get("preprocessing", student.metadata["preprocessing"])[name]
        compared[name] = (theirs, student.metadata["preprocessing"][name])
    if config.loss.token_distillation:
        compared["patch grid"] = (teacher.adapter.grid_size, student.adapter.grid_size)
        compared["width"] = (teacher.embed_dim, student.embed_dim)
    for what, (theirs, ours) in compared.items():
        if theirs != ours:
            raise InputError(f"loss.teacher={config.loss.teacher} has another {what}: {theirs}, the student {ours}.")
    return teacher.backbone.eval().requires_grad_(False)


def build_data(config: DataConfig, preprocessing: dict[str, Any], seed: int, train: bool = True) -> ClassificationData:
    """Open the data sets, with the preprocessing that the model wants; ``train=False``: validation only."""
    return create_classification_data(
        config.name,
        config.root,
        transforms=create_transforms(**preprocessing, augmentation=config.augmentation),
        seed=seed,
        train_split=config.train_split if train else None,
        validation_split=config.validation_split,
        download=config.download,
        corrupt=config.corrupt,
        options=config.options,
    )


def resolve_preprocessing(config: DataConfig, backbone: Any) -> dict[str, Any]:
    """Return image size, mean, std, interpolation and crop fraction: the model's unless configured."""
    size = tuple(backbone.patch_embed.img_size)
    args = {"mean": config.mean, "std": config.std, "crop_pct": config.crop_pct}
    resolved = resolve_data_config({**args, "interpolation": config.interpolation}, model=backbone)
    return {
        "image_size": list(size),
        "mean": list(resolved["mean"]),
        "std": list(resolved["std"]),
        "interpolation": resolved["interpolation"],
        "crop_pct": resolved["crop_pct"],
        "crop_mode": resolved["crop_mode"],
    }
