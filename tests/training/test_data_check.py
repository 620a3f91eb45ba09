"""The data check, on its own and before training."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import dynavit
from dynavit.cli import main
from dynavit.config import Config
from dynavit.training import data_check
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


@pytest.fixture
def own(pictures: Path, tmp_path: Path) -> Path:
    """A copy of the pictures that a test may damage."""
    return Path(shutil.copytree(pictures, tmp_path / "own"))


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["check", *arguments])
    return status, *capsys.readouterr()


def test_a_good_folder(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = check(capsys, "--images", str(own))
    assert (status, err) == (0, "")
    assert f"train: 24 images in {own / 'train'}\n  blue 8, green 8, red 8\n" in out
    assert f"validation: 12 images in {own / 'val'}\n  blue 4, green 4, red 4\n" in out
    assert "shortest side 32 pixels" in out
    assert "All files can be read." in out


def test_everything_that_can_be_wrong_is_listed(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "train/red/0.png").write_bytes(b"nothing")
    (own / "val/blue/1.png").write_bytes((own / "val/blue/1.png").read_bytes()[:900])
    shutil.copy(own / "train/green/3.png", own / "val/green/0.png")
    Image.new("RGB", (300, 20)).save(own / "train/red/long.png")
    Image.new("RGB", (4, 5)).save(own / "train/red/tiny.png")
    (own / "train/.ipynb_checkpoints").mkdir()
    shutil.copytree(own / "val/red", own / "val/rouge")
    (own / "train/black").mkdir()
    status, out, err = check(capsys, "--images", str(own))
    assert status == 2
    assert err.count("\n") == 1
    assert "2 files cannot be read" in err
    assert f"no images in {own / 'train/black'}" in err
    assert "black 0" in out
    assert f"{own / 'train/red/0.png'}: it is no image that Pillow knows" in out
    assert f"{own / 'val/blue/1.png'}: " in out
    assert "hidden or of the operating system (.ipynb_checkpoints)" in out
    assert "1 images are more than 5 times as long as wide" in out
    assert "1 files of validation are in training too" in out
    (own / "train/black").rmdir()
    status, out, err = check(capsys, "--images", str(own))
    assert f"{own / 'val'} has images of rouge, which {own / 'train'} does not know" in err


def test_folders_without_splits(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = check(capsys, "--images", str(own / "train"))
    assert status == 0
    assert "data.options.validation_fraction=0.2" in out
    assert "train: 18 images" in out
    status, out, _ = check(capsys, "--images", str(own / "val/red"))
    assert status == 0
    assert "images: 4 images" in out
    assert check(capsys, "--images", str(own / "nowhere"))[0] == 2
    (own / "empty").mkdir()
    assert "holds no images" in check(capsys, "--images", str(own / "empty"))[2]


def test_by_configuration(own: Path, tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny()
    config = str(tmp_path / "tiny.yaml")
    Image.new("RGB", (4, 5)).save(own / "train/red/tiny.png")
    status, out, _ = check(capsys, "--config", config, f"data.root={own}")
    assert status == 0
    assert "1 images are smaller than one patch of the model (8 x 8 pixels)" in out
    (own / "train/red/0.png").write_bytes(b"nothing")
    assert check(capsys, "--config", config, f"data.root={own}")[0] == 2
    status, out, _ = check(capsys, "--config", config, f"data.root={own}", "data.corrupt=skip")
    assert status == 0
    assert "1 files cannot be read:" in out
    status, _, err = check(capsys, "--config", config, "data.name=quickstart")
    assert (status, "only image files can be checked" in err) == (2, True)
    status, _, err = check(capsys, "--images", str(own), "data.corrupt=skip")
    assert (status, "settings go with --config" in err) == (2, True)


def test_many_classes_are_counted_not_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        for number in range(25):
            folder = tmp_path / split / f"c{number:02}"
            folder.mkdir(parents=True)
            for image in range(1 + (number == 7)):
                Image.new("RGB", (8, 8), (number, image, split == "val")).save(folder / f"{image}.png")
    out = check(capsys, "--images", str(tmp_path))[1]
    assert "25 classes, with 1 (c00) to 2 (c07) images" in out


def test_identities_are_checked(reid: Make, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reid()
    root = Path(shutil.copytree(people, tmp_path / "people"))
    status, out, _ = check(capsys, "--config", str(tmp_path / "reid.yaml"), f"data.root={root}")
    assert status == 0
    assert "query: 6 images" in out
    damaged = next((root / "bounding_box_test").iterdir())
    damaged.write_bytes(b"nothing")
    status, _, err = check(capsys, "--config", str(tmp_path / "reid.yaml"), f"data.root={root}")
    assert (status, damaged.name in err) == (2, True)
    with pytest.raises(dynavit.InputError, match=damaged.name):
        Trainer(reid(f"data.root={root}"))


@pytest.mark.parametrize("place", ["val/blue/3.png", "train/red/7.png"])
def test_training_stops_before_its_first_step(own: Path, tiny: Make, place: str) -> None:
    (own / place).write_bytes((own / place).read_bytes()[:500])
    config = tiny(f"data.root={own}")
    with pytest.raises(dynavit.InputError, match=rf"{place} cannot be read: .*data\.corrupt=skip"):
        Trainer(config)
    assert not config.run_dir.exists()


def test_at_most_five_files_are_named(own: Path, tiny: Make) -> None:
    damaged = [*(own / "train/red").iterdir(), *(own / "train/blue").iterdir()]
    for path in damaged:
        path.write_bytes(b"")
    with pytest.raises(dynavit.InputError, match=r"16 files cannot be read: .*, and 11 more\. Replace") as caught:
        Trainer(tiny(f"data.root={own}"))
    assert str(caught.value).count(".png") == 5
    for path in (own / "train/green").iterdir():
        path.write_bytes(b"")
    with pytest.raises(dynavit.InputError, match=r"not one image for train in .* can be read"):
        Trainer(tiny(f"data.root={own}", "data.corrupt=skip"))


def test_a_class_without_readable_training_images_stops(own: Path, tiny: Make) -> None:
    for path in (own / "train/red").iterdir():
        path.write_bytes(b"")
    config = tiny(f"data.root={own}", "data.corrupt=skip")
    said = r"no training image of red in .*train can be read, .*; 8 files cannot be read: "
    (problem,) = data_check.check_data(config).problems
    assert re.match(said, problem)
    with pytest.raises(dynavit.InputError, match=said):
        Trainer(config)
    assert not config.run_dir.exists()


@pytest.mark.parametrize(
    ("how", "overrides", "said"),
    [
        ("one class", [], "the data have one class only (red): there is nothing to tell apart."),
        ("divided", [], "the data have one class only (red): there is nothing to tell apart."),
        ("nested", [], "There are splits in "),
        (None, ["data.augmentation={hflip: 2}"], "data.augmentation.hflip is a probability"),
    ],
)
def test_what_stops_a_training_is_no_success_of_the_check(
    own: Path, tiny: Make, tmp_path: Path, how: str | None, overrides: list[str], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if how == "nested":
        (tmp_path / "above").mkdir()
        own = own.rename(tmp_path / "above/photos").parent
    elif how is not None:
        for other in (*own.glob("*/green"), *own.glob("*/blue")):
            shutil.rmtree(other)
    if how == "divided":
        shutil.rmtree(own / "val")
        own, overrides = own / "train", ["data.options.validation_fraction=0.2"]
    config = tiny(f"data.root={own}", *overrides)
    with pytest.raises(dynavit.InputError) as caught:
        Trainer(config)
    assert said in str(caught.value)
    ways = [["--config", str(tmp_path / "tiny.yaml"), f"data.root={own}", *overrides]]
    if how is not None:
        ways.append(["--images", str(own)])
    for way in ways:
        status, _, err = check(capsys, *way)
        assert (status, str(caught.value) in err) == (2, True)


def test_what_is_skipped_is_counted(own: Path, tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "train/red/0.png").write_bytes(b"")
    shutil.copy(own / "train/red/1.png", own / "val/red/0.png")
    Trainer(tiny(f"data.root={own}", "data.corrupt=skip"))
    out = capsys.readouterr().out
    assert "red/0.png cannot be read: it is empty. What cannot be read is skipped (data.corrupt=skip)." in out
    assert "1 files of validation are in training too" in out


def test_the_second_start_remembers(own: Path, tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(tiny(f"data.root={own}"))
    assert "Data check: 36 files, all can be read." in capsys.readouterr().out
    Trainer(tiny(f"data.root={own}"))
    assert "unchanged since they were looked at before" in capsys.readouterr().out


def test_of_very_many_files_only_headers_are_read(
    own: Path, tiny: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_check, "_MOST_DECODED", 35)
    cut = own / "train/red/0.png"
    cut.write_bytes(cut.read_bytes()[:500])
    Trainer(tiny(f"data.root={own}"))
    assert "Only their headers were looked at" in capsys.readouterr().out
    cut.write_bytes(b"nothing")
    with pytest.raises(dynavit.InputError, match=r"0\.png"):
        Trainer(tiny(f"data.root={own}"))


def test_training_and_evaluation_agree_on_a_divided_folder(
    own: Path, tiny: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(f"data.root={own / 'train'}", "data.options.validation_fraction=0.25", "train.epochs=1")
    trainer = Trainer(config)
    assert (len(trainer.setup.data.train), len(trainer.setup.data.validation)) == (18, 6)
    trainer.fit()
    assert "Classes: blue, green, red. 18 training and 6 validation images." in capsys.readouterr().out
    held_out = trainer.setup.data.validation.dataset.files.paths
    again = trainer.setup.task.open_data(trainer.setup.preprocessing, train=False, class_names=("blue", "green", "red"))
    assert again.validation.dataset.files.paths == held_out
    assert main(["evaluate", str(config.run_dir), "--no-timing", "--keep-ratios", "0.5"]) == 0
    assert "6 of 24 images" in capsys.readouterr().out


def test_evaluation_on_a_split_that_lacks_a_class(own: Path, tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(f"data.root={own}", "train.epochs=1")
    Trainer(config).fit()
    shutil.copytree(own / "val/red", own / "test/red")
    evaluate = ["evaluate", str(config.run_dir), "--no-timing", "--keep-ratios", "0.5", "data.validation_split=test"]
    assert main(evaluate) == 0
    assert "has no images of 2 of the 3 classes: blue, green" in capsys.readouterr().out
    shutil.copytree(own / "val/red", own / "test/crimson")
    assert main(evaluate) == 2
    assert "images of crimson, which the model does not know" in capsys.readouterr().err
