"""Every setting of a run, with its default."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from dynavit.config.limits import Interval, setting


@dataclass
class ModelConfig:
    """Which backbone, and how it is pruned."""

    architecture: str | None = None
    """timm name; may be left out when ``checkpoint`` is a folder that dynavit wrote."""
    pretrained: bool = False
    """Start from timm's weights."""
    checkpoint: str | None = None
    """Start from these weights: a dynavit folder, a state dict (.safetensors, .pth, .ckpt ...), or a folder of
    the Hugging Face Hub."""
    entry: str | None = None
    """Which weights to take of a checkpoint file with several sets, such as state_dict or state_dict_ema; averaged
    ones first if null."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Everything else that timm.create_model takes."""
    stages: list[int] | None = setting(None, within="[0, inf)")
    """Prune at these blocks (0-based); the first one and that at a third of the depth if null."""
    keep_ratio: float = setting(0.7, within="(0, 1]")
    """r keeps r, r^2, r^3 ... of the original patches over the stages."""
    keep_ratios: list[float] | None = setting(None, within="(0, 1]")
    """One ratio a stage, in place of keep_ratio."""
    selector: dict[str, Any] | None = setting(None, named="topk")
    """What turns logits into a choice of tokens; `dynavit selectors` lists them. topk if null."""
    scorer: dict[str, Any] | None = setting(None, named="mlp")
    """What gives tokens their logits; `dynavit scorers` lists them. If null distinctness, which learns nothing, or mlp
    where a selector is given that lets it learn."""
    reducer: dict[str, Any] | None = setting(None, named="drop")
    """What becomes of tokens not kept: drop, fuse, squeeze, merge_nearest, aggregate; or merge, without scores. If null
    merge_nearest, or drop where the selector removes no token while training."""
    placement: str = setting("before", choices=("before", "inside"))
    """Prune before a stage's block, or inside it, between its attention and its MLP."""
    count_rule: str = setting("original", choices=("original", "linear", "current"))
    """original: ratios of the original patches, r, r^2, r^3 ...; linear: r is what the last stage leaves;
    current: ratios of the tokens that a stage finds."""
    embedding: str = setting("after", choices=("after", "before"), task="reid")
    """Re-identification: the embedding is taken after or before the batch norm of the neck."""
    side: dict[str, Any] | None = setting(None, task="reid")
    """Re-identification: camera and view embedding, such as {scale: 3.0}; needs cameras in the data."""
    execution: str = setting("auto", choices=("auto", "mask", "gather"))
    """While training, gather removes dropped tokens and mask hides them; auto gathers where their number is fixed."""
    probes: int = setting(8, within="[0, inf)")
    """Dropped tokens of each image and stage that stay hidden where training gathers, so that scorers learn of them."""
    mask_form: str = setting("key", choices=("key", "identity"))
    """key or identity: how the mask enters attention while training."""


@dataclass
class DataConfig:
    """Which images, and how they are loaded."""

    name: str = "folder"
    """Classification: quickstart, folder, torchvision/NAME, or whatever timm.data.create_dataset reads.
    Re-identification: quickstart-reid, folder, market1501, dukemtmc, msmt17, cuhk03np or veri776; in several spectra
    quickstart-multimodal, rgbnt201, rgbnt100, msvr310, or folder with data.options.spectra."""
    root: str | None = None
    """Folder of the images."""
    train_split: str = "train"
    """The part to train on; data.name=folder finds training, too, where there is no train."""
    validation_split: str = setting("val", task="classify")
    """The part to validate on; data.name=folder finds valid, validation, dev, test and testing where there is no
    val."""
    download: bool = False
    """Fetch what is missing, where the data set knows how."""
    corrupt: str = setting("stop", choices=("stop", "skip"))
    """stop or skip: what to do about images that cannot be read."""
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of the data set. folder has validation_fraction for one folder of classes, and labels (a CSV),
    validation_labels, images, image_column, label_column; re-identification: see dynavit.data.reid_layouts and
    dynavit.data.spectral_layouts."""
    mean: list[float] | None = setting(None, within="[-1e6, 1e6]")
    """Subtracted from each channel in 0..1; what the backbone's weights expect if null."""
    std: list[float] | None = setting(None, within="[1e-6, 1e6]")
    """Each channel is divided by it; what the backbone's weights expect if null."""
    interpolation: str | None = setting(None, choices=("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"))
    """nearest, bilinear, bicubic, box, hamming or lanczos; what the backbone's weights expect if null."""
    crop_pct: float | None = setting(None, within="[0.1, 1]", task="classify")
    """Part of the resized image's edge that evaluation keeps; what the backbone's weights expect if null."""
    augmentation: dict[str, Any] | None = None
    """Arguments of timm's training transform (re-identification: flip, pad, erase); null trains on the
    evaluation transform."""
    mixup: float = setting(0.0, within="[0, 1000]", task="classify")
    """Alpha of mixup; 0 leaves it out."""
    cutmix: float = setting(0.0, within="[0, 1000]", task="classify")
    """Alpha of CutMix; 0 leaves it out."""
    batch_size: int = setting(64, within="(0, inf)")
    """Images a step and process; fewer, with a note, where the training data are fewer."""
    images_per_identity: int = setting(4, within="(0, inf)", task="reid")
    """Re-identification: K of a batch's P x K images, P = batch_size / K identities."""
    workers: int = setting(2, within="[0, 1024]")
    """Processes that load images; 0 loads them in the training process."""


