"""Folders of classes: what is a class, what is an image, and whose labels hold."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dynavit.data.classification import ClassificationData, create_classification_data
from dynavit.data.files import image_endings
from dynavit.data.labelled import read_class_folders, split_off
from dynavit.data.transforms import create_transforms
from dynavit.errors import InputError

TRANSFORMS = create_transforms(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
GREEN = {"cat": 50, "dog": 100, "eel": 150}


def picture(path: Path, name: str = "cat") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (0, GREEN[name], 0)).save(path, format="PNG")


def pictures(folder: Path, classes: str = "cat dog eel", count: int = 2) -> None:
    for name in classes.split():
        for number in range(count):
            picture(folder / name / f"{number}.png", name)


def create(root: Path, **options: Any) -> ClassificationData:
    return create_classification_data("folder", str(root), transforms=TRANSFORMS, **options)


def labelled(samples: Any) -> list[tuple[int, int]]:
    return [(round(float(image[1, 0, 0]) * 255), label) for image, label, _ in samples]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    pictures(tmp_path / "train")
    pictures(tmp_path / "val", count=1)
    return tmp_path


@pytest.mark.parametrize("junk", [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".Trash-1000", "$RECYCLE.BIN"])
def test_hidden_folders_are_no_classes_and_that_is_said(pets: Path, junk: str) -> None:
    for place in (f"train/{junk}/0-checkpoint.png", f"val/{junk}/0.png", f"val/cat/{junk}/0.png", "train/cat/._0.png"):
        picture(pets / place)
    data = create(pets)
    assert data.class_names == ("cat", "dog", "eel")
    assert (len(data.train), len(data.validation)) == (6, 3)
    for split in ("train", "val"):
        assert any(note.startswith(f"Skipped in {pets / split}: ") and junk in note for note in data.notes)
    assert all(note in data.summary() for note in data.notes)
    assert "cat, dog, eel" in data.summary()


def test_every_ending_that_pillow_reads_and_a_note_of_the_rest(pets: Path) -> None:
    for number, ending in enumerate(sorted(image_endings())):
        shutil.copy(pets / "train/cat/0.png", pets / f"train/cat/more{number}{ending.upper()}")
    (pets / "train/cat/labels.xml").touch()
    picture(pets / "train/stray.png")
    data = create(pets)
    assert len(data.train) == 6 + len(image_endings())
    (note,) = data.notes
    assert "1 no image file (cat/labels.xml)" in note
    assert "1 in no class folder (stray.png)" in note


def test_links_are_followed_once_and_loops_end(pets: Path) -> None:
    elsewhere = pets / "elsewhere"
    (pets / "train/eel").rename(elsewhere)
    (pets / "train/eel").symlink_to(elsewhere)
    (pets / "train/cat/loop").symlink_to(pets / "train")
    (pets / "train/tomcat").symlink_to(pets / "train/cat")
    (pets / "train/gone").symlink_to(pets / "nowhere")
    (pets / "train/dog/again.png").symlink_to(pets / "train/dog/0.png")
    data = create(pets)
    assert data.class_names == ("cat", "dog", "eel")
    assert labelled(data.train) == [(50, 0), (50, 0), (100, 1), (100, 1), (150, 2), (150, 2)]
    assert "tomcat" in data.notes[0]
    shutil.rmtree(pets / "val")
    (pets / "val").symlink_to(pets / "train")
    with pytest.raises(InputError, match=r"would both read .*train"):
        create(pets)


@pytest.mark.parametrize("way", ["no folder", "empty folder", "no image", "hidden image"])
def test_validation_may_lack_a_class(pets: Path, way: str) -> None:
    shutil.rmtree(pets / "val/cat")  # the first, so that labels would shift
    if way != "no folder":
        (pets / "val/cat").mkdir()
    if way == "no image":
        (pets / "val/cat/notes.txt").touch()
    if way == "hidden image":
        picture(pets / "val/cat/.0.png")
    data = create(pets)
    assert labelled(data.validation) == [(100, 1), (150, 2)]
    assert f"{pets / 'val'} has no images of 1 of the 3 classes: cat." in data.notes


def test_classes_that_training_does_not_know(pets: Path) -> None:
    (pets / "val/fox").mkdir()
    assert any("empty folders that are no classes" in note and "fox" in note for note in create(pets).notes)
    picture(pets / "val/Cat/0.png")
    with pytest.raises(InputError, match=r"val has images of Cat, which .*train does not know.*Did you mean 'cat'"):
        create(pets)
    shutil.rmtree(pets / "val")
    (pets / "val/cat").mkdir(parents=True)
    with pytest.raises(InputError, match=r"val holds no images to validate on"):
        create(pets)


def test_evaluation_is_labelled_by_the_models_classes(pets: Path) -> None:
    shutil.rmtree(pets / "val/cat")
    data = create(pets, train=False, class_names=("eel", "cat", "dog", "fox"))
    assert data.train is None
    assert labelled(data.validation) == [(100, 2), (150, 0)]
    assert any("2 of the 4 classes: cat, fox" in note for note in data.notes)
    with pytest.raises(InputError, match=r"val has images of eel, which the model does not know"):
        create(pets, train=False, class_names=("cat", "dog"))


def test_dividing_a_folder_of_classes(tmp_path: Path) -> None:
    for name, count in (("cat", 11), ("dog", 2), ("eel", 1)):
        pictures(tmp_path, name, count)
    train, validation = split_off(read_class_folders(tmp_path), 0.2, seed=3)
    assert Counter(validation.names) == {"cat": 2, "dog": 1}
    assert Counter(train.names) == {"cat": 9, "dog": 1, "eel": 1}
    assert not {*train.paths} & {*validation.paths}
    assert split_off(read_class_folders(tmp_path), 0.2, seed=3) == (train, validation)
    assert split_off(read_class_folders(tmp_path), 0.2, seed=4)[1] != validation
    moved = tmp_path.with_name("moved")
    shutil.copytree(tmp_path, moved)
    again = split_off(read_class_folders(moved), 0.2, seed=3)[1]
    assert [path.relative_to(moved) for path in again.paths] == [
        path.relative_to(tmp_path) for path in validation.paths
    ]
    most = split_off(read_class_folders(tmp_path), 0.99, seed=3)[0]
    assert Counter(most.names) == {"cat": 1, "dog": 1, "eel": 1}


def test_names_that_are_no_text_can_be_printed(pets: Path) -> None:
    os.rename(os.fsencode(pets / "train/cat"), os.fsencode(pets / "train") + b"/caf\xe9")
    shutil.rmtree(pets / "val/cat")
    picture(pets / "train/dog/\x1b[31m.txt")
    data = create(pets)
    assert r"caf\udce9" in data.summary()
    assert "\x1b" not in data.summary()
    data.summary().encode()
