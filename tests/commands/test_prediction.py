"""What predict and embed say of images is what the model says of them; and what they refuse."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dynavit
from dynavit import InputError
from dynavit.cli import main
from dynavit.runs.open import open_run
from dynavit.tables import read_csv
from tests.commands.test_functions import save


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("classifier"), num_classes=3)


@pytest.fixture(scope="module")
def reid_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("reid"), num_identities=4)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 3}
    dynavit.create_model("vit_tiny_patch16_224", stages=(), **sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures, of which two cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 36, 3), dtype=np.uint8)
        name = os.fsdecode(b"caf\xe9.png") if number == 4 else f"{number}.png"
        with (folder / name).open("wb") as file:
            Image.fromarray(pixels).save(file, "PNG")
    for number in (2, 7):
        (folder / f"{number}.png").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def gallery(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of its own, one of the photos by a link, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("gallery")
    for number in range(3):
        pixels = np.random.default_rng(100 + number).integers(0, 255, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "3.png").symlink_to(photos / "3.png")
    (folder / "4.png").write_bytes(b"nothing")
    return folder


def seen(run_dir: Path, names: list[str]) -> tuple[Any, torch.Tensor]:
    """The opened run, and the images as its model sees them, read one by one."""
    run = open_run(run_dir)
    pictures = [Image.open(os.fsencode(name)) for name in names]
    return run, torch.stack([run.transform(picture) for picture in pictures])


def quiet(problems: object) -> None:
    pass


# the best classes


def test_the_best_classes_are_torchs(saved: Path, photos: Path) -> None:
    rows = dynavit.predict(saved, photos, top=3, batch_size=4, report=quiet)
    assert list(rows[0]) == ["image", "label", "probability", "label_2", "probability_2", "label_3", "probability_3"]
    run, images = seen(saved, [row["image"] for row in rows])
    with torch.no_grad():
        best = run.model(images).softmax(dim=1).topk(3)
    for row, values, classes in zip(rows, best.values, best.indices, strict=True):
        assert [row[f"label{end}"] for end in ("", "_2", "_3")] == [run.class_names[number] for number in classes]
        given = [row[f"probability{end}"] for end in ("", "_2", "_3")]
        torch.testing.assert_close(torch.tensor(given), values, atol=6e-5, rtol=0)
    plain = dynavit.predict(saved, photos, report=quiet)
    assert plain == [{name: row[name] for name in ("image", "label", "probability")} for row in rows]


def test_the_best_classes_are_columns(saved: Path, photos: Path, tmp_path: Path) -> None:
    predict = ["predict", str(saved), "--images", str(photos), "--top", "2", "--output"]
    assert main([*predict, str(tmp_path / "x.csv")]) == 0
    assert main([*predict, str(tmp_path / "x.json")]) == 0
    rows = json.loads((tmp_path / "x.json").read_text())
    assert len(rows) == 7
    assert read_csv(tmp_path / "x.csv") == [{name: str(value) for name, value in row.items()} for row in rows]


# features and probabilities


@pytest.mark.parametrize("thresholds", [None, [0.1, 0.2]])
def test_features_and_probabilities(thresholds: list[float] | None, saved: Path, photos: Path, tmp_path: Path) -> None:
    if thresholds is not None:
        model = dynavit.load(saved)
        model.set_thresholds(thresholds)
        model.save_pretrained(saved := tmp_path / "adaptive")
    names, features = dynavit.embed(saved, photos, tmp_path / "x.npz", batch_size=4, report=quiet)
    run, images = seen(saved, names)
    assert len(names) == 7
    assert run.model.thresholds == (None if thresholds is None else tuple(thresholds))
    with np.load(tmp_path / "x.npz") as arrays, torch.no_grad():
        assert list(arrays) == ["images", "probabilities", "class_names", "features"]
        assert arrays["images"].tolist() == names
        assert arrays["class_names"].tolist() == list(run.class_names)
        assert arrays["probabilities"].dtype == arrays["features"].dtype == np.float32
        assert np.array_equal(arrays["features"], features.numpy())
        logits = run.model(images)
        torch.testing.assert_close(run.model.get_classifier()(features), logits)
        torch.testing.assert_close(torch.from_numpy(arrays["probabilities"]), logits.softmax(dim=1))


def test_blocks_run_once_for_both(saved: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    ran: list[int] = []
    run = dynavit.PrunedViT.run

    def counting(model: dynavit.PrunedViT, tokens: Any, *rest: Any) -> None:
        ran.append(len(tokens.x))
        run(model, tokens, *rest)

    monkeypatch.setattr(dynavit.PrunedViT, "run", counting)
    dynavit.embed(saved, photos, batch_size=4, report=quiet)
    assert sum(ran) == 7


# worker processes


def test_workers_change_nothing(saved: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for workers in ("0", "2"):
        command = ["predict", str(saved), "--images", str(photos), "--batch-size", "2", "--workers", workers]
        assert main([*command, "--output", str(tmp_path / "x.csv"), "--tokens", str(tmp_path / "x.json")]) == 0
        said = capsys.readouterr()
        found.append((said.err, *((tmp_path / name).read_bytes() for name in ("x.csv", "x.json"))))
    assert found[0] == found[1]
    reports = found[0][0].splitlines()
    assert [line.split(" cannot")[0] for line in reports] == [f"warning: {photos}/{number}.png" for number in (2, 7)]


# torch waits 5 seconds for each worker of a loader that failed
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failing_preparation_is_named_by_workers_too(
    workers: int, saved: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(picture: Image.Image) -> torch.Tensor:
        raise ValueError("of the code")

    monkeypatch.setattr("dynavit.data.transforms.Preparation.__call__", lambda self, picture: failing(picture))
    said = r"0\.png: preparing it for the model failed: ValueError: of the code\.$"
    with pytest.raises(InputError, match=said):
        dynavit.predict(saved, photos, batch_size=2, workers=workers, report=quiet)


@pytest.mark.slow  # torch looks after them every 5 seconds
def test_workers_that_are_ended(saved: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynavit.runs.images.read_picture", lambda *_: os._exit(1))
    with pytest.raises(InputError, match="use --workers 0, or a smaller --batch-size"):
        dynavit.predict(saved, photos, batch_size=2, workers=2)


# the progress bar


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, StringIO])
def test_a_bar_on_a_terminal_alone(
    stream: type[StringIO],
    saved: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    assert main(["predict", str(saved), "--images", str(photos), "--batch-size", "3", "--workers", "0"]) == 0
    assert ("images: " in shown.getvalue()) == (stream is Terminal)
    assert shown.getvalue().count("cannot be read and is left out") == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "image,label,probability"
    assert len(lines) == 8


# images of a gallery


def cosines(run_dir: Path, names: list[str], others: list[str]) -> torch.Tensor:
    run, images = seen(run_dir, names)
    with torch.no_grad():
        embeddings, found = run.model(images), run.model(seen(run_dir, others)[1])
    return torch.nn.functional.cosine_similarity(embeddings[:, None], found[None], dim=2)


def check_ranking(rows: list[dict[str, Any]], similarity: torch.Tensor, others: list[str], top: int) -> None:
    for row, values in zip(rows, similarity, strict=True):
        ranked = [others[place] for place in values.argsort(descending=True)][:top]
        endings = ["", *(f"_{number}" for number in range(2, top + 1))]
        assert [row[f"nearest{end}"] for end in endings] == ranked
        expected = values.sort(descending=True).values[:top]
        torch.testing.assert_close(
            torch.tensor([row[f"similarity{end}"] for end in endings]), expected, atol=6e-5, rtol=0
        )


def test_the_nearest_of_a_gallery(reid_saved: Path, photos: Path, gallery: Path) -> None:
    rows = dynavit.predict(reid_saved, photos, gallery=gallery, top=2, batch_size=3, report=quiet)
    names, others = [row["image"] for row in rows], [str(gallery / f"{number}.png") for number in range(4)]
    assert len(names) == 7
    similarity = cosines(reid_saved, names, others)
    own = names.index(str(photos / "3.png"))
    assert similarity[own, 3] > 0.9999  # it would find itself first
    similarity[own, 3] = -2
    check_ranking(rows, similarity, others, 2)


def test_a_gallery_on_the_command_line(
    reid_saved: Path, photos: Path, gallery: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(reid_saved), "--images", str(photos / "3.png"), "--gallery", str(gallery), "--top", "2"]
    assert main(command) == 0
    (row,) = dynavit.predict(reid_saved, photos / "3.png", gallery=gallery, top=2, report=quiet)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [",".join(row), ",".join(map(str, row.values()))]


def test_the_nearest_of_the_images_themselves(reid_saved: Path, photos: Path) -> None:
    rows = dynavit.predict(reid_saved, photos, top=3, report=quiet)
    names = [row["image"] for row in rows]
    check_ranking(rows, cosines(reid_saved, names, names).fill_diagonal_(-2), names, 3)


def test_cells_stay_empty_where_a_gallery_cannot_be_read(
    reid_saved: Path, photos: Path, gallery: Path, tmp_path: Path
) -> None:
    rows = dynavit.predict(reid_saved, photos, tmp_path / "x.csv", gallery=gallery, top=4, report=quiet)
    short = [row["image"] for row in rows if row["nearest_4"] is None and row["similarity_4"] is None]
    assert short == [str(photos / "3.png")]
    assert [row["image"] for row in read_csv(tmp_path / "x.csv") if row["nearest_4"] == ""] == short
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "0.png").symlink_to(photos / "0.png")
    (alone / "1.png").write_bytes(b"nothing")
    rows = dynavit.predict(reid_saved, photos, gallery=alone, report=quiet)
    assert [row["image"] for row in rows if row["nearest"] is None] == [str(photos / "0.png")]
    with pytest.raises(InputError, match="one image only"):
        dynavit.predict(reid_saved, photos / "0.png", gallery=alone, report=quiet)


# what is refused


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("saved", {"top": 4}, "--top=4: the model knows 3 classes; give as many or fewer"),
        ("saved", {"top": 0}, "--top=0: give a whole number of 1 or more"),
        ("saved", {"top": True}, "--top=True"),
        ("reid_saved", {"top": 9}, "--top=9: there are 8 other images to find; give as many or fewer"),
        ("reid_saved", {"top": 6, "gallery": "gallery"}, "--top=6: there are 5 other images"),
        ("reid_saved", {"gallery": "nowhere"}, "nowhere does not exist: --gallery takes a folder"),
        ("reid_saved", {"gallery": ""}, "--gallery is empty"),
        ("saved", {"gallery": "gallery"}, "--gallery .*: .* is a classifier; .* Leave it out"),
        ("dense", {"tokens": "x.json"}, r"--tokens .*x\.json: .* holds a dense model"),
        ("saved", {"tokens": "x.csv"}, r"--tokens .*x\.csv: the name must end in \.json"),
        ("saved", {"tokens": "x.json", "output": "x.json"}, "--output goes to this file"),
    ],
)
def test_what_cannot_be_given_is_refused_before_the_work(
    model: str,
    options: dict[str, Any],
    said: str,
    photos: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("worked before")

    monkeypatch.setattr("dynavit.deployment.predict.read_images", fail)
    monkeypatch.chdir(tmp_path)
    if options.get("gallery") == "gallery":
        options = {**options, "gallery": request.getfixturevalue("gallery")}
    with pytest.raises(InputError, match=said):
        dynavit.predict(request.getfixturevalue(model), photos, **options)
    assert not list(tmp_path.iterdir())


def test_tokens_are_tried_before_the_work(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("worked before the output was tried")

    monkeypatch.setattr("dynavit.runs.open.open_run", fail)
    (tmp_path / "folder.json").mkdir()
    for place, said in (("/proc/nowhere/x.json", "cannot be written"), (tmp_path / "folder.json", "is a folder")):
        with pytest.raises(InputError, match=said):
            dynavit.predict(saved, saved, tokens=place)


@pytest.mark.parametrize(("option", "value"), [("--top", "2"), ("--gallery", "x"), ("--tokens", "x.json")])
def test_arrays_go_without_options_of_rows(
    option: str, value: str, saved: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(saved), "--images", str(photos), "--output", str(tmp_path / "x.npz")]
    assert main([*command, option, value]) == 2
    assert capsys.readouterr().err.startswith(f"error: {option}: a file .npz")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_what_was_there(saved: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("x.csv", "x.json"):
        (tmp_path / name).write_text("before")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")

    def full(problems: object) -> None:
        raise InputError("stop")

    steps: list[Callable[[], object]] = [
        lambda: dynavit.predict(saved, bad, tmp_path / "x.csv", tokens=tmp_path / "x.json", report=quiet),
        lambda: dynavit.predict(saved, photos, tmp_path / "x.csv", tokens=tmp_path / "x.json", report=full),
    ]
    for step in steps:
        with pytest.raises(InputError):
            step()
        assert {path.name for path in tmp_path.iterdir()} == {"x.csv", "x.json", "bad.png"}
        assert [(tmp_path / name).read_text() for name in ("x.csv", "x.json")] == ["before"] * 2
