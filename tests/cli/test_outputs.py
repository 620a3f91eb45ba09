"""Results go where they should, or the command says so before it works; names are shown, never obeyed."""

import contextlib
import csv
import io
import json
import os
import resource
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dynavit
from dynavit.cli import main
from dynavit.tables import read_csv

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
CLASSES = ["=cmd", "b\x1b[31m", "c"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model of three classes with awkward names, saved from Python."""
    folder = tmp_path_factory.mktemp("saved")
    model = dynavit.create_model("vit_tiny_patch16_224", num_classes=3, stages=(1, 2), keep_ratio=0.5, **TINY)
    model.metadata = {"class_names": CLASSES}
    model.save_pretrained(folder)
    return folder


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


NAMES = ["=1+1.png", "@SUM(1).png", "-2.png", "a\nb.png", 'quote",.png', "esc\x1b[31m.png", os.fsdecode(b"caf\xe9.png")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, name in enumerate(NAMES):
        picture(folder / name, number)
    return folder


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(CLASSES):
        for split in ("train", "val"):
            picture(root / split / name / "0.png", number)
            picture(root / split / name / "1.png", 10 + number)
    return root


def test_any_file_name_reads_back(
    saved: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(images)
    assert main(["predict", str(saved), "--images", ".", "--output", str(tmp_path / "x.csv"), "--batch-size", "3"]) == 0
    assert main(["predict", str(saved), "--images", ".", "--output", str(tmp_path / "x.json")]) == 0
    capsys.readouterr()
    rows = read_csv(tmp_path / "x.csv")
    assert {row["image"] for row in rows} == set(NAMES)
    assert {row["label"] for row in rows} <= set(CLASSES)
    assert [row["image"] for row in rows] == [row["image"] for row in json.loads((tmp_path / "x.json").read_text())]
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [cell for cell in cells if cell[0] in "=+-@"]
    assert main(["predict", str(saved), "--images", "."]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 1 + len(NAMES)
    assert "\x1b" not in shown
    assert main(["visualize", str(saved), "--images", ".", "--output", str(tmp_path / "drawn")]) == 0
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["kept_tokens_001.png"]


def test_a_terminal_of_ascii_alone(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "é" / "漢字.png", 0)
    (tmp_path / "é" / "ü.png").write_bytes(b"broken")
    monkeypatch.chdir(tmp_path)
    streams = {
        name: io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for name in ("stdout", "stderr")
    }
    with monkeypatch.context() as patched:
        for name, stream in streams.items():
            patched.setattr(sys, name, stream)
        assert main(["predict", str(saved), "--images", "é"]) == 0
        assert main(["predict", str(saved), "--images", "é", "--output", "é.csv"]) == 0
        assert main(["predict", str(saved), "--images", "ö"]) == 2
    written = {name: stream.buffer.getvalue() for name, stream in streams.items()}
    assert rb"\u6f22\u5b57.png" in written["stdout"]
    assert rb"\xfc.png cannot be read" in written["stderr"]
    assert rb"error: \xf6 does not exist" in written["stderr"]
    assert read_csv(tmp_path / "é.csv")[0]["image"] == "é/漢字.png"


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a model, or timing one, fails."""

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("worked before the output was tried")

    # open_run last: what is imported meanwhile must not keep the failing one
    opening = ("evaluation.dense_classifier.open_dense_classifier", "runs.open.open_run")
    for place in ("evaluation.benchmark.benchmark_models", *opening):
        monkeypatch.setattr(f"dynavit.{place}", fail)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("arguments", "good", "suffixes"),
    [
        (["predict", "{run}", "--images", "{run}"], "x.csv", ".csv or .json"),
        (["export", "{run}"], "x.onnx", ".onnx"),
        (["benchmark", "--backbone", "test_vit"], "x.json", ".json"),
        (["compare", "{run}"], "x.png", "png"),
        (["evaluate", "{run}"], "results", None),
        (["visualize", "{run}", "--images", "{run}"], "results", None),
        (["methods", "--checkpoint", "{run}"], "results", None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_outputs_are_tried_before_the_work(
    arguments: list[str],
    good: str,
    suffixes: str | None,
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / f"folder{Path(good).suffix}").mkdir()
    outputs = [f"/proc/nowhere/{good}", str(tmp_path / "file" / good)]
    outputs += [str(tmp_path / "x.foo"), str(tmp_path / f"folder{Path(good).suffix}")] if suffixes else []
    outputs += [] if suffixes else [str(tmp_path / "file")]
    for output in outputs:
        assert main([*(word.format(run=saved) for word in arguments), "--output", output]) == 2
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        assert output in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", f"folder{Path(good).suffix}"])


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_earlier_results_stay(
    saved: Path,
    images: Path,
    validation: Path,
    tmp_path: Path,
    full_disk: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluate = ["evaluate", str(saved), "--keep-ratios", "1.0,0.5", "--no-timing", f"data.root={validation}"]
    evaluate += ["data.batch_size=4", "data.workers=0", "--output", str(tmp_path)]
    predict = ["predict", str(saved), "--images", str(images), "--output", str(tmp_path / "labels.csv")]
    assert main(evaluate) == 0
    assert main(predict) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() >= {"evaluation.json", "evaluation.csv", "pareto.png", "report.html", "labels.csv"}
    capsys.readouterr()
    for size, command, name in ((5000, evaluate, "pareto.png"), (200, predict, "labels.csv")):
        full_disk(size)
        assert main(command) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert f"{tmp_path / name} could not be written" in lines[0]
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_embeddings_and_endings_in_capitals(saved: Path, images: Path, tmp_path: Path) -> None:
    predict = ["predict", str(saved), "--images", str(images), "--output"]
    assert main([*predict, str(tmp_path / "X.CSV")]) == 0
    assert len(read_csv(tmp_path / "X.CSV")) == len(NAMES)
    assert main([*predict, str(tmp_path / "x.NPZ")]) == 0
    with np.load(tmp_path / "x.NPZ") as arrays:
        assert set(arrays["images"]) == {str(images / name) for name in NAMES}
        assert arrays["class_names"].tolist() == CLASSES
        assert arrays["probabilities"].shape == (len(NAMES), len(CLASSES))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "{run}", "--images", "{run}", "--batch-size", "0"], "--batch-size=0"),
        (["predict", "{run}", "--images", "{run}", "--batch-size", "-3"], "--batch-size=-3"),
        (["benchmark", "--rounds", "-1"], "--rounds=-1"),
        (["benchmark", "--selectors", "--keep-ratios", "0.5"], "--keep-ratios: means nothing with --selectors"),
        (["benchmark", "--selectors", "--dtypes", "bfloat16"], "--dtypes"),
        (["benchmark", "--selectors", "--training"], "--training"),
        (["methods", "--checkpoint", "{run}", "--rounds", "0"], "--rounds=0"),
        (["methods", "--checkpoint", "{run}", "--rounds", "3", "--no-timing"], "--rounds: with --no-timing"),
        (["methods", "--checkpoint", "{run}", "--calibration-images", "0"], "--calibration-images=0"),
        (["methods", "--checkpoint", "{run}", "--img-size", "-1"], "--img-size=-1"),
        (["evaluate", "{run}", "--no-timing", "--batch-sizes", "1"], "--batch-sizes: with --no-timing"),
        (["compare", "nowhere"], "nowhere is no run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_that_cannot_work_are_named(
    arguments: list[str], said: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(run=saved) for word in arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("ratios", ["nan", "inf", "0.5,nan", ""])
def test_numbers_are_numbers(ratios: str, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(saved), "--keep-ratios", ratios])
    shown = capsys.readouterr().err
    assert shown.startswith("error: argument --keep-ratios")
    assert shown.count("\n") == 1


@pytest.mark.parametrize("arguments", [["configs"], ["configs", "missing"], ["--version"]])
def test_a_program_that_calls_main_finds_its_hooks_and_streams_as_they_were(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict"))
    hooks = warnings.formatwarning, threading.excepthook
    with contextlib.suppress(SystemExit):
        main(arguments)
    assert (warnings.formatwarning, threading.excepthook) == hooks
    assert sys.stdout.errors == "strict"
