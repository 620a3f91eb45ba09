"""The configuration of a run: typed, validated, printable, saved with the run.

Defaults, then a YAML file, then ``key.subkey=value`` from the command line, merged and type-checked by
OmegaConf. Only the command line and the engine read it; everything else takes plain arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dynavit.errors import InputError, did_you_mean


@dataclass
class ModelConfig:
    """Which backbone, and how it is pruned."""

    architecture: str | None = None
    """timm name; may be left out when ``checkpoint`` is a folder that dynavit wrote."""
    pretrained: bool = False
    """Start from timm's weights."""
    checkpoint: str | None = None
    """Start from these weights: a dynavit folder, or a .safetensors or .pth state dict."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Everything else that timm.create_model takes."""
    stages: list[int] | None = None
    """Prune before these blocks (0-based); quarter, half and three quarters of the depth if null."""
    keep_ratio: float = 0.7
    """r keeps r, r^2, r^3 ... of the original patches over the stages."""
    keep_ratios: list[float] | None = None
    """One ratio a stage, in place of keep_ratio."""
    selector: dict[str, Any] = field(default_factory=lambda: {"name": "topk"})
    reducer: dict[str, Any] = field(default_factory=lambda: {"name": "drop"})
    execution: str = "auto"
    """auto, mask or gather while training; see the README."""
    mask_form: str = "key"
    """key or identity: how the mask enters attention while training."""


@dataclass
class DataConfig:
    """Which images, and how they are loaded."""

    name: str = "folder"
    """quickstart, folder, torchvision/NAME, or whatever timm.data.create_dataset reads."""
    root: str | None = None
    train_split: str = "train"
    validation_split: str = "val"
    download: bool = False
    corrupt: str = "stop"
    """stop or skip: what to do about images that cannot be read."""
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of the data set."""
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    """Preprocessing; what the backbone's weights expect if null. The size is the model's img_size."""
    augmentation: dict[str, Any] | None = None
    """Arguments of timm's training transform; null trains on the evaluation transform."""
    mixup: float = 0.0
    cutmix: float = 0.0
    batch_size: int = 64
    """Images a step and process."""
    workers: int = 2


