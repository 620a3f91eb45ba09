"""Which values settings may have."""

from __future__ import annotations

from dynavit.config.schema import Config, leaves
from dynavit.errors import InputError, did_you_mean

_CHOICES = {
    "task": ("classify", "reid"),
    "model.embedding": ("after", "before"),
    "model.execution": ("auto", "mask", "gather"),
    "model.mask_form": ("key", "identity"),
    "data.corrupt": ("stop", "skip"),
    "loss.budget": ("probabilities", "decisions", "latency"),
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
    "data.images_per_identity",
    "loss.distillation_temperature",
    "schedule.temperature_start",
    "schedule.temperature_end",
    "evaluate.rounds",
    "evaluate.calibration_images",
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
    "train.dense_epochs",
    "loss.center",
    "loss.identity",
    "loss.metric_weight",
    "loss.keep_ratio",
    "loss.policy_gradient",
    "loss.logit_distillation",
    "loss.token_distillation",
    "schedule.keep_ratio_warmup_epochs",
)


def _check_ranges(config: Config) -> None:
    data = config.data
    refused = {
        f"seed={config.seed}: must not be negative.": config.seed < 0,
        f"loss.label_smoothing={config.loss.label_smoothing}: lies in [0, 1).": not 0
        <= config.loss.label_smoothing
        < 1,
        f"train.ema_decay={config.train.ema_decay}: lies in (0, 1).": not 0 < (config.train.ema_decay or 0.5) < 1,
        f"data.mean={data.mean}: 1, 3 or 4 numbers, one for each input channel.": data.mean is not None
        and len(data.mean) not in (1, 3, 4),
        f"data.std={data.std}: 1, 3 or 4 numbers above 0, one for each input channel.": data.std is not None
        and (len(data.std) not in (1, 3, 4) or min(data.std) <= 0),
        f"data.batch_size={data.batch_size}: mixup and cutmix need an even number.": bool(data.mixup or data.cutmix)
        and data.batch_size % 2 == 1,
        f"evaluate.batch_sizes={config.evaluate.batch_sizes}: each at least 1.": any(
            size < 1 for size in config.evaluate.batch_sizes
        ),
        f"loss.reward_samples={config.loss.reward_samples}: at least 2, to compare.": config.loss.reward_samples < 2,
    }
    for message, is_wrong in refused.items():
        if is_wrong:
            raise InputError(message)


_OF_TASK = {
    "classify": ("data.mixup", "data.cutmix", "data.crop_pct", "data.validation_split"),
    "reid": (
        "model.embedding",
        "model.side",
        "data.images_per_identity",
        "loss.identity",
        "loss.metric",
        "loss.metric_weight",
        "loss.center",
        "loss.metric_across_processes",
        "train.sync_batchnorm",
        "evaluate.rerank",
    ),
}
"""Settings that only one task knows, and that would do nothing in another."""


def _check_task(config: Config) -> None:
    values, defaults = dict(leaves(config)), dict(leaves(Config()))
    for task, keys in _OF_TASK.items():
        for key in keys:
            if task != config.task and values[key] != defaults[key]:
                raise InputError(f"{key}={values[key]}: does nothing with task={config.task}; it is of task={task}.")


def check(config: Config) -> None:
    """Refuse impossible values.

    Raises:
        InputError: naming the key, the value and what is possible.
    """
    # YAML 1.1 reads an unquoted `no` as false
    if config.train.mixed_precision == "False":
        config.train.mixed_precision = "no"
    values = dict(leaves(config))
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise InputError(
                f"{key}={values[key]!r}: choose one of {', '.join(choices)}.{did_you_mean(values[key], choices)}"
            )
    for key in _POSITIVE:
        if values[key] is not None and values[key] <= 0:
            raise InputError(f"{key}={values[key]}: must be above 0.")
    for key in _NOT_NEGATIVE:
        if values[key] is not None and values[key] < 0:
            raise InputError(f"{key}={values[key]}: must not be negative.")
    _check_ranges(config)
    _check_task(config)
    for ratio in [config.model.keep_ratio, *(config.model.keep_ratios or []), *config.evaluate.keep_ratios]:
        if not 0 < ratio <= 1:
            raise InputError(f"keep ratio {ratio}: a keep ratio lies in (0, 1].")
    if config.model.architecture is None and config.model.checkpoint is None:
        raise InputError("model.architecture is missing: give a timm name, or model.checkpoint=FOLDER.")
    for key in ("model.selector", "model.scorer", "model.reducer"):
        if not isinstance(values[key].get("name"), str):
            raise InputError(f"{key}={values[key]}: needs a name, for example {key}.name=topk.")
