"""Every setting of a run, with its default."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any


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
    """Prune at these blocks (0-based); quarter, half and three quarters of the depth if null."""
    keep_ratio: float = 0.7
    """r keeps r, r^2, r^3 ... of the original patches over the stages."""
    keep_ratios: list[float] | None = None
    """One ratio a stage, in place of keep_ratio."""
    selector: dict[str, Any] = field(default_factory=lambda: {"name": "topk"})
    scorer: dict[str, Any] = field(default_factory=lambda: {"name": "mlp"})
    """What gives tokens their logits: mlp, linear, or one that learns nothing, such as class_attention."""
    reducer: dict[str, Any] = field(default_factory=lambda: {"name": "drop"})
    """What becomes of tokens not kept: drop, fuse, squeeze, aggregate; or merge, which needs no scorer."""
    placement: str = "before"
    """Prune before a stage's block, or inside it, between its attention and its MLP."""
    count_rule: str = "original"
    """original: ratios of the original patches, r, r^2, r^3 ...; linear: r is what the last stage leaves;
    current: ratios of the tokens that a stage finds."""
    embedding: str = "after"
    """Re-identification: the embedding is taken after or before the batch norm of the neck."""
    side: dict[str, Any] | None = None
    """Re-identification: camera and view embedding, such as {scale: 3.0}; needs cameras in the data."""
    execution: str = "auto"
    """auto, mask or gather while training; see the README."""
    mask_form: str = "key"
    """key or identity: how the mask enters attention while training."""


@dataclass
class DataConfig:
    """Which images, and how they are loaded."""

    name: str = "folder"
    """Classification: quickstart, folder, torchvision/NAME, or whatever timm.data.create_dataset reads.
    Re-identification: quickstart-reid, folder, market1501, dukemtmc, msmt17, cuhk03np or veri776."""
    root: str | None = None
    train_split: str = "train"
    validation_split: str = "val"
    """Names of the splits. For data.name=folder the usual other names are found where a default is not there: training;
    valid, validation, dev, test, testing."""
    download: bool = False
    corrupt: str = "stop"
    """stop or skip: what to do about images that cannot be read."""
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of the data set. folder has validation_fraction for one folder of classes, and labels (a CSV),
    validation_labels, images, image_column, label_column; re-identification: see dynavit.data.reid_layouts."""
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    """Preprocessing; what the backbone's weights expect if null. The size is the model's img_size."""
    augmentation: dict[str, Any] | None = None
    """Arguments of timm's training transform (re-identification: flip, pad, erase); null trains on the
    evaluation transform."""
    mixup: float = 0.0
    cutmix: float = 0.0
    batch_size: int = 64
    """Images a step and process; fewer, with a note, where the training data are fewer."""
    images_per_identity: int = 4
    """Re-identification: K of a batch's P x K images, P = batch_size / K identities."""
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
    sync_batchnorm: bool = False
    """Re-identification on several GPUs: batch norm statistics over all processes, not each one's own."""
    compile: bool = False
    grad_checkpointing: bool = False
    checkpoint_steps: int | None = None
    """Also save the state every so many steps, beside every epoch."""
    log_steps: int = 50


@dataclass
class LossConfig:
    """Weights of the losses beside cross-entropy."""

    label_smoothing: float = 0.0
    identity: float = 1.0
    """Re-identification: cross-entropy over the training identities."""
    metric: dict[str, Any] = field(default_factory=lambda: {"name": "triplet"})
    """Re-identification: triplet (margin, soft_margin, distance, normalize), or any loss of
    pytorch-metric-learning with its parameters."""
    metric_weight: float = 1.0
    center: float = 0.0
    """Re-identification: weight of a centre loss beside the metric loss; 5e-4 is usual."""
    metric_across_processes: bool = False
    """Mine triplets in the batches of all processes together, not in each one's own."""
    keep_ratio: float = 2.0
    """For selectors whose count is only expected; left out for those with a fixed k."""
    budget: str = "probabilities"
    """What the keep-ratio loss looks at: probabilities, decisions (the sampled ones, as DynamicViT), or
    latency (expected time of the blocks, measured on this machine)."""
    reward: str = "likelihood"
    """What selectors that learn from a reward maximise: likelihood, correct, rank1 (re-identification), or
    your own package.module:function of (output, targets) -> (B,)."""
    reward_samples: int = 4
    """Selections tried for each image and step, to compare their rewards."""
    policy_gradient: float = 1.0
    """Weight of that."""
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
    rerank: bool = False
    """Re-identification: also report k-reciprocal re-ranking (map_reranked, rank1_reranked)."""
    adaptive: bool = False
    """Also evaluate with as many tokens as each image needs: thresholds on the scores, calibrated so that on average
    over training images as many are kept as the keep ratio says."""
    calibration_images: int = 512
    """Training images, without augmentation, that thresholds are calibrated on."""


@dataclass
class Config:
    """A run."""

    task: str = "classify"
    """classify or reid."""
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


def leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return every setting as ``(key.subkey, value)``."""
    found: list[tuple[str, Any]] = []
    for entry in fields(node):
        value = getattr(node, entry.name)
        found += leaves(value, f"{prefix}{entry.name}.") if is_dataclass(value) else [(prefix + entry.name, value)]
    return found
