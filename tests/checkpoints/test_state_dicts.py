"""Files of weights as people bring them: what is taken of them, and what is said of those that are something else."""

from __future__ import annotations

import json
import re
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import dynavit
from dynavit import InputError, convert
from dynavit.checkpoints.start import load_backbone, load_reid_start
from dynavit.checkpoints.state_dicts import read_state
from dynavit.config import load_config
from dynavit.runs.build import build_start
from dynavit.runs.open import open_run

NAME = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 32}
State = dict[str, Tensor]

pytestmark = pytest.mark.filterwarnings("ignore:.*(taken|left out).*:UserWarning")


@pytest.fixture
def state() -> State:
    return weights()


def weights(seed: int = 0, num_classes: int = 3, **kwargs: Any) -> State:
    torch.manual_seed(seed)
    return dict(timm.create_model(NAME, num_classes=num_classes, **{**TINY, **kwargs}).state_dict())


def by_checkpoint(path: Path, **options: Any) -> State:
    return dict(load_backbone(path, NAME, list("abc"), **{**TINY, **options})[0].state_dict())


def by_reid(path: Path, **options: Any) -> State:
    return dict(load_reid_start(path, NAME, ["x", "y"], **{**TINY, **options}).backbone.state_dict())


def by_convert(path: Path, **options: Any) -> State:
    return dict(convert(path, NAME, **{**TINY, **options}).backbone.state_dict())


def start_new(names: State, start: str) -> State:
    return {start + name: value for name, value in names.items()}


WAYS = [by_checkpoint, by_reid, by_convert]


def same(found: State, wanted: State) -> bool:
    return all(torch.equal(value, wanted[name]) for name, value in found.items() if not name.startswith("head"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "args": Namespace(lr=1e-3), "epoch": 3, "metric": np.float64(90.1)},
        lambda s: {"net": s, "acc": np.float32(1), "seen": np.int64(3), "flag": np.bool_(True)},
        lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 2)}}}},
        lambda s: {"state_dict": start_new(s, "model."), "hyper_parameters": {"lr": 1e-3}, "optimizer_states": [{}]},
        lambda s: start_new(s, "module._orig_mod."),
        lambda s: {"network": start_new(s, "encoder.vit.")},
        lambda s: {"anything": start_new(s, "timm_model."), "epoch": 1},
        lambda s: {"model": {"state_dict": s}, "version": "1"},
        lambda s: {"teacher": start_new(s, "backbone.") | {"dino_head.mlp.0.weight": torch.ones(2, 2)}, "student": s},
        lambda s: {"model": s | {"mask_token": torch.ones(1, 1, 24), "decoder_embed.weight": torch.ones(8, 24)}},
        lambda s: start_new(s, "net.") | {"fc.weight": torch.ones(7, 24), "step": torch.tensor(3)},
        lambda s: start_new(s, "teacher.") | start_new(weights(5), "student."),
        lambda s: {"state_dict": weights(5), "state_dict_ema": s},
        lambda s: {"model": weights(5), "model_ema": start_new(s, "module."), "optimizer": {}},
        lambda s: {name: nn.Parameter(value) for name, value in s.items()} | {"note": "text", "_extra": None},
    ],
)
def test_what_training_scripts_write(way: Any, wrap: Callable[[State], Any], state: State, tmp_path: Path) -> None:
    torch.save(wrap(state), tmp_path / "model_best.pth.tar")
    assert same(way(tmp_path / "model_best.pth.tar"), state)


