"""convert: published checkpoint formats give the published outputs, and whatever does not fit is refused."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import dynavit
from dynavit import InputError
from dynavit.checkpoints.convert import FORMATS, convert, detect_format

State = dict[str, Tensor]
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 64}
TINY = {**SMALL, "stages": (1, 2)}


def small(name: str = "vit_tiny_patch16_224", num_classes: int = 5, **kwargs: Any) -> Any:
    """A timm model with weights that matter."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **kwargs}, num_classes=num_classes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def published(name: str) -> dict[str, Any]:
    """A small model's arguments for convert, without stages: its outputs are the backbone's."""
    size = {"img_size": 56} if "patch14" in name else {}
    return {**SMALL, **size, "stages": ()}


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


# Reverse mappings, written out by hand


def to_hugging_face(timm_state: State, prefix: str, style: str) -> State:
    """Rename timm's weights as Hugging Face publishes them; style is "vit" (and DeiT) or "dinov2"."""
    state: State = {}
    heads = {"vit": "classifier", "dinov2": "classifier", "deit": "cls_classifier"}
    for name, value in timm_state.items():
        module, kind = name.rsplit(".", 1) if "." in name else ("", name)
        if name == "cls_token":
            state[f"{prefix}embeddings.cls_token"] = value
        elif name == "dist_token":
            state[f"{prefix}embeddings.distillation_token"] = value
        elif name == "pos_embed":
            state[f"{prefix}embeddings.position_embeddings"] = value
        elif module == "patch_embed.proj":
            state[f"{prefix}embeddings.patch_embeddings.projection.{kind}"] = value
        elif module == "norm":
            state[f"{prefix}layernorm.{kind}"] = value
        elif module == "head":
            state[f"{heads[style]}.{kind}"] = value
        elif module == "head_dist":
            state[f"distillation_classifier.{kind}"] = value
        else:
            _, number, part = module.split(".", 2)
            layer = f"{prefix}encoder.layer.{number}"
            if part == "attn.qkv":
                for which, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    state[f"{layer}.attention.attention.{which}.{kind}"] = rows.clone()
            elif part == "attn.proj":
                state[f"{layer}.attention.output.dense.{kind}"] = value
            elif part in ("ls1", "ls2"):
                state[f"{layer}.layer_scale{part[-1]}.lambda1"] = value
            elif style == "dinov2":
                state[f"{layer}.{part}.{kind}"] = value  # norm1, norm2, mlp.fc1, mlp.fc2
            else:
                theirs = {
                    "norm1": "layernorm_before",
                    "norm2": "layernorm_after",
                    "mlp.fc1": "intermediate.dense",
                    "mlp.fc2": "output.dense",
                }
                state[f"{layer}.{theirs[part]}.{kind}"] = value
    return state


def renamed(backbone: nn.Module, source: str) -> State:
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    if source == "timm":
        return state
    if source == "hf-vit":
        return to_hugging_face(state, "vit.", "vit")
    if source == "hf-deit":
        return to_hugging_face(state, "deit.", "deit")
    dinov2 = to_hugging_face(state, "", "dinov2")
    dinov2["embeddings.mask_token"] = torch.zeros(1, 48)
    return dinov2


CASES = [
    ("timm", "deit_tiny_patch16_224", 5),
    ("timm", "deit_tiny_distilled_patch16_224", 5),
    ("hf-vit", "vit_tiny_patch16_224", 5),
    ("hf-deit", "deit_tiny_distilled_patch16_224", 5),
    ("hf-dinov2", "vit_small_patch14_dinov2", 0),
]


@torch.no_grad()
@pytest.mark.parametrize(("source", "name", "num_classes"), CASES)
def test_round_trip(source: str, name: str, num_classes: int, tmp_path: Path) -> None:
    options = published(name)
    backbone = small(name, num_classes, img_size=options["img_size"])
    state = renamed(backbone, source)
    assert detect_format(state) == source
    save_file(state, tmp_path / "model.safetensors")
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    batch = images(options["img_size"])
    for checkpoint in (tmp_path, tmp_path / "w.pth", state):
        model = convert(checkpoint, name, **options)
        assert torch.equal(model(batch), backbone(batch))
        assert not model.training
        assert model.metadata == {"converted_from": source, "new_parts": []}


