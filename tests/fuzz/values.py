"""Values that settings can have, and values that they cannot, as written on the command line or in YAML.

A value may come with companions, settings that it makes no sense without. ``<name>`` stands for a path, see
``conftest.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from timm.optim import list_optimizers

from dynavit.reducers import create_reducer, list_reducers, reducer_config
from dynavit.scorers import create_scorer, list_scorers, scorer_config
from dynavit.selectors import create_selector, list_selectors
from dynavit.selectors.registry import selector_config

Value = tuple[str, dict[str, str]]  # with its companions

CLASSIFY = {
    "task": "classify",
    "model.architecture": "vit_tiny_patch16_224",
    "model.kwargs": "{img_size: 32, patch_size: 8, embed_dim: 24, depth: 3, num_heads: 3}",
    "model.stages": "[1, 2]",
    "model.keep_ratio": "0.5",
    "data.root": "<pictures>",
    "data.crop_pct": "1.0",
    "data.batch_size": "8",
    "data.workers": "0",
    "train.epochs": "1",
    "train.steps_per_epoch": "1",
    "train.log_steps": "1",
    "output_dir": "<fresh>/run",
}
REID = {
    **{key: text for key, text in CLASSIFY.items() if key != "data.crop_pct"},
    "task": "reid",
    "data.name": "market1501",
    "data.root": "<people>",
    "data.images_per_identity": "2",
}


def _values(*texts: str, **companions: str) -> list[Value]:
    return [(text, {key.replace("__", "."): value for key, value in companions.items()}) for text in texts]


def _flow(value: Any) -> str:
    """Write a value on one line; JSON is YAML, but for its numbers without a point."""
    return json.dumps(value)


_SELECTORS = [selector_config(create_selector(name)) for name in list_selectors() if name != "fixed"]
_SCORERS = [scorer_config(create_scorer(name, dim=24)) for name in list_scorers()]
_REDUCERS = [reducer_config(create_reducer(name, dim=24)) for name in list_reducers()]
# what needs another package or a GPU
# kron compiles itself for every shape, which takes longer than an attempt may
_OPTIMIZERS = [name for name in list_optimizers() if not name.startswith(("bnb", "fused", "adahessian", "kron"))]


def _parts(configs: Iterable[Mapping[str, Any]]) -> list[Value]:
    configs = list(configs)
    return _values(*(_flow({"name": config["name"]}) for config in configs), *(_flow(config) for config in configs))


def _wrong_parts(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    wrong: list[Any] = [
        *({**config, option: value} for config in configs for option in config for value in ("abc", -1, None, [], {})),
        *({"name": config["name"], "nope": 1} for config in configs),
        *({"name": name} for name in ("nope", "", None, 3, ["topk"], {"a": 1}, "os.system", "__class__")),
        *({}, {"topk": 1}, "topk", ["topk"], {"name": "topk", "dim": 3}, {1: 2}),
    ]
    floats = [{**config, option: "NAN"} for config in configs for option in config if option != "name"]
    return [*map(_flow, wrong), *(_flow(value).replace('"NAN"', ".nan") for value in floats)]


VALID: dict[str, list[Value]] = {
    "task": _values("classify", "reid"),
    "name": _values("run", "ein Lauf", "ünïcödé", "a.b", "2026"),
    "output_dir": _values("<fresh>/a/b", "<fresh>/with space", "<fresh>/ünïcödé", "run", "null"),
    "seed": _values("0", "1", "12345", "4294967295"),
    "model.architecture": _values(
        *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"),
        *("vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224", "vit_medium_patch16_gap_240"),
        *("beit_base_patch16_224", "vit_small_patch16_rope_mixed_224"),
    ),
    "model.pretrained": _values("false"),
    "model.checkpoint": [
        *_values("null", "<weights.pth>", "<weights.safetensors>"),
        *_values("<model>", model__architecture="null", model__kwargs="{}"),
        *_values("<reid-model>", task="reid", model__architecture="null", model__kwargs="{}"),
    ],
    "model.kwargs": _values(
        *("{drop_path_rate: 0.1}", "{qkv_bias: false}", "{img_size: 16}", "{img_size: [32, 16]}", "{qk_norm: true}"),
        *("{init_values: 1.0e-5}", "{class_token: false, global_pool: avg}", "{patch_stride: 4}", "{depth: 4}"),
    ),
    "model.stages": _values("null", "[1, 2]", "[1]", "[2]", "[]", "[0]"),
    "model.keep_ratio": _values("0.3", "0.5", "1.0", "1", "0.999", "7e-1"),
    "model.keep_ratios": _values("null", "[0.5, 0.25]", "[0.9, 0.1]", "[1.0, 0.5]", model__stages="[1, 2]"),
    "model.selector": _parts(_SELECTORS),
    "model.scorer": _parts(_SCORERS),
    "model.reducer": _parts(_REDUCERS),
    "model.placement": _values("before", "inside"),
    "model.count_rule": _values("original", "linear", "current"),
    "model.embedding": _values("after", "before", task="reid"),
    "model.side": _values("null", "{scale: 3.0}", "{scale: 1.0}", task="reid"),
    "model.execution": _values("auto", "mask", "gather"),
    "model.mask_form": _values("key", "identity"),
    "data.name": [
        *_values(
            "quickstart",
            data__root="null",
            data__options="{train_size: 8, validation_size: 4, fragments: 2}",
        ),
        *_values(
            "quickstart-reid",
            task="reid",
            data__root="null",
            data__options="{train_identities: 4, images_per_identity: 4, test_identities: 4, gallery_per_camera: 1}",
        ),
        *_values("folder", task="classify"),
        *_values("market1501", task="reid"),
    ],
    "data.root": _values("<pictures>", "<pictures>/", task="classify"),
    "data.train_split": _values("train", "extra", task="classify"),
    "data.validation_split": _values("val", "extra", task="classify"),
    "data.corrupt": _values("stop", "skip"),
    "data.mean": _values("null", "[0.5, 0.5, 0.5]", "[0, 0, 0]"),
    "data.std": _values("null", "[0.5, 0.5, 0.5]", "[1, 1, 1]"),
    "data.interpolation": _values("null", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    "data.crop_pct": _values("null", "0.9", "1", "0.5", task="classify"),
    "data.augmentation": [
        *_values("null", "{}"),
        *_values("{hflip: 1.0, vflip: 0.5}", "{color_jitter: 0.2}", "{random_erasing: 0.5}", task="classify"),
        *_values("{auto_augment: rand-m9-mstd0.5-inc1}", "{auto_augment: 3a, scale: [0.5, 1]}", task="classify"),
        *_values("{flip: 0.5, pad: 1, erase: 0.2}", "{erase: 1}", task="reid"),
    ],
    "data.mixup": _values("0", "0.2", "1.0", task="classify"),
    "data.cutmix": _values("0.0", "0.5", "1", task="classify"),
    "data.batch_size": _values("2", "4", "8"),
    "data.images_per_identity": _values("2", "4", task="reid"),
    "data.workers": _values("0", "0", "0", "0", "1"),  # starting a worker takes as long as the rest
    "optimizer.name": _values(*_OPTIMIZERS),
    "optimizer.lr": _values("1e-3", "0.0003", "1.0e-5", "1"),
    "optimizer.backbone_lr_scale": _values("1.0", "0.1", "0"),
    "optimizer.layer_decay": _values("null", "0.75", "1.0"),
    "optimizer.weight_decay": _values("0", "0.05", "1e-4"),
    "optimizer.warmup_epochs": _values("0", "0.5", "1", "5"),
    "optimizer.final_lr_scale": _values("0", "0.01", "1"),
    "optimizer.options": _values("{}", "{betas: [0.9, 0.99]}", "{eps: 1.0e-6}", optimizer__name="adamw"),
    "train.epochs": _values("1", "2"),
    "train.steps_per_epoch": _values("null", "1", "2"),
    "train.mixed_precision": _values("no", '"no"', "bf16"),
    "train.accumulation_steps": [
        *_values("1"),
        *_values("2", data__batch_size="4", data__images_per_identity="2", train__steps_per_epoch="2", task="reid"),
        *_values("2", data__batch_size="4", train__steps_per_epoch="2", task="classify"),
    ],
    "train.clip_grad_norm": _values("null", "1.0", "1e-2"),
    "train.ema_decay": _values("null", "0.9", "0.9999"),
    "train.freeze": _values("none", "backbone"),
    "train.freeze_epochs": _values("0", "1"),
    "train.sync_batchnorm": _values("false", "true", task="reid"),
    "train.checkpoint_steps": _values("null", "1", "10"),
    "train.log_steps": _values("1", "50"),
    "loss.label_smoothing": _values("0", "0.1", "0.99"),
    "loss.identity_weight": _values("1.0", "0.5", "0", task="reid"),
    "loss.metric": _values(
        *("{name: triplet}", "{name: triplet, margin: 0.5}", "{name: triplet, soft_margin: true}"),
        *("{name: ContrastiveLoss}", "{name: CircleLoss, gamma: 64}", "{name: MultiSimilarityLoss}"),
        task="reid",
    ),
    "loss.metric_weight": _values("1.0", "0.1", "0", task="reid"),
    "loss.center_weight": _values("0", "5e-4", task="reid"),
    "loss.metric_across_processes": _values("false", "true", task="reid"),
    "loss.keep_ratio_weight": _values("2.0", "0", model__selector="{name: ste}"),
    "loss.keep_ratio_measure": _values("probabilities", "decisions", "latency", model__selector="{name: ste}"),
    "loss.reward": [
        *_values("likelihood", "correct", model__selector="{name: score_function}"),
        *_values("rank1", model__selector="{name: score_function}", task="reid"),
    ],
    "loss.reward_samples": _values("2", "4", model__selector="{name: score_function}"),
    "loss.policy_gradient_weight": _values("1", "0.1", model__selector="{name: score_function}"),
    "loss.logit_distillation_weight": _values("0", "0.5", loss__teacher="<model>", task="classify"),
    "loss.token_distillation_weight": _values("0", "0.5", loss__teacher="<model>", task="classify"),
    "loss.score_distillation_weight": _values(
        *("0", "0.5"),
        loss__teacher="<model>",
        task="classify",
        model__scorer="{name: light}",
        model__selector="{name: topk}",
    ),
    "loss.distillation_temperature": _values("1", "4.0"),
    "loss.teacher": [*_values("start"), *_values("<model>", loss__logit_distillation_weight="1", task="classify")],
    "schedule.temperature_start": _values("1.0", "5", "0.1"),
    "schedule.temperature_end": _values("1.0", "0.1"),
    "schedule.temperature_kind": _values("exponential", "cosine", "linear"),
    "schedule.keep_ratio_warmup_epochs": _values("0", "0.5", "1"),
    "evaluate.keep_ratios": _values("[1.0, 0.5]", "[0.7]", "[]"),
    "evaluate.batch_sizes": _values("[1, 32]", "[2]", "[]"),
    "evaluate.rounds": _values("1", "7"),
    "evaluate.rerank": _values("false", "true", task="reid"),
    "evaluate.calibration_images": _values("1", "512"),
}
"""Settings that are not here have their default, and true and false where that is one of them."""

WRONG: dict[str, list[str]] = {
    "task": ["classification", "CLASSIFY", "re-id"],
    "name": ["../../given/own", "a/b", "..", ".", "x" * 300, "/"],
    "output_dir": ["<pictures>", "<own>", "<own>/notes.txt", "<own>/notes.txt/run", "<model>", "x" * 300],
    "model.architecture": [
        "vit_tny",
        "resnet18",
        "hf-hub:a/b",
        "local-dir:<own>",
        "nope/nope",
        "vit_tiny_patch16_224.x",
    ],
    "model.checkpoint": ["<own>", "<own>/notes.txt", "<own>/nothing.pth", "<pictures>", "<damaged.pth>", "nope/nope"],
    "model.kwargs": [
        *("{depth: 0}", "{depth: -1}", "{depth: 2.5}", "{depth: null}", "{num_heads: 5}", "{num_heads: 0}"),
        *("{nope: 1}", "{img_size: 0}", "{img_size: -32}", "{img_size: .nan}", "{img_size: abc}", "{img_size: 33}"),
        *("{img_size: [32]}", "{img_size: [32, 32, 3]}", "{img_size: {a: 1}}", "{patch_size: 0}", "{patch_size: 64}"),
        *("{patch_stride: 0}", "{patch_stride: 99}", "{patch_stride: abc}", "{in_chans: 0}", "{in_chans: 1}"),
        *("{in_chans: abc}", "{embed_dim: 0}", "{embed_dim: 25}", "{embed_dim: abc}", "{num_classes: 5}"),
        *("{num_classes: -1}", "{num_classes: abc}", "{drop_path_rate: 7}", "{drop_rate: .nan}", "{drop_rate: -1}"),
        *("{norm_layer: nope}", "{norm_layer: layernorm}", "{act_layer: nope}", "{weight_init: nope}"),
        *("{global_pool: nope}", "{global_pool: 3}", "{class_token: 7}", "{features_only: true}", "{scriptable: 1}"),
        *("{checkpoint_path: <own>/notes.txt}", "{checkpoint_path: /nonexistent}", "{pretrained: true}", "{1: 2}"),
        *("{pretrained_cfg: 3}", "{pretrained_cfg: nope}", "{pretrained_cfg_overlay: {input_size: 3}}"),
        *("{mlp_ratio: -1}", "{mlp_ratio: .inf}", "{reg_tokens: -1}", "{stages: [1]}", "{selector: topk}"),
    ],
    "model.stages": ["[7]", "[-1]", "[1, 1]", "[2, 1]", "[1.5]", "[.nan]", "1", "[null]", "[[1]]", "[true]", "[abc]"],
    "model.keep_ratio": ["0.0", "1.0001", "[0.5]", "-0.5", "50%", "7"],
    "model.keep_ratios": [
        "[0.5]",
        "[0.3, 0.6]",
        "[]",
        "[.nan, 0.5]",
        "[0.5, 2]",
        "[null, 1]",
        "[0.5, 0]",
        "[[1], [1]]",
    ],
    "model.selector": [*_wrong_parts(_SELECTORS), "{name: fixed}"],
    "model.scorer": _wrong_parts(_SCORERS),
    "model.reducer": _wrong_parts(_REDUCERS),
    "model.side": ["{}", "{cameras: 3}", "{scale: .nan}", "{scale: abc}", "{scale: null}", "{nope: 1}", "{views: -1}"],
    "data.name": ["nope", "torchvision/Nope", "torchvision/", "torch/nope", "/", "market1501", "a/b"],
    "data.root": ["<own>", "<own>/notes.txt", "<own>/nothing", "<people>", "<pictures>/train", "null", "~/nothing"],
    "data.train_split": ["training", "val", "../train", "/", "nope"],
    "data.validation_split": ["validation", "train", "..", "nope"],
    "data.options": ["{nope: 1}", "{num_classes: -1}", "{num_classes: abc}", "{root: 3}", "{1: 2}", "{split: train}"],
    "data.mean": ["[0.5]", "[]", "[.nan, 0, 0]", "[.inf, 0, 0]", "[a, b, c]", "[null, null, null]", "[1, 2, 3, 4]"],
    "data.std": ["[0.5]", "[0, 0, 0]", "[.nan, 1, 1]", "[.inf, 1, 1]", "[-1, -1, -1]", "[null, 1, 1]"],
    "data.interpolation": ["random", "Bicubic", "3"],
    "data.augmentation": [
        *("{nope: 1}", "{hflip: 2}", "{hflip: abc}", "{scale: [1]}", "{scale: [.nan, 1]}", "{scale: abc}"),
        *(
            "{ratio: [0, 0]}",
            "{color_jitter: abc}",
            "{color_jitter: -1}",
            "{color_jitter: [1]}",
            "{auto_augment: nope}",
        ),
        *("{auto_augment: 3}", "{auto_augment: rand-x9}", "{random_erasing: .nan}", "{random_erasing_mode: 3}"),
        *("{flip: 2}", "{pad: -1}", "{pad: abc}", "{pad: 1.5}", "{erase: .nan}", "{color_jitter: .nan}"),
    ],
    "data.batch_size": ["1", "3", "64", "1000000000000"],
    "data.images_per_identity": ["1", "3", "100"],
    "optimizer.name": ["nope", "AdamW", "fusedadam", "bnbadam", "adahessian", "lookahead_adam", "lookahead_"],
    "optimizer.layer_decay": ["-0.5", "2", "100"],
    "optimizer.options": [
        *("{nope: 1}", "{betas: 3}", "{betas: [2, 2]}", "{betas: [.nan, 0.9]}", "{lr: 1}", "{eps: -1}", "{eps: abc}"),
        *("{params: 1}", "{opt: sgd}", "{weight_decay: abc}", "{momentum: 0.9}", "{1: 2}", "{foreach: abc}"),
    ],
    "train.mixed_precision": ["fp16", "fp8", "half", "yes"],
    "train.steps_per_epoch": ["1000000000000"],
    "train.accumulation_steps": ["3", "1000"],
    "train.freeze": ["all", "head"],
    "loss.metric": [
        *("{}", "{name: nope}", "{name: ContrastiveLoss, nope: 1}", "{name: triplet, margin: abc}", "{name: [a]}"),
        *("{name: triplet, margin: .nan}", "{name: triplet, distance: nope}", "{name: triplet, nope: 1}", "triplet"),
        *("{name: triplet, soft_margin: abc}", "{name: BaseMetricLossFunction}", "{name: null}", "{name: __doc__}"),
        *("{name: ArcFaceLoss}", "{name: CircleLoss, gamma: abc}", "{margin: 0.3}"),
    ],
    "loss.reward": ["nope", "nope.mod:fn", "math:nope", "math:sqrt", ":", "a:b:c", "math:pi"],
    "loss.teacher": ["<own>", "<own>/notes.txt", "<pictures>", "nope/nope", "<own>/nothing", "<reid-model>"],
    "schedule.temperature_kind": ["exp", "constant"],
}
"""What suits one setting only; success is not excluded, as little as it is with what suits any."""

WEIRD = [
    *("abc", "''", '" "', "null", "~", "true", "no", "ünïcödé ☃", "x" * 3000, r'"a\nb"', r'"a\0b"', r'"\e[1mbold"'),
    *("-1", "0", "-0.0", "1.5", "1e308", "1e-320", "0x10", "0o17", "1_000", "1" + "0" * 30, "-1" + "0" * 30),
    *(".nan", ".inf", "-.inf", "nan", "inf", "NaN", "'5'", "2026-01-01", "12:30:45", "1e", "--1", "0.1.2"),
    *("[]", "[1, 2]", "[[]]", "[null]", "{}", "{a: 1}", "{a: {b: [1, {c: 2}]}}", "{1: 2}", "{null: null}", "[.nan]"),
    *(
        "${oops}",
        "${seed}",
        "${model}",
        "${oc.env:NOT_SET}",
        "${",
        "???",
        "/nonexistent/x",
        "../x",
        "a: b",
        "a=b",
        "=",
        "%",
    ),
    *(
        "!!python/object/apply:os.system [touch HACKED]",
        "!!binary aGVsbG8=",
        "!nope x",
        "&a [*a]",
        "*a",
        "{<<: 1}",
        "[1",
    ),
]