def test_what_was_taken_is_said_once_and_can_be_chosen(state: State, tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    torch.save({"state_dict": state, "state_dict_ema": weights(5), "epoch": 2}, path)
    for way in WAYS:
        with pytest.warns(UserWarning, match=r"from 'state_dict_ema'; also there: 'state_dict' .*left out: epoch") as w:
            assert same(way(path), weights(5))
        assert len(w) == 1
        assert same(way(path, entry="state_dict"), state)
        with pytest.raises(InputError, match=r"entry='ema': .*last\.pth has no such weights; it has 'state_dict' or"):
            way(path, entry="ema")
    torch.save(start_new(state, "student.backbone.") | start_new(weights(5), "teacher.backbone."), path)
    with pytest.warns(UserWarning, match=r"also there: 'student\.backbone'.*'teacher\.backbone\.' taken off"):
        assert same(by_checkpoint(path), weights(5))
    assert same(by_checkpoint(path, entry="student"), state)
    for sets in ({"a": state, "b": weights(5)}, start_new(state, "a.") | start_new(weights(5), "b.")):
        torch.save(sets, path)
        for way in WAYS:
            with pytest.raises(InputError, match=r"several sets of weights: choose with entry='a' or 'b'"):
                way(path)
            assert same(way(path, entry="b"), weights(5))


def test_a_set_of_many_unknown_names_hides_no_other(state: State, tmp_path: Path) -> None:
    other = {f"{part}.{number}.x": torch.ones(2, 2) for part in ("aux", "dec") for number in range(9)}
    for names, said in ((other, r"names such as aux\.0\.x, dec\.0\.x, "), (state | other, r"aux\..*dec\.")):
        torch.save(names, tmp_path / "last.pth")
        for way in WAYS:
            with pytest.raises(InputError, match=said):
                way(tmp_path / "last.pth")


def test_a_folder_of_weights_that_nothing_describes(state: State, tmp_path: Path) -> None:
    for name in ("weights.pth", "model.safetensors"):  # the second is the first to be named
        torch.save(state, tmp_path / name)
        said = rf"config\.json does not exist.* model\.checkpoint={tmp_path}/{name} with model\.architecture=TIMM_NAME"
        for read in (by_checkpoint, by_reid, dynavit.load):
            with pytest.raises(InputError, match=said):
                read(tmp_path)
        assert same(by_checkpoint(tmp_path / name), state)


def test_the_configuration_chooses(state: State, tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    torch.save({"model": state, "ema": weights(5)}, path)
    (tmp_path / "c.yaml").write_text("task: classify\n")
    kwargs = [f"model.kwargs.{key}={value}" for key, value in TINY.items()]
    settings = [f"model.architecture={NAME}", "model.stages=[1]", *kwargs]
    for more, wanted in ([], weights(5)), (["model.entry=model"], state):
        config = load_config(tmp_path / "c.yaml", [*settings, f"model.checkpoint={path}", *more])
        assert same(dict(build_start(config, list("abc")).model.backbone.state_dict()), wanted)
    with pytest.raises(InputError, match=r"model\.entry=x: .*model\.checkpoint, which is not given"):
        build_start(load_config(tmp_path / "c.yaml", [*settings, "model.entry=x"]), list("abc"))


def test_folders_and_shards_of_the_hub(state: State, tmp_path: Path) -> None:
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({f"timm_model.{name}": state[name] for name in part}, tmp_path / f"part{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    where = {f"timm_model.{name}": f"part{number % 2}.safetensors" for number, name in enumerate(names)}
    index.write_text(json.dumps({"weight_map": where}))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": NAME, "model_type": "timm_wrapper"}))
    for way in WAYS:
        for path in (index, tmp_path):
            assert same(way(path), state)
    with pytest.raises(InputError, match=rf"needs model\.architecture=TIMM_NAME\. Its config\.json says '{NAME}'"):
        load_backbone(tmp_path, None, None)
    with pytest.raises(InputError, match=r"not written by dynavit\. dynavit\.convert reads"):
        dynavit.load(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(InputError, match=r"gone\.safetensors is not beside it"):
        read_state(tmp_path)
    for harm in ("../x.safetensors", "/etc/passwd", 3):
        index.write_text(json.dumps({"weight_map": {"a": harm}}))
        with pytest.raises(InputError, match="outside of its folder"):
            read_state(tmp_path)


def test_endings_do_not_matter(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "really_safetensors.pth")
    torch.save(state, tmp_path / "really_torch.safetensors")
    torch.save({"model": state}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert same(by_checkpoint(path), state)


class Net(nn.Module):
    """A whole model in a file is code."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


def zipped(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def scripted(path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*")
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.ckpt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (bytes(500), "is empty"),
        (LFS, "Git LFS pointer.*git lfs pull"),
        (b"\n <!DOCTYPE html><html><body>404", "is a web page"),
        (b"hello\n", "is text, not weights; it begins with 'hello'"),
        (b"\xef\xbb\xbfa,b\n1,2\n", "is text"),
        ("päß".encode("utf-16"), "is text"),
        (b'{"a": 1}', "is JSON"),
        (b"\x89HDF\r\n\x1a\n1234", "is an HDF5 file.*Keras"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (b"\x1f\x8b\x08\x00abcd", "gzip.*unpack"),
        (b"PK\x03\x04 and no end", "cut off"),
        (b"\x08\x07\x12\x07pytorch\x1a", "ONNX"),
        (bytes([16, 0, 0, 0, 0, 0, 0, 0]) + b'{"a": ', "cut off"),
        (b"\x80\x02}q\x00.", "damaged"),
        (lambda path: zipped(path, **{"a.npy": b"x"}), r"NumPy archive \(\.npz\)"),
        (lambda path: zipped(path, **{"model.weights.h5": b"x", "config.json": b"x"}), "Keras"),
        (lambda path: zipped(path, readme=b"x"), "zip archive without torch weights"),
        (scripted, r"TorchScript archive.*torch\.save\(model\.state_dict\(\)"),
        (
            lambda path: torch.save(Net(), path),
            r"whole model.*test_state_dicts\.Net.*torch\.save\(model\.state_dict\(\)",
        ),
        (lambda path: torch.save({"model": nn.Linear(2, 2)}, path), r"whole model.*Linear.*weights alone"),
        (lambda path: torch.save({"cfg": re.compile("x")}, path), r"re\._compile.*weights alone"),
        (lambda path: torch.save({0: torch.ones(2, 2)}, path), r"kept by int \(0\), not by name"),
        (lambda path: torch.save([torch.ones(2, 2)], path), "holds no state dict.*found list"),
        (lambda path: torch.save({"epoch": 1}, path), "holds no state dict.*found epoch"),
        (lambda path: torch.save(torch.ones(2), path), "holds no state dict.*found Tensor"),
    ],
)
def test_other_files_are_named_for_what_they_are(content: Any, message: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    content(path) if callable(content) else path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        by_checkpoint(path)
    text = str(error.value)
    assert name in text
    assert "weights_only" not in text
    assert text.isprintable()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_files_that_were_cut_off(share: float, ending: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / f"w{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for way in WAYS:
        with pytest.raises(InputError, match=r"cannot be read \(it is cut off.*again"):
            way(path)


def spoiled(state: State, name: str, value: Any) -> State:
    return {**state, name: value(state[name].clone())}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda x: x.fill_(float("nan")), r"'(backbone\.)?blocks\.1\.mlp\.fc1\.weight' hold NaN"),
        (lambda x: x.index_fill_(0, torch.tensor(0), float("-inf")), "hold infinite values"),
        (lambda x: x.double() * 1e300, "hold infinite values"),
        (lambda x: x.to(torch.complex64), "are torch.complex64"),
        (lambda x: x.to(torch.int8), "holds torch.int8; floating-point numbers are wanted"),
        (lambda x: x.to_sparse(), "are torch.sparse_coo"),
        (lambda x: x.to("meta"), "hold no numbers"),
    ],
)
def test_numbers_that_are_none(way: Any, value: Any, message: str, state: State, tmp_path: Path) -> None:
    torch.save(spoiled(state, "blocks.1.mlp.fc1.weight", value), tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"w\.pth.*{message}"):
        way(tmp_path / "w.pth")


@pytest.mark.parametrize("part", ["backbone.norm.weight", "scorers.0.embed.1.bias"])
def test_models_of_nan_are_refused_where_they_are_used(part: str, tmp_path: Path) -> None:
    model = dynavit.create_model(NAME, num_classes=3, stages=(1,), scorer="mlp", **TINY)
    nn.init.constant_(model.get_parameter(part), float("inf"))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"model\.safetensors: the weights '{re.escape(part)}' hold infinite"):
        open_run(tmp_path)
    for way in (load_backbone, load_reid_start):
        with pytest.raises(InputError, match=re.escape(part)):
            way(tmp_path, None, list("abc"))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"global_pool": "avg"}, {}, r"missing: norm\.bias.*fc_norm.*give {}global_pool=avg"),
        ({}, {"global_pool": "avg"}, r"missing: fc_norm.*leave {}global_pool out"),
    ],
)
def test_the_other_last_norm_is_explained(given: Any, options: Any, message: str, tmp_path: Path) -> None:
    torch.save({"model": weights(**given)}, tmp_path / "mae.pth")
    for way, key in ((by_checkpoint, r"model\.kwargs\."), (by_convert, "")):
        with pytest.raises(InputError, match=message.format(key)):
            way(tmp_path / "mae.pth", **options)
        assert same(way(tmp_path / "mae.pth", **given), weights(**given))


def test_a_folder_of_hugging_face_is_read_by_both(tmp_path: Path) -> None:
    state = weights()
    theirs = {"vit.embeddings.cls_token": state["cls_token"], "vit.embeddings.position_embeddings": state["pos_embed"]}
    modules = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense"}
    modules |= {"mlp.fc2": "output.dense", "attn.proj": "attention.output.dense"}
    for kind in ("weight", "bias"):
        theirs[f"vit.embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        theirs[f"vit.layernorm.{kind}"], theirs[f"classifier.{kind}"] = state[f"norm.{kind}"], state[f"head.{kind}"]
        for block in range(3):
            layer = f"vit.encoder.layer.{block}"
            theirs |= {f"{layer}.{new}.{kind}": state[f"blocks.{block}.{old}.{kind}"] for old, new in modules.items()}
            rows = zip(("query", "key", "value"), state[f"blocks.{block}.attn.qkv.{kind}"].chunk(3), strict=True)
            theirs |= {f"{layer}.attention.attention.{which}.{kind}": part.clone() for which, part in rows}
    save_file(theirs, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
    torch.save({"state_dict": start_new(theirs, "model.")}, tmp_path / "lightning.ckpt")
    for way in WAYS:
        for path in (tmp_path, tmp_path / "lightning.ckpt"):
            assert same(way(path), state)
    backbone, _, _, replaced = load_backbone(tmp_path, NAME, list("abc"), **TINY)
    assert not replaced
    assert torch.equal(backbone.head.weight, state["head.weight"])  # type: ignore[union-attr, arg-type]


# Continuing from one's own folder


@torch.no_grad()
def test_settings_equal_to_the_folders_are_accepted(tmp_path: Path) -> None:
    model = dynavit.create_model(NAME, num_classes=3, stages=(1,), qk_norm=True, **TINY).eval()
    model.metadata["class_names"] = list("abc")
    model.save_pretrained(tmp_path)
    for kwargs in ({**TINY, "qk_norm": True}, {"img_size": [32, 32], "num_classes": 3}, {}):
        backbone, _, kwargs, replaced = load_backbone(tmp_path, NAME, list("abc"), **kwargs)
        assert not replaced
        assert same(dict(backbone.state_dict()), dict(model.backbone.state_dict()))
        dynavit.prune(backbone, stages=(), architecture=NAME, model_kwargs=kwargs)
    for options in ({"img_size": 64}, {"img_size": (32, 64), "drop_path_rate": 0.1}):
        backbone, _, kwargs, replaced = load_backbone(tmp_path, None, list("abc"), **options)
        again = dynavit.load(tmp_path)
        again.set_input_size(img_size=options["img_size"])
        images = torch.randn(1, 3, *again.adapter.image_size)
        assert not replaced
        assert torch.equal(backbone.eval()(images), again.backbone(images))
        dynavit.prune(backbone, architecture=NAME, model_kwargs=kwargs).save_pretrained(tmp_path / "next")
    for load in (load_backbone, load_reid_start):
        with pytest.raises(
            InputError, match=r"model\.kwargs: depth=4, but .*img_size, patch_stride, drop_rate.*at most"
        ):
            load(tmp_path, None, list("abc"), depth=4, embed_dim=24)
        with pytest.raises(InputError, match=r"model\.entry=ema: .* is a folder that dynavit wrote"):
            load(tmp_path, None, list("abc"), entry="ema")