@torch.no_grad()
def test_a_converted_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = convert(renamed(small(), "hf-vit"), "vit_tiny_patch16_224", keep_ratio=0.5, selector="random", **TINY)
    assert model.keep_ratios == (0.5, 0.25)
    assert model.metadata == {"converted_from": "hf-vit", "new_parts": []}
    model.save_pretrained(tmp_path)
    loaded = dynavit.load(tmp_path)
    assert loaded.metadata == model.metadata
    assert torch.equal(loaded(images()), model(images()))


# Hugging Face's models, computed from their own names


def by_hugging_face(state: Mapping[str, Tensor], patch: int, heads: int, swiglu: bool = False) -> Tensor:
    """The last hidden state of a Hugging Face ViT, DeiT or DINOv2, written from its definition."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    projection = "embeddings.patch_embeddings.projection"
    batch = images(patch * 4)
    patches = F.conv2d(batch, state[f"{projection}.weight"], state[f"{projection}.bias"], stride=patch)
    patches = patches.flatten(2).transpose(1, 2)
    tokens = [state["embeddings.cls_token"]]
    if "embeddings.distillation_token" in state:
        tokens.append(state["embeddings.distillation_token"])
    x = torch.cat([token.expand(2, -1, -1) for token in tokens] + [patches], dim=1)
    x = x + state["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in state:
        x = torch.cat([x[:, :1], state["embeddings.register_tokens"].expand(2, -1, -1), x[:, 1:]], dim=1)
    dinov2 = "encoder.layer.0.layer_scale1.lambda1" in state
    first, second = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
    for number in range(3):
        layer = f"encoder.layer.{number}"
        y = norm(x, f"{layer}.{first}")
        q, k, v = (split(linear(y, f"{layer}.attention.attention.{which}")) for which in ("query", "key", "value"))
        attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        y = linear((attention @ v).transpose(1, 2).flatten(2), f"{layer}.attention.output.dense")
        x = x + (y * state[f"{layer}.layer_scale1.lambda1"] if dinov2 else y)
        y = norm(x, f"{layer}.{second}")
        if swiglu:
            gate, value = linear(y, f"{layer}.mlp.weights_in").chunk(2, dim=-1)
            y = linear(F.silu(gate) * value, f"{layer}.mlp.weights_out")
        elif dinov2:
            y = linear(F.gelu(linear(y, f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")
        else:
            y = linear(F.gelu(linear(y, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = x + (y * state[f"{layer}.layer_scale2.lambda1"] if dinov2 else y)
    return norm(x, "layernorm")


def hugging_face_state(kind: str, patch: int, dim: int = 48, hidden: int = 192) -> State:
    """Random weights by the names and shapes that Hugging Face publishes."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, dim),
        "embeddings.position_embeddings": (1, 18 if kind == "deit" else 17, dim),
        "embeddings.patch_embeddings.projection.weight": (dim, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (dim,),
    }
    if kind == "deit":
        shapes["embeddings.distillation_token"] = (1, 1, dim)
    if kind == "registers":
        shapes["embeddings.register_tokens"] = (1, 4, dim)
    dinov2 = kind in ("dinov2", "registers", "giant")
    if dinov2:
        shapes["embeddings.mask_token"] = (1, dim)
    norms = ["layernorm"]
    linears: list[tuple[str, int, int]] = []
    for number in range(3):
        layer = f"encoder.layer.{number}"
        names = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
        norms += [f"{layer}.{name}" for name in names]
        linears += [(f"{layer}.attention.attention.{which}", dim, dim) for which in ("query", "key", "value")]
        linears += [(f"{layer}.attention.output.dense", dim, dim)]
        up, down = ("mlp.fc1", "mlp.fc2") if dinov2 else ("intermediate.dense", "output.dense")
        if kind == "giant":
            linears += [(f"{layer}.mlp.weights_in", 2 * hidden, dim), (f"{layer}.mlp.weights_out", dim, hidden)]
        else:
            linears += [(f"{layer}.{up}", hidden, dim), (f"{layer}.{down}", dim, hidden)]
        if dinov2:
            shapes |= {f"{layer}.layer_scale{which}.lambda1": (dim,) for which in (1, 2)}
    for name in norms:
        shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    for name, out, into in linears:
        shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    generator = torch.Generator().manual_seed(3)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


