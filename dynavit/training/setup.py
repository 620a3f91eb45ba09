"""Everything a training needs, made from its configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from dynavit.config import Config, TrainConfig
from dynavit.errors import InputError
from dynavit.models import PrunedViT
from dynavit.models.execution import gathers_in_training
from dynavit.models.guides import check_unguided
from dynavit.models.hub import model_config
from dynavit.runs.build import StartingModel, build_outline, build_start, build_teacher, resolve_preprocessing
from dynavit.runs.loading import TrainingBatches, first_images, make_loader, prepare_loader
from dynavit.tasks import Task, create_task
from dynavit.tasks.count_loss import CountLoss, measured_table
from dynavit.tasks.lesson import check_score_distillation
from dynavit.tasks.objective import Objective, Scheduled
from dynavit.tasks.rewards import check_reward
from dynavit.training.data_check import check_before_training
from dynavit.training.logbook import TENSORBOARD, check_trackers
from dynavit.training.optimization import create_optimizer
from dynavit.training.schedules import KeepCounts, LearningRate, anneal

_COUNT_MOVES = 4  # torch compiles a function eight times at most


@dataclass(frozen=True)
class Schedules:
    """What moves with the optimiser steps: functions of their number alone."""

    config: Config
    total_steps: int
    learning_rate: LearningRate
    keep_counts: KeepCounts

    def temperature(self, step: int) -> float:
        """Return the selector's temperature at a step."""
        settings = self.config.schedule
        fraction = step / max(self.total_steps - 1, 1)
        return anneal(settings.temperature_kind, settings.temperature_start, settings.temperature_end, fraction)

    def lr(self, step: int) -> float:
        """Return the learning rate of the scorers at a step."""
        return self.config.optimizer.lr * self.learning_rate(step)

    def at(self, step: int, device: torch.device) -> Scheduled:
        """Return what the objective needs to know of a step."""
        counts: list[Any] = self.keep_counts(step)
        temperature: float | Tensor = self.temperature(step)
        if self.config.train.compile:  # tensors can move without recompiling
            temperature = torch.tensor(temperature, device=device)
            if self.keep_counts.moves is None:
                counts = [torch.tensor(count, device=device) for count in counts]
        return Scheduled(temperature, counts)


@dataclass(frozen=True)
class Setup:
    """What a training works with.

    Attributes:
        task, data: the problem.
        preprocessing: image size, mean, standard deviation and so on that the model expects.
        classes: names of the training labels.
        model, optimizer: prepared by the accelerator.
        ema: averaged weights, or None.
        batches, validation: prepared loaders; ``examples``: some images for pictures.
        objective, schedules: what is minimised, and what moves.
    """

    task: Task
    data: Any
    preprocessing: dict[str, Any]
    classes: tuple[str, ...]
    model: Any
    optimizer: Any
    ema: ModelEmaV3 | None
    batches: TrainingBatches
    validation: Any
    examples: list[Tensor]
    objective: Objective
    schedules: Schedules


def create_accelerator(config: Config) -> Accelerator:
    """Return what places, averages and logs, in the precision that is asked for.

    Raises:
        InputError: a precision that this machine does not have, or another one than earlier in this process.
    """
    precision, has_gpu = config.train.mixed_precision, torch.cuda.is_available()
    check_trackers(config.train.trackers)
    if precision == "fp16" and not has_gpu:
        raise InputError(
            "train.mixed_precision=fp16: there is no GPU here, and a CPU would train in full precision: use bf16 or no."
        )
    try:
        return Accelerator(
            cpu=not has_gpu,
            mixed_precision=precision,
            gradient_accumulation_steps=config.train.accumulation_steps,
            log_with=[name for name in config.train.trackers if name != TENSORBOARD] or None,
            project_config=ProjectConfiguration(project_dir=str(config.run_dir), logging_dir=str(config.run_dir)),
        )
    except ValueError as error:
        if "already been initialized" not in str(error):
            raise
        raise InputError(
            f"train.mixed_precision={precision}: this process used Accelerate in another precision, or on another "
            f"device, before, and it keeps one of each. Train in a process of its own."
        ) from error