@dataclass
class OptimizerConfig:
    """How weights move. Learning rates are not scaled by the batch size."""

    name: str = "adamw"
    """Any optimiser of timm.optim."""
    lr: float = setting(1e-3, within="(0, 1e6]")
    """Peak learning rate of the scorers."""
    backbone_lr_scale: float = setting(1.0, within="[0, 1e6]")
    """The backbone learns at lr times this."""
    layer_decay: float | None = setting(None, within="(0, 1]")
    """The learning rate of each block of the backbone is that of the next one times this."""
    weight_decay: float = setting(0.05, within="[0, 1e6]")
    """Backbone matrices only."""
    warmup_epochs: float = setting(0.0, within="[0, inf)")
    """The learning rate rises over the first epochs; fractions count."""
    final_lr_scale: float = setting(0.0, within="[0, 1e6]")
    """The cosine ends at lr times this."""
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of timm's create_optimizer_v2."""


@dataclass
class TrainConfig:
    """How long and how."""

    epochs: int = setting(30, within="(0, inf)")
    """Passes over the training data."""
    dense_epochs: int | None = setting(None, within="[0, inf)")
    """Where the start has weights but does not know the classes yet, a dense model is fine-tuned first, for so many
    epochs; as many as epochs if null, none if 0."""
    steps_per_epoch: int | None = setting(None, within="(0, inf)")
    """Batches an epoch; the whole data set if null. Required for streams of unknown length."""
    mixed_precision: str = setting("no", choices=("no", "bf16", "fp16"))
    """no, bf16 or fp16."""
    accumulation_steps: int = setting(1, within="(0, inf)")
    """Batches whose gradients are added up for one step."""
    clip_grad_norm: float | None = setting(1.0, within="(0, inf)")
    """For backbone and scorers separately."""
    ema_decay: float | None = setting(None, within="(0, 1)")
    """Also keep averaged weights, with this decay a step, and deploy those."""
    freeze: str = setting("none", choices=("none", "backbone"))
    """none or backbone."""
    freeze_epochs: int = setting(0, within="[0, inf)")
    """Keep the backbone still for the first epochs."""
    sync_batchnorm: bool = setting(False, task="reid")
    """Re-identification on several GPUs: batch norm statistics over all processes, not each one's own."""
    compile: bool = False
    """Compile the model with torch.compile."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, with less memory."""
    checkpoint_steps: int | None = setting(None, within="(0, inf)")
    """Also save the state every so many steps, beside every epoch."""
    log_steps: int = setting(50, within="(0, inf)")
    """Steps between two entries in trackers, and between two lines in logs without a terminal."""
    trackers: list[str] = setting(lambda: ["tensorboard"])
    """Where losses and metrics are logged beside metrics.jsonl: any of Accelerate's trackers that are installed, such
    as [tensorboard, wandb, mlflow]."""
    patience: int | None = setting(None, within="(0, inf)")
    """Stop after so many epochs without a better validation metric, with the model of the best one."""