KINDS = {
    "vit": ("hf-vit", "vit_tiny_patch16_224", 16),
    "deit": ("hf-deit", "deit_tiny_distilled_patch16_224", 16),
    "dinov2": ("hf-dinov2", "vit_small_patch14_dinov2", 14),
    "registers": ("hf-dinov2", "vit_small_patch14_reg4_dinov2", 14),
    "giant": ("hf-dinov2", "vit_giant_patch14_dinov2", 14),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_by_definition(kind: str) -> None:
    source, name, patch = KINDS[kind]
    # timm's SwiGLU halves an MLP of 2 * 2.66667 times the width
    state = hugging_face_state(kind, patch, hidden=128 if kind == "giant" else 192)
    assert detect_format(state) == source
    expected = by_hugging_face(state, patch, heads=3, swiglu=kind == "giant")
    model = convert(state, name, **published(name))
    assert model.num_classes == 0
    torch.testing.assert_close(model.forward_features(images(patch * 4)), expected, atol=2e-5, rtol=1e-5)

    layer = "encoder.layer.1.attention.attention"  # the comparison is sharp enough to see two of them swapped
    swapped = {**state, f"{layer}.query.weight": state[f"{layer}.value.weight"]}
    swapped[f"{layer}.value.weight"] = state[f"{layer}.query.weight"]
    other = convert(swapped, name, **published(name)).forward_features(images(patch * 4))
    assert (other - expected).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "registers"])
def test_hugging_face_by_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source, name, patch = KINDS[kind]
    size: dict[str, Any] = {"image_size": patch * 4, "patch_size": patch, "hidden_size": 48}
    size |= {"num_hidden_layers": 3, "num_attention_heads": 3, "layer_norm_eps": 1e-6}
    classes = {
        "vit": ("ViTConfig", "ViTForImageClassification", {"intermediate_size": 192, "num_labels": 5}),
        "deit": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", {"intermediate_size": 192, "num_labels": 5}),
        "dinov2": ("Dinov2Config", "Dinov2Model", {}),
        "registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {}),
    }
    config, model_class, more = classes[kind]
    theirs = getattr(transformers, model_class)(getattr(transformers, config)(**size, **more)).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        parameter.copy_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    output = theirs(images(patch * 4))
    expected = output.logits if kind in ("vit", "deit") else output.last_hidden_state
    for checkpoint in (tmp_path, theirs.state_dict()):  # whose names differ in transformers 5
        model = convert(checkpoint, name, **published(name))
        assert model.metadata["converted_from"] == source
        found = model(images(patch * 4)) if kind in ("vit", "deit") else model.forward_features(images(patch * 4))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_what_hugging_face_needs_elsewhere_is_left_out_knowingly() -> None:
    state = renamed(small(num_classes=0), "hf-vit")
    extra = {"vit.pooler.dense.weight": torch.ones(48, 48), "vit.pooler.dense.bias": torch.ones(48)}
    model = convert({**state, **extra}, "vit_tiny_patch16_224", **TINY)
    assert torch.equal(model.backbone.pos_embed, state["vit.embeddings.position_embeddings"])
    plain = {**small().state_dict(), **{key[4:]: value for key, value in extra.items()}}
    with pytest.raises(InputError, match=r"unknown: pooler\.dense\.bias, pooler\.dense\.weight"):
        convert(plain, "vit_tiny_patch16_224", **TINY)  # among timm's names they mean nothing


def test_a_classifier_of_class_token_and_mean_patch_is_explained() -> None:
    state = hugging_face_state("dinov2", 14) | {
        "classifier.weight": torch.ones(5, 96),
        "classifier.bias": torch.ones(5),
    }
    name = "vit_small_patch14_dinov2"
    with pytest.raises(InputError, match=r"head\.weight \(5, 96\) instead of \(5, 48\).*mean patch.*num_classes=0"):
        convert(state, name, **published(name))
    assert convert(state, name, num_classes=0, **published(name)).num_classes == 0


# DynamicViT


VECTOR: dict[str, Any] = {"embed_dim": 48, "depth": 6, "num_heads": 3, "keep_ratios": (0.7, 0.49, 0.343)}


