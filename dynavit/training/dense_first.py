"""A dense model first, where no model knows the classes yet: what pruning costs can be told only beside one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from dynavit.config import (
    Config,
    EvaluateConfig,
    LossConfig,
    ModelConfig,
    ScheduleConfig,
    is_saved_config,
    load_config,
)
from dynavit.config.schema import leaves
from dynavit.errors import InputError
from dynavit.models import load
from dynavit.models.guides import check_unguided
from dynavit.models.hub import WEIGHTS
from dynavit.runs.build import build_outline, build_start, resolve_preprocessing, starts_trained
from dynavit.runs.pair import dense_folder
from dynavit.tasks import create_task
from dynavit.tasks.lesson import check_score_distillation
from dynavit.tasks.rewards import check_reward
from dynavit.training.folder import check_folder, is_out_of_patience, saved_config
from dynavit.training.monitor import MetricsFile
from dynavit.training.trainer import Trainer

_OF_NO_MATTER = {
    "name",
    "output_dir",
    "train.log_steps",
    "train.checkpoint_steps",
    "train.trackers",
    "train.dense_epochs",
    "data.workers",
    "data.corrupt",
}
"""Settings that a dense model does not depend on."""


def train(config: Config, resume: bool = False) -> dict[str, float]:
    """Train what a configuration describes, after the dense model that it starts from if there is none yet.

    A dense model is trained first where the configuration prunes, starts from weights, and these do not know the
    classes (or identities) of the data. It goes to the run's folder with ``-dense`` behind it. One that was trained
    before with the same settings on the same classes, there or in a neighbouring ``*-dense`` folder, is used again.

    Args:
        config: the run.
        resume: continue what was interrupted, the dense run as well.

    Returns:
        The last validation metrics of the run.

    Raises:
        InputError: something in the configuration does not exist or does not fit, or there is something to lose.
    """
    log = PartialState(cpu=not torch.cuda.is_available()).print
    begun = _begun(config) if resume else None
    classes = None if begun is not None else _unknown_classes(config)
    if begun is not None:
        config = begun
    elif classes is not None:
        dense = dense_config(config)
        folder = _trained_before(dense, classes)
        if folder is not None:
            log(f"Starts from the dense model in {folder}, which was trained on these classes with the same settings.")
        else:
            folder = dense.run_dir
            check_folder(starting_from(config, folder), resume)  # rather now than after the dense model
            log(
                f"No model knows these {len(classes)} classes yet: a dense one is fine-tuned first, in {folder}, to "
                f"start from and to compare with (train.dense_epochs={dense.train.epochs}; 0 leaves it out)."
            )
            Trainer(dense, resume).fit()
        config = starting_from(config, folder)
    return Trainer(config, resume).fit()


def dense_config(config: Config) -> Config:
    """Return the configuration of the dense run that comes before a pruned one.

    Settings of pruning are left out, so that runs that differ in them alone share their dense model.
    """
    model, loss, plain, unweighted = config.model, config.loss, ModelConfig(), LossConfig()
    return replace(
        config,
        name=f"{config.name}-dense",
        output_dir=str(dense_folder(config.run_dir)),
        model=replace(
            plain,
            architecture=model.architecture,
            pretrained=model.pretrained,
            checkpoint=model.checkpoint,
            kwargs=model.kwargs,
            stages=[],
            embedding=model.embedding,
            side=model.side,
        ),
        train=replace(config.train, epochs=config.train.dense_epochs or config.train.epochs, dense_epochs=0),
        loss=replace(
            unweighted,
            label_smoothing=loss.label_smoothing,
            class_weights=loss.class_weights,
            identity_weight=loss.identity_weight,
            metric=loss.metric,
            metric_weight=loss.metric_weight,
            center_weight=loss.center_weight,
            metric_across_processes=loss.metric_across_processes,
        ),
        schedule=ScheduleConfig(),
        evaluate=EvaluateConfig(),
    )


def starting_from(config: Config, folder: Path) -> Config:
    """Return the configuration of the same run from the model in a folder, which says how it is built."""
    model = replace(config.model, architecture=None, pretrained=False, checkpoint=str(folder), kwargs={})
    return replace(config, model=model)


def _begun(config: Config) -> Config | None:
    """Return the configuration with the dense model that an interrupted run started from."""
    begun = is_saved_config(config.run_dir / "config.yaml")
    before = saved_config(config.run_dir).model if begun else None
    if before is None or before.checkpoint in (None, config.model.checkpoint):
        return None
    found = starting_from(config, Path(before.checkpoint))
    return found if found.model == before else None


def _unknown_classes(config: Config) -> tuple[str, ...] | None:
    """Return the classes of the data if a dense model has to learn them first."""
    model = config.model
    if model.stages == [] or config.train.dense_epochs == 0 or not (model.pretrained or model.checkpoint):
        return None
    task = create_task(config)
    outline = build_outline(config)
    check_reward(config.loss, outline)  # rather now than after the dense model
    check_score_distillation(config.loss, outline)
    data = task.open_data(resolve_preprocessing(config.data, outline.backbone, squash=config.task == "reid"))
    classes, parts = tuple(data.class_names), task.parts(data)
    check_unguided(outline, parts.get("spectra", 1))
    if model.checkpoint is None:
        known = starts_trained(config, classes)
    else:
        known = build_start(config, classes, parts).dense_is_trained
    return None if known else classes


def _trained_before(dense: Config, classes: Sequence[str]) -> Path | None:
    """Return the folder of a finished dense run with these settings and classes."""
    places = [dense.run_dir, *sorted(dense.run_dir.parent.glob("*-dense"))]
    return next((place for place in places if _fits(place, dense, classes)), None)


def _fits(folder: Path, dense: Config, classes: Sequence[str]) -> bool:
    try:
        before = load_config(folder / "config.yaml")
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        known = saved["metadata"]["class_names"]
        start = dense.model.checkpoint
        if start is not None and _changed(Path(start)) > (folder / "config.yaml").stat().st_mtime:
            return False  # it started from other weights
    except (InputError, OSError, ValueError, RecursionError, KeyError, TypeError):
        return False  # not a run of ours, or one that has not come far
    rows = MetricsFile(folder / "metrics.jsonl").rows()
    return (
        _settings(before) == _settings(dense)
        and list(known) == list(classes)
        and bool(rows)
        and (
            rows[-1].get("epoch") == dense.train.epochs
            or is_out_of_patience(rows, dense.train.patience, create_task(dense).metric)
        )
        and _is_whole(folder)
    )


def _is_whole(folder: Path) -> bool:
    try:
        load(folder)
    except InputError:
        return False
    return True


def _changed(start: Path) -> float:
    """Return when the weights of a file or folder were written."""
    return (start / WEIGHTS if start.is_dir() else start).stat().st_mtime


def _settings(config: Config) -> dict[str, object]:
    return {key: value for key, value in leaves(config) if key not in _OF_NO_MATTER and not key.startswith("evaluate.")}