@dataclass
class LossConfig:
    """What is minimised beside cross-entropy, and how much each counts."""

    label_smoothing: float = setting(0.0, within="[0, 1)")
    """Of cross-entropy."""
    class_weights: str = setting("none", choices=("none", "balanced"), task="classify")
    """none, or balanced: in the cross-entropy an image counts the more, the fewer images its class has, so that all
    classes count alike."""
    identity_weight: float = setting(1.0, within="[0, inf)", task="reid")
    """Re-identification: weight of the cross-entropy over the training identities."""
    metric: dict[str, Any] = setting(lambda: {"name": "triplet"}, task="reid", named="triplet")
    """Re-identification: triplet (margin, soft_margin, distance, normalize), or any loss of
    pytorch-metric-learning with its parameters."""
    metric_weight: float = setting(1.0, within="[0, inf)", task="reid")
    """Re-identification: weight of the metric loss."""
    center_weight: float = setting(0.0, within="[0, inf)", task="reid")
    """Re-identification: weight of a centre loss beside the metric loss; 5e-4 is usual."""
    metric_across_processes: bool = setting(False, task="reid")
    """Mine triplets in the batches of all processes together, not in each one's own."""
    keep_ratio_weight: float = setting(2.0, within="[0, inf)")
    """Weight of the keep-ratio loss: for selectors whose count is only expected; left out for those with a fixed k."""
    keep_ratio_measure: str = setting("probabilities", choices=("probabilities", "decisions", "latency"))
    """What the keep-ratio loss looks at: probabilities, decisions (the sampled ones, as DynamicViT), or
    latency (expected time of the blocks, measured on this machine)."""
    reward: str = "likelihood"
    """What selectors that learn from a reward maximise: likelihood, correct, rank1 (re-identification), or
    your own, registered with dynavit.tasks.rewards.register_reward."""
    reward_samples: int = setting(4, within="[2, inf)")
    """Selections tried for each image and step, to compare their rewards."""
    policy_gradient_weight: float = setting(1.0, within="[0, inf)")
    """Weight of learning from the reward."""
    logit_distillation_weight: float = setting(0.0, within="[0, inf)")
    """Weight of agreeing with the teacher's logits."""
    token_distillation_weight: float = setting(0.0, within="[0, inf)")
    """Weight of agreeing with the teacher's features of the kept tokens."""
    score_distillation_weight: float = setting(0.0, within="[0, inf)")
    """Weight of scoring patches as the teacher's late blocks attend to them; for scorers that learn."""
    distillation_temperature: float = setting(1.0, within="[1e-6, 1e6]")
    """Of the logits, where they are compared with the teacher's."""
    teacher: str = "start"
    """start: the frozen starting model, run densely; or a folder that dynavit wrote."""


@dataclass
class ScheduleConfig:
    """What moves with the optimiser steps beside the learning rate."""

    temperature_start: float = setting(1.0, within="[1e-6, 1e6]")
    """Of the selector, at the first step."""
    temperature_end: float = setting(1.0, within="[1e-6, 1e6]")
    """Of the selector, at the last step."""
    temperature_kind: str = setting("exponential", choices=("exponential", "cosine", "linear"))
    """exponential, cosine or linear."""
    keep_ratio_warmup_epochs: float = setting(0.0, within="[0, inf)")
    """Go from ratio 1 to the target over the first epochs."""


@dataclass
class EvaluateConfig:
    """What tools/evaluate.py does unless told otherwise."""

    keep_ratios: list[float] = setting(lambda: [1.0, 0.9, 0.8, 0.7, 0.6, 0.5], within="(0, 1]")
    """Ratios to evaluate at."""
    batch_sizes: list[int] = setting(lambda: [1, 32], within="[1, 65536]")
    """Speed is measured at these."""
    rounds: int = setting(7, within="(0, inf)")
    """Timing rounds; medians over rounds are reported."""
    rerank: bool = setting(False, task="reid")
    """Re-identification: also report k-reciprocal re-ranking (map_reranked, rank1_reranked)."""
    adaptive: bool = False
    """Also evaluate with as many tokens as each image needs: thresholds on the scores, calibrated so that on average
    over training images as many are kept as the keep ratio says."""
    calibration_images: int = setting(512, within="(0, inf)")
    """Training images, without augmentation, that thresholds are calibrated on."""
    rivals: str = "auto"
    """Smaller images for the dense model, to compare with: auto, those nearest in time to each keep ratio; none; or
    heights in pixels with commas between them."""


@dataclass
class Config:
    """A run."""

    task: str = setting("classify", choices=("classify", "reid"))
    """classify or reid."""
    name: str = "run"
    """Of the run, and of its folder in checkpoints/."""
    output_dir: str | None = None
    """Where the run is written; checkpoints/<name> if null."""
    seed: int = setting(0, within="[0, 4294967296)")
    """Of everything random: weights, order, augmentation, selector noise."""
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


@dataclass(frozen=True)
class Setting:
    """A setting of a configuration, with what it may be; see :func:`~dynavit.config.limits.setting`."""

    key: str
    value: Any
    type: str
    within: Interval | None = None
    choices: tuple[str, ...] | None = None
    task: str | None = None
    named: str | None = None


def settings(node: Any, prefix: str = "") -> list[Setting]:
    """Return every setting of a configuration, or of a part of it."""
    found: list[Setting] = []
    for entry in fields(node):
        key, value = prefix + entry.name, getattr(node, entry.name)
        if is_dataclass(value):
            found += settings(value, f"{key}.")
        else:
            found.append(Setting(key, value, str(entry.type), **entry.metadata))
    return found


def leaves(node: Any) -> list[tuple[str, Any]]:
    """Return every setting as ``(key.subkey, value)``."""
    return [(entry.key, entry.value) for entry in settings(node)]