@pytest.fixture
def dynamicvit(vectors: Path) -> State:
    return load_file(vectors / "dynamicvit_tiny.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("wrapped", [False, True])
def test_dynamicvit(dynamicvit: State, vectors: Path, tmp_path: Path, wrapped: bool) -> None:
    expected = np.load(vectors / "dynamicvit_tiny.npz")
    path = vectors / "dynamicvit_tiny.safetensors"
    if wrapped:  # as its training script writes it
        path = tmp_path / "checkpoint-best.pth"
        args = Namespace(base_rate=0.7, arch="deit_small", nested=Namespace(lr=1e-3))
        content = {"model": dynamicvit, "optimizer": {"state": {}, "param_groups": []}, "epoch": 29, "args": args}
        torch.save({**content, "scaler": {"scale": 65536.0}}, path)
    model = convert(path, "vit_tiny_patch16_224", stages=(2, 3, 4), **VECTOR)
    assert model.metadata == {"converted_from": "dynamicvit", "new_parts": []}
    assert model.num_classes == 10
    batch = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 224, 224)).astype(np.float32))
    logits, trace = model(batch, return_trace=True)
    torch.testing.assert_close(logits, torch.from_numpy(expected["eval_logits"]), atol=1e-5, rtol=0)
    for stage, kept in enumerate(trace.kept):
        theirs = torch.from_numpy(expected[f"eval_kept_{stage}"]).long()
        assert torch.equal(kept, theirs.sort(dim=1).values)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(dynavit.load(tmp_path / "saved")(batch), logits)


@torch.no_grad()
def test_the_kept_output_is_the_first(dynamicvit: State) -> None:
    model = convert(dynamicvit, "vit_tiny_patch16_224", stages=(2, 3, 4), **VECTOR)
    tokens = torch.randn(2, 7, 48)
    for stage, predictor in enumerate(model.scorers):
        name = f"score_predictor.{stage}"
        x = predictor.embed(tokens)  # type: ignore[union-attr, operator]
        x = torch.cat([x[..., :24], x[..., 24:].mean(1, keepdim=True).expand(-1, 7, -1)], dim=-1)
        for layer in (0, 2):
            x = F.gelu(F.linear(x, *(dynamicvit[f"{name}.out_conv.{layer}.{kind}"] for kind in ("weight", "bias"))))
        two = F.linear(x, *(dynamicvit[f"{name}.out_conv.4.{kind}"] for kind in ("weight", "bias")))
        keep = two.log_softmax(dim=-1).exp()[..., 0]
        torch.testing.assert_close(predictor(tokens).sigmoid(), keep, atol=1e-5, rtol=1e-5)


