"""Optimiser and parameter groups: a slow backbone, fast scorers without weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from dynavit.config import OptimizerConfig
from dynavit.errors import InputError, did_you_mean
from dynavit.models import PrunedViT
from dynavit.models.execution import trains_scorers
from dynavit.runs.build import StartingModel


def create_optimizer(
    settings: OptimizerConfig,
    start: StartingModel,
    freeze: str,
    loss: nn.Module | None = None,
    scores_have_target: bool = False,
) -> torch.optim.Optimizer:
    """Build the optimiser over what can learn, and freeze the rest.

    The backbone learns at ``backbone_lr_scale`` times the rate, and so do a head or neck that are not new.
    Scorers that nothing teaches, neither the task nor a target of their own, are frozen. ``loss`` is a loss that
    learns, if there is one.
    Each group carries ``lr_scale`` and ``part`` ("backbone" or "fast"), which :func:`set_learning_rates` reads.

    Raises:
        InputError: nothing is left to learn, or timm has no such optimiser.
    """
    model, backbone = start.model, start.model.backbone
    backbone.requires_grad_(freeze != "backbone")
    model.scorers.requires_grad_(scores_have_target or trains_scorers(model))
    head = list(_parameters(backbone.get_classifier())) if start.head_replaced else []
    beside: dict[bool, list[nn.Parameter]] = {True: [], False: []}  # by whether they are new
    for part, is_new in ((model.neck, start.head_replaced), (model.side, start.side_is_new)):
        beside[is_new] += list(part.parameters()) if part is not None else []
    for parameter in head:
        parameter.requires_grad_(True)

    groups = _backbone_groups(settings, backbone, exclude={id(parameter) for parameter in head})
    groups.append({"params": beside[False], "weight_decay": 0.0})
    for group in groups:
        group.update(lr_scale=group.get("lr_scale", 1.0) * settings.backbone_lr_scale, part="backbone")
    fast = [*model.scorers.parameters(), *model.reducer.parameters(), *head, *beside[True]]
    if loss is not None:
        fast += loss.parameters()
    groups.append({"params": fast, "weight_decay": 0.0, "lr_scale": 1.0, "part": "fast"})
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InputError(
            f"nothing is left to learn: train.freeze=backbone, and {_unlearned(model)}. Set train.freeze=none, or "
            f"choose what learns, such as selector topk with scorer mlp."
        )
    try:
        return create_optimizer_v2(groups, opt=settings.name, lr=settings.lr, **settings.options)
    except Exception as error:  # whatever an optimiser says of options that it cannot have
        known = [str(name) for name in list_optimizers()]
        if settings.name.lower().rpartition("_")[2] not in known:  # what comes before it is lookahead_
            raise InputError(
                f"optimizer.name={settings.name!r}: timm has no such optimiser.{did_you_mean(settings.name, known)} "
                f"Choose one of timm.optim.list_optimizers(), such as adamw, sgd or lamb."
            ) from None
        raise InputError(
            f"optimizer.name={settings.name}, optimizer.options={settings.options}: {error}; change one of them."
        ) from None


def _unlearned(model: PrunedViT) -> str:
    if list(model.scorers.parameters()):
        return f"selector {type(model.selector).__name__} passes no gradient to its scorers"
    chooser = f"scorer {model.scorers[0].name}" if model.scorers else f"reducer {model.reducer.name}"
    return f"{chooser} has nothing to learn"


def set_learning_rates(optimizer: torch.optim.Optimizer, lr: float, backbone_frozen: bool = False) -> None:
    """Give every group its share of the learning rate of this step."""
    for group in optimizer.param_groups:
        still = backbone_frozen and group["part"] == "backbone"
        group["lr"] = 0.0 if still else lr * group["lr_scale"]


def clip_by_part(optimizer: torch.optim.Optimizer, limit: float | None) -> dict[str, Tensor]:
    """Clip the gradient norm of backbone and fast parts separately; returns both norms unclipped."""
    norms: dict[str, Tensor] = {}
    for part in ("backbone", "fast"):
        parameters = [p for group in optimizer.param_groups if group["part"] == part for p in group["params"]]
        if parameters:
            norms[part] = nn.utils.clip_grad_norm_(parameters, limit if limit is not None else float("inf"))
    return norms


def _backbone_groups(settings: OptimizerConfig, backbone: Any, exclude: set[int]) -> list[dict[str, Any]]:
    if settings.layer_decay is not None:
        groups = param_groups_layer_decay(
            backbone,
            weight_decay=settings.weight_decay,
            no_weight_decay_list=backbone.no_weight_decay(),
            layer_decay=settings.layer_decay,
        )
    else:
        groups = param_groups_weight_decay(
            backbone, settings.weight_decay, no_weight_decay_list=backbone.no_weight_decay()
        )
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in exclude]
    return groups


def _parameters(head: nn.Module | Iterable[nn.Module]) -> Iterable[nn.Parameter]:
    modules = [head] if isinstance(head, nn.Module) else list(head)  # distilled models have two heads
    for module in modules:
        yield from module.parameters()
