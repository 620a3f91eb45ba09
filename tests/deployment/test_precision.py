"""Files with fewer bits: what is lowered, what is demanded of them, and what is left where they do not pass."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor

import dynavit
from dynavit.cli import main
from dynavit.deployment.checked import write, write_checked
from dynavit.deployment.deployed import Deployed
from dynavit.deployment.export import Exporter
from dynavit.deployment.formats import FORMATS, PRECISIONS
from dynavit.deployment.judging import Judgement, create_judge
from dynavit.deployment.onnx_precision import linear_layers
from dynavit.deployment.target import Target
from dynavit.deployment.verify import Verification, require_same_answers, verify
from dynavit.errors import InputError
from dynavit.runs.open import open_run
from dynavit.tasks import create_task

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "checkpoints"


@pytest.fixture(scope="module")
def files(
    model_of: Callable[..., dynavit.PrunedViT], images_for: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, onnx.ModelProto]:
    """One model with learned scores as ONNX in each precision."""
    model = model_of("vit", depth=3, stages=(1, 2), keep_ratio=0.5)
    images = images_for(model, batch=8)
    folder = tmp_path_factory.mktemp("precision")
    deployed = Deployed(model)
    for precision in ("fp32", "fp16", "int8"):  # unchecked, for a model that learned nothing has no clear choices
        write(deployed, folder / f"{precision}.onnx", images, {}, Target(precision=precision), calibration=[images])
    return {path.stem: onnx.load(path) for path in folder.glob("*.onnx")}


def scope(node: onnx.NodeProto) -> str:
    return next((entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes")), "")


@pytest.mark.slow
def test_linear_layers_are_those_of_blocks(files: dict[str, onnx.ModelProto]) -> None:
    named = {node.name: scope(node) for node in files["fp32"].graph.node}
    found = [named[name] for name in linear_layers(files["fp32"])]
    for block in range(3):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            assert sum(f"blocks.{block}.{layer}'" in where for where in found) == 1
    assert len(found) == 12


@pytest.mark.slow
def test_int8_is_for_linear_layers_alone(files: dict[str, onnx.ModelProto]) -> None:
    nodes = list(files["int8"].graph.node)
    dequantised = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
    assert {node.op_type for node in nodes if dequantised & set(node.input)} <= {"MatMul", "Gemm", "Add"}
    lowered = [node for node in nodes if node.op_type in ("MatMul", "Gemm") and dequantised & set(node.input)]
    assert {node.name for node in lowered} == set(linear_layers(files["fp32"]))
    weights = {tensor.name: tensor for tensor in files["int8"].graph.initializer}
    bits = [node.input[0] for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in weights]
    assert bits.count("") == 0
    assert {weights[name].data_type for name in bits} <= {onnx.TensorProto.INT8, onnx.TensorProto.INT32}


@pytest.mark.slow
def test_in_fp16_scores_and_choices_stay_as_they_are(files: dict[str, onnx.ModelProto]) -> None:
    types = {}
    for tensor in files["fp16"].graph.initializer:
        types[tensor.name] = tensor.data_type
    blocks = [kind for name, kind in types.items() if "backbone.blocks" in name and "norm" not in name]
    assert blocks
    assert set(blocks) <= {onnx.TensorProto.FLOAT16}
    assert {kind for name, kind in types.items() if "scorers" in name and "weight" in name} <= {onnx.TensorProto.FLOAT}
    lowered = {
        node.output[0] for node in files["fp16"].graph.node if node.op_type == "Cast" and node.attribute[0].i == 10
    }
    for node in files["fp16"].graph.node:
        if node.op_type in ("TopK", "LayerNormalization", "Softmax") or "scorers" in scope(node):
            assert not lowered & set(node.input)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"scorer": "attention"}, {"reducer": "merge", "placement": "inside"}], ids=["attention", "ToMe"]
)
def test_weights_that_scorers_read_are_lowered_in_their_layers_alone(
    options: dict[str, Any], model_of: Callable[..., Any], images_for: Any, tmp_path: Path
) -> None:
    """Wide enough for the exporter to leave a transposition where a weight is read twice."""
    model = model_of("vit", depth=3, stages=(1, 2), keep_ratio=0.5, embed_dim=96, num_heads=3, **options)
    images = images_for(model, batch=8)
    path = tmp_path / "model.onnx"
    write(Deployed(model), path, images, {}, Target(precision="int8"), calibration=[images])
    nodes = list(onnx.load(path).graph.node)
    dequantised = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
    lowered = [scope(node) for node in nodes if node.op_type == "MatMul" and node.input[1] in dequantised]
    for block in range(3):
        assert sum(f"blocks.{block}.attn.qkv'" in where and "scorers" not in where for where in lowered) == 1
    assert not any("scorers" in where or "reducer" in where for where in lowered)
    answer = dynavit.open_exported(path)(images)[0]
    with torch.inference_mode():
        # some images of a model that learned nothing keep another token
        assert (answer - model(images)).abs().median() < 0.1 * model(images).std()


@pytest.mark.slow
def test_each_precision_is_smaller(files: dict[str, onnx.ModelProto]) -> None:
    sizes = {name: file.ByteSize() for name, file in files.items()}
    assert sizes["int8"] < sizes["fp16"] < sizes["fp32"]


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_runtime_cannot_do_is_said(format: str, model_of: Callable[..., Any], tmp_path: Path) -> None:
    model = model_of("vit", depth=1, stages=(0,))
    for precision, reason in FORMATS[format].cannot.items():
        with pytest.raises(InputError, match=f"--format {format} --precision {precision}: {reason}; choose from fp32"):
            write_checked(Deployed(model), tmp_path / "model", torch.zeros(1), {}, Target(format, precision))
    with pytest.raises(InputError, match="--precision fp8: choose from fp32, fp16, bf16, int8"):
        write_checked(Deployed(model), tmp_path / "model", torch.zeros(1), {}, Target(format, "fp8"))
    assert not list(tmp_path.iterdir())


def test_answers_that_may_change() -> None:
    def found(same: float, images: int) -> Verification:
        return Verification(0.1, 1.0, images, (1,), same)

    require_same_answers(found(31 / 32, 32))
    require_same_answers(found(398 / 400, 400))
    require_same_answers(found(1.0, 3))
    for same, images in ((30 / 32, 32), (397 / 400, 400), (14 / 15, 15), (2 / 3, 3)):
        with pytest.raises(InputError, match=f"on {round((1 - same) * images)} of {images} images"):
            require_same_answers(found(same, images))
    for images in (1, 2):  # one embedding has no neighbour, and two have one each
        with pytest.raises(InputError, match=f"on {images} images: give three or more"):
            require_same_answers(found(1.0, images))


def test_one_number_alone_is_compared() -> None:
    image = torch.ones(1, 3, 2, 2)

    def total(some: Tensor) -> Tensor:
        return some.sum((1, 2, 3))[:, None]

    assert verify(total, total, image, (1,)).max_difference == 0
    with pytest.raises(InputError, match="differs from the original"):
        verify(total, lambda some: total(some) + 0.1, image, (1,))


def test_what_is_no_number_is_refused_in_every_precision() -> None:
    images = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for tolerance in (None, 1e-3):
        with pytest.raises(InputError, match="batch size 1 with what is no number"):
            verify(lambda some: some.flatten(1), lambda some: some.flatten(1).log(), images, (1,), tolerance)


def test_embeddings_are_compared_by_their_neighbours() -> None:
    """Pairs of like vectors: the nearest of each is the other one of its pair, whatever their lengths."""
    angles = torch.tensor([0.0, 0.1, 1.0, 1.1, 2.0, 2.1])
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([1.0, 5, 2, 7, 1, 9])[:, None]
    swapped = embeddings[[2, 1, 0, 3, 4, 5]]  # of four the nearest is another one
    images = torch.arange(6)[:, None]
    checked = verify(
        lambda rows: embeddings[rows[:, 0]], lambda rows: 3 * embeddings[rows[:, 0]], images, (1, 6), None, False
    )
    assert checked.same_answers == 1
    checked = verify(lambda rows: embeddings[rows[:, 0]], lambda rows: swapped[rows[:, 0]], images, (6,), None, False)
    assert checked.same_answers == pytest.approx(2 / 6)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_file_that_does_not_satisfy_is_not_left_behind(
    format: str, model_of: Callable[..., Any], images_for: Any, tmp_path: Path
) -> None:
    model = model_of("vit", depth=2, stages=(1,), keep_ratio=0.5)
    images = images_for(model, batch=4)
    path = tmp_path / f"model{FORMATS[format].suffix}"
    files = [path, *(path.with_suffix(suffix) for suffix in FORMATS[format].beside)]
    for file in files:
        file.write_text("earlier")

    def judge(exported: Callable[[Tensor], Tensor], batch: int | None) -> Judgement:
        assert exported(images).shape == (4, model.num_classes)
        raise InputError("2 points worse")

    with pytest.raises(InputError, match="2 points worse"):
        write_checked(Deployed(model), path, images, {}, Target(format, "fp16"), judge=judge)
    assert [file.read_text() for file in files] == ["earlier"] * len(files)
    assert len(list(tmp_path.iterdir())) == len(files)


@pytest.fixture(scope="module")
def quickstart() -> Any:
    return open_run(CHECKPOINTS / "quickstart-pruned", None, "cpu", ["data.options.validation_size=64"])


def test_a_classifier_may_lose_half_a_point(quickstart: Any) -> None:
    data = create_task(quickstart.config).open_data(quickstart.preprocessing, train=False)
    judge = create_judge(quickstart, data)  # 64 images are no whole number of batches
    same = judge(quickstart.answer, 24)
    assert same.exported == same.original
    assert same.on == "64 validation images"
    assert same.original["top1"] > 90
    sizes = set()

    def worse(images: Tensor) -> Tensor:
        sizes.add(len(images))
        answer = quickstart.answer(images)
        return torch.where((images == first).flatten(1).all(dim=1)[:, None], -answer, answer)

    first = data.validation[0][0]
    with torch.no_grad():  # as the model says: else turning it round would be no loss
        assert int(quickstart.answer(first[None]).argmax()) == data.validation[0][1]
    with pytest.raises(InputError, match=r"top-1 of \d+\.\d+ % on 64 validation images .* may lose 0.5 points"):
        judge(worse, 24)
    assert sizes == {24}


def test_opening_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"model.pth: the name must end in .onnx, .xml, .pt2"):
        dynavit.open_exported(tmp_path / "model.pth")
    for format in FORMATS.values():
        path = tmp_path / f"model{format.suffix}"
        with pytest.raises(InputError, match=f"model{format.suffix} does not exist"):
            dynavit.open_exported(path)
        path.write_text("no model")
        for suffix in format.beside:
            with pytest.raises(InputError, match=f"model{suffix} does not exist"):
                dynavit.open_exported(path)
            path.with_suffix(suffix).write_text("no weights")
        with pytest.raises(InputError, match=r"is no model that|was not written by|is no program that"):
            dynavit.open_exported(path)
    for package, suffix in (("openvino", ".xml"), ("onnxruntime", ".onnx")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=f"{package} is missing: run `pip install {package}"):
            dynavit.open_exported(tmp_path / f"model{suffix}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quickstart-dense", "--with-tokens"], "holds a dense model, which chooses none; leave it out"),
        (["quickstart-pruned", "--format", "all,foo"], "--format all: choose from onnx, openvino, pt2"),
        (["quickstart-pruned", "--precision", "int4"], "--precision int4: choose from fp32"),
        (
            ["quickstart-pruned", "--format", "openvino", "--output", "weights.xml"],
            "weights.bin is there and belongs to",
        ),
        (["quickstart-pruned", "data.train_split=val"], "data.train_split=val: this does nothing"),
    ],
)
def test_what_cannot_be_exported(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights.bin").write_text("of a model")
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(CHECKPOINTS / words[0]), *words[1:]]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "weights.bin").read_text() == "of a model"


@pytest.mark.slow
def test_int8_is_fitted_to_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(70):
        pixels = torch.randint(256, (64, 64, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number:02}.png")
    run = open_run(CHECKPOINTS / "quickstart-pruned", None, "cpu")
    assert len(Exporter(run, str(folder)).sample) == 32
    assert sum(map(len, Exporter(run, str(folder)).calibration())) == 38
    for path in sorted(folder.iterdir())[40:]:
        path.unlink()
    assert sum(map(len, Exporter(run, str(folder)).calibration(3))) == 42  # all 40, the last batch filled
    for path in sorted(folder.iterdir())[2:]:
        path.unlink()
    words = ["--images", str(folder), "--precision", "int8", "--no-timing", "--output", str(tmp_path / "a.onnx")]
    assert main(["export", str(CHECKPOINTS / "quickstart-pruned"), *words]) == 2
    assert "is compared on 2 images: give three or more" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.slow
def test_every_file_of_the_committed_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quickstart: Any
) -> None:
    run, out, picture = str(CHECKPOINTS / "quickstart-pruned"), tmp_path / "out", tmp_path / "a.png"
    digit = create_task(quickstart.config).open_data(quickstart.preprocessing, train=False).validation[0][0]
    Image.fromarray(quickstart.pixels(digit)).save(picture)
    label = dynavit.predict(run, picture)[0]["label"]
    words = ["--format", "all", "--precision", "all", "--no-timing", "data.options.validation_size=200"]
    assert main(["export", run, *words, "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Not written: onnx in bf16: onnxruntime computes nothing in bf16" in printed
    about = json.loads((out / "exports.json").read_text())
    assert len(about["rows"]) == len(FORMATS) * len(PRECISIONS)
    for row in about["rows"]:
        if row["refused"]:
            assert row["precision"] in FORMATS[row["format"]].cannot
            continue
        assert row["file"] in printed
        assert row["file"] in (out / "exports.md").read_text()
        assert min(row["same_tokens"]) >= 0.97
        assert (row["exported"] is None) == (row["precision"] == "fp32")
        images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = quickstart.answer(images)
        answer = dynavit.open_exported(out / row["file"])(images)[0]
        assert (answer - expected).abs().max() < (1e-3 if row["precision"] == "fp32" else 0.3) * expected.std()
        if row["format"] == "onnx":
            script = [sys.executable, str(ROOT / "tools" / "predict_onnx.py"), str(out / row["file"]), str(picture)]
            said = subprocess.run(script, capture_output=True, text=True, check=True).stdout
            assert said.splitlines()[1].startswith(f"{picture},{label},")


@pytest.mark.slow
def test_every_file_of_the_committed_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(CHECKPOINTS / "quickstart-reid-dense")
    words = ["--format", "all", "--precision", "all", "--no-timing", "--output", str(tmp_path)]
    assert main(["export", run, *words]) == 0
    assert "mAP (%)" in capsys.readouterr().out
    images = torch.randn(2, 3, 96, 48, generator=torch.Generator().manual_seed(0))
    for row in json.loads((tmp_path / "exports.json").read_text())["rows"]:
        if row["refused"]:
            assert row["precision"] in FORMATS[row["format"]].cannot
            continue
        assert abs(row["exported"]["map"] - row["original"]["map"]) <= 0.5
        (answer,) = dynavit.open_exported(tmp_path / row["file"])(images)  # a dense model chooses no tokens
        assert answer.isfinite().all()
        assert row["same_tokens"] == []


@pytest.mark.slow
def test_speed_is_compared_within_rounds(
    quickstart: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The times are made up; that the bound is as short as the file, and the dense model is not, is looked at."""
    from dynavit.deployment import speeds

    asked: list[dict[str, Any]] = []

    def fake(calls: dict[str, Any], rounds: int, min_seconds: float) -> dict[str, list[float]]:
        asked.append({name: call() for name, call in calls.items()})
        times = {"pruned": 2.0, "dense": 6.0, "torch": 8.0, "oracle": 1.5}
        return {name: [times[name]] * rounds for name in calls}

    monkeypatch.setattr(speeds, "measure", fake)
    words = ["--format", "onnx,pt2", "--output", str(tmp_path), "--rounds", "3", "data.options.validation_size=64"]
    assert main(["export", str(CHECKPOINTS / "quickstart-pruned"), *words]) == 0
    for row in json.loads((tmp_path / "exports.json").read_text())["rows"]:
        assert [(speed["batch_size"], speed["ms"]) for speed in row["speeds"]] == [(1, 2000), (8, 250)]
        for speed in row["speeds"]:
            assert (speed["speedup"], speed["over_torch"], speed["share"]) == ([3] * 3, [4] * 3, [0.75] * 3)
    assert "of oracle" in capsys.readouterr().out
    for found in asked:
        logits = {name: (answer if isinstance(answer, Tensor) else answer[0]) for name, answer in found.items()}
        torch.testing.assert_close(logits["dense"], logits["torch"], rtol=1e-3, atol=1e-3)
        assert not torch.allclose(logits["oracle"], logits["pruned"], atol=1e-2)