def test_dynamicvit_refusals(dynamicvit: State) -> None:
    def refused(state: State, match: str, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            convert(state, "vit_tiny_patch16_224", **{"stages": (2, 3, 4), **VECTOR, **options})

    refused(dynamicvit, r"stages=\[2, 3\].*scorers for 3 stages", stages=(2, 3), keep_ratios=(0.7, 0.5))
    one = dynamicvit | {"score_predictor.1.out_conv.4.weight": torch.ones(1, 12)}
    refused(one, r"scorers\.1\.score\.4\.weight \(1, 12\) instead of two outputs")
    partial = {name: value for name, value in dynamicvit.items() if not name.endswith("in_conv.0.weight")}
    refused(partial, r"missing: scorers\.\{0,1,2\}\.embed\.0\.weight\.$")
    refused(dynamicvit | {"score_predictor.0.gate.weight": torch.ones(1)}, r"unknown: score_predictor\.0\.gate\.weight")
    lvvit = dynamicvit | {"patch_embed.conv1.weight": torch.ones(1), "aux_head.weight": torch.ones(1)}
    refused(lvvit, r"unknown: aux_head\.weight, patch_embed\.conv1\.weight")


# What is wrong is listed


def test_everything_that_does_not_fit_is_in_one_message() -> None:
    state = renamed(small(), "hf-vit")
    for gone in ("encoder.layer.0.attention.attention.key.bias", "encoder.layer.2.attention.attention.key.bias"):
        del state[f"vit.{gone}"]
    del state["vit.layernorm.weight"]
    state["vit.embeddings.cls_token"] = torch.zeros(1, 1, 47)
    state["vit.encoder.layer.1.adapter.down.weight"] = torch.zeros(2)
    state["layernorm.bias"] = torch.zeros(48)
    with pytest.raises(InputError) as error:
        convert(state, "vit_tiny_patch16_224", **TINY)
    message = str(error.value)
    assert "\n" not in message
    assert "in the format hf-vit, does not fit vit_tiny_patch16_224" in message
    assert "missing: blocks.{0,2}.attn.key.bias, blocks.{0,2}.attn.qkv.bias, norm.weight;" in message
    assert "unknown: vit.encoder.layer.1.adapter.down.weight;" in message
    assert "twice there: layernorm.bias;" in message
    assert "of another shape: cls_token (1, 1, 47) instead of (1, 1, 48)." in message


@pytest.mark.parametrize("source", ["timm", "hf-vit"])
def test_every_tensor_is_needed_and_no_other_taken(source: str) -> None:
    """Take any one away, or add one: refused. A head taken away whole is a model of features."""
    state = renamed(small(depth=1), source)
    options = {**SMALL, "depth": 1, "stages": ()}
    for name in state:
        with pytest.raises(InputError, match="missing"):
            convert({key: value for key, value in state.items() if key != name}, "vit_tiny_patch16_224", **options)
        with pytest.raises(InputError, match="unknown"):
            convert({**state, f"{name}x": state[name]}, "vit_tiny_patch16_224", **options)
    headless = {name: value for name, value in state.items() if not name.startswith(("head", "classifier"))}
    assert convert(headless, "vit_tiny_patch16_224", **options).num_classes == 0


@pytest.mark.parametrize("source", ["timm", "hf-vit"])
def test_another_architecture_is_refused(source: str) -> None:
    state = renamed(small(), source)
    with pytest.raises(InputError, match=r"blocks\.\{0,1,2\}\.attn\.qkv\.weight \(144, 48\) instead of \(192, 64\)"):
        convert(state, "vit_tiny_patch16_224", **{**TINY, "embed_dim": 64, "num_heads": 4})
    with pytest.raises(InputError, match=r"missing: blocks\.3\."):
        convert(state, "vit_tiny_patch16_224", **{**TINY, "depth": 4})
    with pytest.raises(InputError, match=r"unknown: blocks\.2\."):
        convert(state, "vit_tiny_patch16_224", **{**TINY, "depth": 2, "stages": (1,)})
    with pytest.raises(InputError, match="missing: dist_token"):
        convert(state, "deit_tiny_distilled_patch16_224", **TINY)
    with pytest.raises(InputError, match="no model"):
        convert(state, "vit_tiny", **TINY)


def test_a_query_of_another_shape() -> None:
    state = renamed(small(), "hf-vit")
    state["vit.encoder.layer.1.attention.attention.query.weight"] = torch.zeros(24, 48)
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.qkv\.weight: its query, key and value differ"):
        convert(state, "vit_tiny_patch16_224", **TINY)
    registers = hugging_face_state("registers", 14) | {"embeddings.cls_token": torch.zeros(1, 1, 47)}
    with pytest.raises(InputError, match=r"cls_token \(1, 1, 47\) instead of"):
        convert(registers, "vit_small_patch14_reg4_dinov2", **published("vit_small_patch14_reg4_dinov2"))


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["encoder.pos_embedding", "conv_proj.weight"], f"conv_proj.weight, .*known formats: {FORMATS[0]}"),
        (["backbone.blocks.0.norm1.weight", "scorers.0.embed.0.weight"], r"dynavit\.load reads"),
    ],
)
def test_unknown_formats(names: list[str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        detect_format(dict.fromkeys(names))


# Heads and images of another size


def test_another_number_of_classes_leaves_the_head_new() -> None:
    backbone = small()
    model = convert(backbone.state_dict(), "vit_tiny_patch16_224", num_classes=7, **TINY)
    assert model.num_classes == 7
    assert model.metadata["new_parts"] == ["head"]
    assert torch.equal(model.backbone.norm.weight, backbone.norm.weight)
    reid = convert(backbone.state_dict(), "vit_tiny_patch16_224", num_identities=9, **TINY)
    assert (reid.num_classes, reid.metadata["new_parts"]) == (9, ["neck"])


def test_positions_are_resampled_for_an_image_size_asked_for_only() -> None:
    state = small().state_dict()
    model = convert(state, "vit_tiny_patch16_224", **{**TINY, "img_size": (96, 64)})
    own = model.backbone.pos_embed
    assert own.shape == (1, 1 + 6 * 4, 48)
    assert torch.equal(own[:, :1], state["pos_embed"][:, :1])
    grid = state["pos_embed"][:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (6, 4), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(own[:, 1:], expected.flatten(2).transpose(1, 2), atol=1e-6, rtol=0)

    unasked = {key: value for key, value in TINY.items() if key != "img_size"}
    with pytest.raises(
        InputError, match=r"pos_embed \(1, 17, 48\) instead of \(1, 197, 48\)\. img_size=\.\.\. resamples"
    ):
        convert(state, "vit_tiny_patch16_224", **unasked)
    oblong = {**state, "pos_embed": torch.zeros(1, 1 + 8, 48)}
    with pytest.raises(InputError, match=r"pos_embed \(1, 9, 48\) instead of"):
        convert(oblong, "vit_tiny_patch16_224", **TINY)


def test_half_precision_is_widened() -> None:
    backbone = small().half()
    model = convert(backbone.state_dict(), "vit_tiny_patch16_224", **TINY)
    assert model.backbone.pos_embed.dtype == torch.float32
    assert torch.equal(model.backbone.pos_embed, backbone.pos_embed.float())


# Files


class Unheard:
    """What no checkpoint needs."""


def leave_a_trace(name: str) -> None:
    Path(name).touch()


class Harmful:
    """Runs code when unpickled without care."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return leave_a_trace, ("harm",)


@pytest.mark.parametrize("zipped", [True, False])
def test_other_classes_in_a_pickle_are_refused_by_name(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pth"
    weights = small().state_dict()
    for extra, name in (
        (Unheard(), r"test_convert\.Unheard"),
        (Harmful(), "leave_a_trace"),
        (Path("x"), r"pathlib\.\w*Path"),
    ):
        content = {"model": weights, "args": Namespace(extra=extra)}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=f"c.pth cannot be read .*{name}.*saved again with its weights alone") as e:
            convert(path, "vit_tiny_patch16_224", **TINY)
        assert "weights_only" not in str(e.value)  # no advice to do without the safety
    assert not (tmp_path / "harm").exists()
    assert Namespace not in torch.serialization.get_safe_globals()  # allowed while reading only


def test_damaged_files(tmp_path: Path) -> None:
    torch.save({"model": small(depth=1).state_dict()}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    noise = np.random.RandomState(0)
    contents = [b"", b"no pickle", whole[: len(whole) // 2], *(noise.bytes(40) for _ in range(30))]
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"damaged{suffix}"
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(InputError, match=r"damaged|holds no state dict"):
                convert(path, "vit_tiny_patch16_224", **TINY)


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        convert(tmp_path / "none.pth", "vit_tiny_patch16_224")
    with pytest.raises(InputError, match=re.escape("holds neither model.safetensors nor pytorch_model.bin")):
        convert(tmp_path, "vit_tiny_patch16_224")


def test_of_several_sets_the_average_is_taken_unless_told(tmp_path: Path) -> None:
    """As timm does; what was taken and what else there is, is said."""
    plain, average = small(num_classes=5).state_dict(), small(num_classes=6).state_dict()
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": plain, "model_ema": average, "epoch": 3, "args": Namespace(lr=1e-3), "scaler": {}}, path)
    with pytest.warns(UserWarning, match=r"taken from 'model_ema'; also there: 'model' .*left out: epoch, args, scal"):
        assert convert(path, "vit_tiny_patch16_224", **TINY).num_classes == 6
    for entry, num_classes in (("model", 5), ("model_ema", 6)):
        with pytest.warns(UserWarning, match=f"taken from '{entry}'"):
            assert convert(path, "vit_tiny_patch16_224", entry=entry, **TINY).num_classes == num_classes
    with pytest.raises(InputError, match=r"entry='ema': .* it has 'model' or 'model_ema'"):
        convert(path, "vit_tiny_patch16_224", entry="ema", **TINY)
    with pytest.raises(InputError, match="entry='model': the checkpoint is one plain state dict"):
        convert(plain, "vit_tiny_patch16_224", entry="model", **TINY)
    with pytest.raises(InputError, match="several sets of weights: choose with entry='first' or 'second'"):
        convert({"first": plain, "second": average}, "vit_tiny_patch16_224", **TINY)


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"epoch": 3}, [torch.ones(2)], {"model": {"blocks.0": "text"}}])
def test_no_state_dict(content: Any) -> None:
    with pytest.raises(InputError, match="holds no state dict"):
        convert(content, "vit_tiny_patch16_224", **TINY)


def test_prefixes_of_wrappers_go_only_when_all_names_have_them() -> None:
    state = small().state_dict()
    compiled = {f"module._orig_mod.{name}": value for name, value in state.items()}
    assert convert({"state_dict": compiled}, "vit_tiny_patch16_224", **TINY).num_classes == 5
    mixed = {f"module.{name}" if name == "norm.weight" else name: value for name, value in state.items()}
    with pytest.raises(InputError, match=r"missing: norm\.weight; unknown: module\.norm\.weight"):
        convert(mixed, "vit_tiny_patch16_224", **TINY)