@dataclass
class OptimizerConfig:
    """How weights move. Learning rates are not scaled by the batch size."""

    name: str = "adamw"
    """Any optimiser of timm.optim."""
    lr: float = 1e-3
    """Peak learning rate of the predictors."""
    backbone_lr_scale: float = 1.0
    """The backbone learns at lr times this."""
    layer_decay: float | None = None
    weight_decay: float = 0.05
    """Backbone matrices only."""
    warmup_epochs: float = 0.0
    final_lr_scale: float = 0.0
    """The cosine ends at lr times this."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainConfig:
    """How long and how."""

    epochs: int = 30
    steps_per_epoch: int | None = None
    """Batches an epoch; the whole data set if null. Required for streams of unknown length."""
    mixed_precision: str = "no"
    """no, bf16 or fp16."""
    accumulation_steps: int = 1
    clip_grad_norm: float | None = 1.0
    """For backbone and predictors separately."""
    ema_decay: float | None = None
    freeze: str = "none"
    """none or backbone."""
    freeze_epochs: int = 0
    """Keep the backbone still for the first epochs."""
    compile: bool = False
    grad_checkpointing: bool = False
    checkpoint_steps: int | None = None
    """Also save the state every so many steps, beside every epoch."""
    log_steps: int = 50


@dataclass
class LossConfig:
    """Weights of the losses beside cross-entropy."""

    label_smoothing: float = 0.0
    keep_ratio: float = 2.0
    """For selectors whose count is only expected; left out for those with a fixed k."""
    logit_distillation: float = 0.0
    token_distillation: float = 0.0
    distillation_temperature: float = 1.0
    teacher: str = "start"
    """start: the frozen starting model, run densely; or a folder that dynavit wrote."""


@dataclass
class ScheduleConfig:
    """What moves with the optimiser steps beside the learning rate."""

    temperature_start: float = 1.0
    temperature_end: float = 1.0
    temperature_kind: str = "exponential"
    """exponential, cosine or linear."""
    keep_ratio_warmup_epochs: float = 0.0
    """Go from ratio 1 to the target over the first epochs."""


@dataclass
class EvaluateConfig:
    """What tools/evaluate.py does unless told otherwise."""

    keep_ratios: list[float] = field(default_factory=lambda: [1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    batch_sizes: list[int] = field(default_factory=lambda: [1, 32])
    rounds: int = 7
    """Timing rounds; medians over rounds are reported."""


@dataclass
class Config:
    """A run."""

    task: str = "classify"
    name: str = "run"
    output_dir: str | None = None
    """Where the run is written; checkpoints/<name> if null."""
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return Path(self.output_dir or f"checkpoints/{self.name}")


_CHOICES = {
    "task": ("classify",),
    "model.execution": ("auto", "mask", "gather"),
    "model.mask_form": ("key", "identity"),
    "data.corrupt": ("stop", "skip"),
    "train.mixed_precision": ("no", "bf16", "fp16"),
    "train.freeze": ("none", "backbone"),
    "schedule.temperature_kind": ("exponential", "cosine", "linear"),
}
_POSITIVE = (
    "data.batch_size",
    "optimizer.lr",
    "train.epochs",
    "train.steps_per_epoch",
    "train.accumulation_steps",
    "train.clip_grad_norm",
    "train.checkpoint_steps",
    "train.log_steps",
    "loss.distillation_temperature",
    "schedule.temperature_start",
    "schedule.temperature_end",
    "evaluate.rounds",
)
_NOT_NEGATIVE = (
    "data.workers",
    "data.mixup",
    "data.cutmix",
    "optimizer.backbone_lr_scale",
    "optimizer.weight_decay",
    "optimizer.warmup_epochs",
    "optimizer.final_lr_scale",
    "train.freeze_epochs",
    "loss.keep_ratio",
    "loss.logit_distillation",
    "loss.token_distillation",
    "schedule.keep_ratio_warmup_epochs",
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``key.subkey=value`` overrides.

    Raises:
        InputError: a missing or malformed file, an unknown key (the nearest is named), a value of the
            wrong type or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file: pass --config with a YAML file, for example from configs/.")
    for override in overrides:
        if "=" not in override:
            raise InputError(f"{override!r}: overrides are written key.subkey=value.")
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise InputError(f"{path} holds no settings: expected 'key: value' lines.")
        merged = OmegaConf.merge(OmegaConf.structured(Config), loaded, OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise InputError(f"{path}: {_unknown_key(str(error.full_key))}") from None
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: {_wrong_value(error, overrides)}") from None
    except InputError:
        raise
    except Exception as error:  # YAML's own errors have no common base in OmegaConf's interface
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    assert isinstance(config, Config)
    _check(config)
    return config


def save_config(config: Config, path: str | Path) -> None:
    """Write the complete configuration as YAML."""
    OmegaConf.save(OmegaConf.structured(config), path)


_MAY_CHANGE = ("name", "output_dir", "train.epochs", "train.log_steps", "train.checkpoint_steps", "data.workers")


def changed_keys(before: Config, now: Config) -> list[tuple[str, Any, Any]]:
    """Return key, old and new value of settings that differ and must not when a run is resumed."""
    values = dict(_leaves(now))
    return [
        (key, old, values[key])
        for key, old in _leaves(before)
        if old != values[key] and key not in _MAY_CHANGE and not key.startswith("evaluate.")
    ]


def _wrong_value(error: OmegaConfBaseException, overrides: Sequence[str]) -> str:
    reason = str(error.msg or error).splitlines()[0].rstrip(".")
    if not error.full_key:  # a whole section was given something else
        return f"{reason}, in {' '.join(overrides) or 'the file'}. Expected key: value pairs below a section."
    node: Any = Config()
    expected = ""
    for part in str(error.full_key).split("."):
        name = part.partition("[")[0]
        if not is_dataclass(node) or name not in {entry.name for entry in fields(node)}:
            break
        expected = {entry.name: str(entry.type) for entry in fields(node)}[name]
        node = getattr(node, name)
    return f"{error.full_key}: {reason}. Expected {expected}."


def _unknown_key(full_key: str) -> str:
    *parents, key = full_key.split(".")
    node: Any = Config()
    for parent in parents:
        node = getattr(node, parent)
    known = [entry.name for entry in fields(node)]
    where = f"in {'.'.join(parents)}" if parents else "at top level"
    everywhere = dict(_leaves(Config()))
    elsewhere = [name for name in everywhere if name.rpartition(".")[2] == key]
    hint = f" Did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(key, known)
    return f"unknown key {full_key!r}.{hint} Keys {where}: {', '.join(known)}."


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for entry in fields(node):
        value = getattr(node, entry.name)
        found += _leaves(value, f"{prefix}{entry.name}.") if is_dataclass(value) else [(prefix + entry.name, value)]
    return found


def _check_ranges(config: Config) -> None:
    data = config.data
    refused = {
        f"seed={config.seed}: must not be negative.": config.seed < 0,
        f"loss.label_smoothing={config.loss.label_smoothing}: lies in [0, 1).": not 0
        <= config.loss.label_smoothing
        < 1,
        f"train.ema_decay={config.train.ema_decay}: lies in (0, 1).": not 0 < (config.train.ema_decay or 0.5) < 1,
        f"data.mean={data.mean}: three numbers, one a colour.": data.mean is not None and len(data.mean) != 3,
        f"data.std={data.std}: three numbers above 0, one a colour.": data.std is not None
        and (len(data.std) != 3 or min(data.std) <= 0),
        f"data.batch_size={data.batch_size}: mixup and cutmix need an even number.": bool(data.mixup or data.cutmix)
        and data.batch_size % 2 == 1,
        f"evaluate.batch_sizes={config.evaluate.batch_sizes}: each at least 1.": any(
            size < 1 for size in config.evaluate.batch_sizes
        ),
        "model.kwargs.in_chans: images are read with 3 channels.": config.model.kwargs.get("in_chans", 3) != 3,
    }
    for message, is_wrong in refused.items():
        if is_wrong:
            raise InputError(message)


def _check(config: Config) -> None:
    # YAML 1.1 reads an unquoted `no` as false
    if config.train.mixed_precision == "False":
        config.train.mixed_precision = "no"
    values = dict(_leaves(config))
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise InputError(
                f"{key}={values[key]!r}: choose one of {', '.join(choices)}.{did_you_mean(values[key], choices)}"
            )
    for key in _POSITIVE:
        if values[key] is not None and values[key] <= 0:
            raise InputError(f"{key}={values[key]}: must be above 0.")
    for key in _NOT_NEGATIVE:
        if values[key] < 0:
            raise InputError(f"{key}={values[key]}: must not be negative.")
    _check_ranges(config)
    for ratio in [config.model.keep_ratio, *(config.model.keep_ratios or []), *config.evaluate.keep_ratios]:
        if not 0 < ratio <= 1:
            raise InputError(f"keep ratio {ratio}: a keep ratio lies in (0, 1].")
    if config.model.architecture is None and config.model.checkpoint is None:
        raise InputError("model.architecture is missing: give a timm name, or model.checkpoint=FOLDER.")
    for key in ("model.selector", "model.reducer"):
        if not isinstance(values[key].get("name"), str):
            raise InputError(f"{key}={values[key]}: needs a name, for example {key}.name=topk.")