def create_setup(config: Config, accelerator: Accelerator) -> Setup:
    """Open the data, build the model and what trains it.

    Raises:
        InputError: something in the configuration does not exist or does not fit.
    """
    task = create_task(config)
    data, preprocessing = _open_data(config, task, accelerator)
    start = _build_start(config, task, data, preprocessing)
    model, teacher = start.model, build_teacher(config, start)
    count_loss = _count_loss(config, model, accelerator)
    teacher = teacher.to(accelerator.device) if teacher is not None else None
    objective = task.objective(data, model, count_loss, teacher)
    if not model.scorers:  # nothing is selected, so there is nothing to compare
        objective.reward, objective.samples = None, 1
    optimizer = create_optimizer(
        config.optimizer, start, config.train.freeze, objective.module, config.loss.score_distillation_weight > 0
    )
    ema = _finish_model(config.train, model, accelerator)
    examples = first_images(data.validation, 4)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if objective.module is not None:
        objective.module = accelerator.prepare(objective.module)
    if ema is not None:
        ema.to(accelerator.device)
    processes = accelerator.num_processes
    sampler = task.sampler(data, processes)
    batches = TrainingBatches(accelerator, data.train, sampler, config, task.batch_size(data, processes))
    validation = make_loader(data.validation, config.data.batch_size, config.data.workers, lasting=True)
    return Setup(
        task=task,
        data=data,
        preprocessing=preprocessing,
        classes=tuple(data.class_names),
        model=prepared,
        optimizer=optimizer,
        ema=ema,
        batches=batches,
        validation=prepare_loader(accelerator, validation),
        examples=examples,
        objective=objective,
        schedules=_schedules(config, model, batches.length // config.train.accumulation_steps),
    )


def _open_data(config: Config, task: Task, accelerator: Accelerator) -> tuple[Any, dict[str, Any]]:
    """Return the data, and the preprocessing that the model expects; what cannot work is told before a download."""
    outline = build_outline(config)
    check_reward(config.loss, outline)
    check_score_distillation(config.loss, outline)
    preprocessing = resolve_preprocessing(config.data, outline.backbone, squash=config.task == "reid")
    with accelerator.main_process_first():  # which may have to download
        data = task.open_data(preprocessing)
    check_before_training(config, data, outline, accelerator)
    return data, preprocessing


def _build_start(config: Config, task: Task, data: Any, preprocessing: dict[str, Any]) -> StartingModel:
    """Return the starting model, with what is saved beside its weights."""
    classes, parts = tuple(data.class_names), task.parts(data)
    start = build_start(config, classes, parts)
    check_unguided(start.model, parts.get("spectra", 1))
    model = start.model
    model.metadata = {"preprocessing": preprocessing, "class_names": list(classes), **task.metadata(data)}
    known = start.dense.pretrained_cfg if config.model.pretrained else start.dense.metadata
    if license := known.get("license"):
        model.metadata["license"] = license
    for key in ("camera_names", "view_names"):
        before = start.dense.metadata.get(key)
        if not start.side_is_new and before != model.metadata[key]:
            raise InputError(
                f"model.checkpoint={config.model.checkpoint} was trained with {key} {before}, the data have "
                f"{model.metadata[key]}: train on the same ones, or start from a model without a camera embedding."
            )
    model_config(model)  # refuses now what could not be saved after an epoch
    return start


def _finish_model(train: TrainConfig, model: PrunedViT, accelerator: Accelerator) -> ModelEmaV3 | None:
    """Set how the model trains, before the accelerator wraps it; returns its averaged weights.

    The order matters: averages are a copy of the model as it then is, and a copy of a compiled one is not compiled.
    """
    model.set_grad_checkpointing(train.grad_checkpointing)
    if train.sync_batchnorm and accelerator.num_processes > 1:
        if accelerator.device.type == "cpu":
            raise InputError("train.sync_batchnorm=true: torch has it on GPUs only; leave it out on CPUs.")
        model.neck = nn.SyncBatchNorm.convert_sync_batchnorm(model.neck) if model.neck is not None else None
    ema = ModelEmaV3(model, decay=train.ema_decay) if train.ema_decay else None
    if train.compile:
        model.compile()
    return ema


def _schedules(config: Config, model: PrunedViT, steps_per_epoch: int) -> Schedules:
    total_steps = config.train.epochs * steps_per_epoch
    warmup_steps = round(config.optimizer.warmup_epochs * steps_per_epoch)
    lr = LearningRate(warmup_steps, total_steps, config.optimizer.final_lr_scale)
    keep_warmup_steps = round(config.schedule.keep_ratio_warmup_epochs * steps_per_epoch)
    num_patches = math.prod(model.adapter.grid_size)
    # where tokens are removed, their number is the shape of what is compiled
    moves = _COUNT_MOVES if config.train.compile and gathers_in_training(model) else None
    counts = KeepCounts(num_patches, model.keep_ratios, keep_warmup_steps, model.stage_counts, moves)
    return Schedules(config, total_steps, lr, counts)


def _count_loss(config: Config, model: PrunedViT, accelerator: Accelerator) -> CountLoss | None:
    """Return the keep-ratio loss where it has something to teach, and somebody to learn it."""
    selector, kind = model.selector, config.loss.keep_ratio_measure
    if selector.antithetic and len(model.stages) > 1:
        raise InputError(
            f"selector 'score_function' with antithetic=True is exact for one stage only, not {len(model.stages)}: "
            f"set model.stages to one block, or antithetic=false."
        )
    learns = selector.trains_scorer or selector.needs_reward
    if not model.scorers or selector.fixed_k or not learns or not config.loss.keep_ratio_weight:
        return None
    if kind != "latency":
        return CountLoss(kind)
    device = accelerator.device
    table = measured_table(model.to(device), config.run_dir / "latency.json", config.data.batch_size, accelerator)
    return CountLoss(kind, table)
