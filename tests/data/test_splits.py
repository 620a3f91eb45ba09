"""Which files are for training and which for validation."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dynavit.data.splits import FileSplits, Wanted, find_splits, split_name
from dynavit.errors import InputError
from dynavit.training.data_check import check_folder


def images(root: Path, *folders: str, count: int = 3) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / folder / f"{number}.jpg").touch()  # none is opened
    return root


def find(
    root: Path,
    train: bool = True,
    train_split: str = "train",
    validation_split: str = "val",
    seed: int = 0,
    **options: Any,
) -> FileSplits:
    return find_splits(Wanted(str(root), train, train_split, validation_split, seed, options))


def splits(root: Path, *names: str) -> Path:
    return images(root, *(f"{name}/{label}" for name in names for label in "ab"))


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("train", "valid"), ("Train", "Val"), ("TRAIN", "TEST"), ("training", "validation"), ("train", "dev"),
        ("Training", "Testing"), ("training_set", "test_set"), ("train", "Validation Set"),
    ],
)  # fmt: skip
def test_usual_names_are_found(tmp_path: Path, train: str, validation: str) -> None:
    found = find(splits(tmp_path, train, validation, "masks", ".git"))
    assert found.train is not None
    assert (found.train.source, found.validation.source) == (tmp_path / train, tmp_path / validation)
    said = " ".join(found.notes)
    assert ("used for training" in said) == (train != "train")
    assert f"has no folder 'val': {validation!r} is used for validation" in said
    assert find(tmp_path, train=False).validation == found.validation


def test_the_nearest_name_is_taken(tmp_path: Path) -> None:
    splits(tmp_path, "train", "test", "valid")
    assert find(tmp_path).validation.source.name == "valid"
    splits(tmp_path, "val")
    assert find(tmp_path).validation.source.name == "val"
    assert find(tmp_path).notes == ()


def test_names_that_are_set_are_taken_literally(tmp_path: Path) -> None:
    splits(tmp_path, "train", "valid", "test")
    assert find(tmp_path, validation_split="test").validation.source.name == "test"
    with pytest.raises(InputError, match=r"validation does not exist.*There is 'valid': set data.validation_split"):
        find(tmp_path, validation_split="validation")
    with pytest.raises(InputError, match=r"fit does not exist.*There is 'train': set data.train_split"):
        find(tmp_path, train_split="fit")


def test_no_folder_is_both(tmp_path: Path) -> None:
    splits(tmp_path, "valid", "test")
    assert find(tmp_path, train_split="valid").validation.source.name == "test"
    assert find(tmp_path, train=False, train_split="valid").validation.source.name == "test"
    with pytest.raises(InputError, match="both read"):
        find(tmp_path, train_split="test", validation_split="test")
    with pytest.raises(InputError, match=r"Val and val could both be|VAL and Val could both be"):
        split_name("val", ["VAL", "Val"])


def test_one_folder_of_classes_names_the_way(tmp_path: Path) -> None:
    images(tmp_path, "a", "b")
    with pytest.raises(InputError, match=r"\(a, b\) and no splits: set data\.options\.validation_fraction=0\.2"):
        find(tmp_path)
    found = find(tmp_path, validation_fraction=0.2, seed=5)
    assert found.train is not None
    assert (len(found.train.paths), len(found.validation.paths)) == (4, 2)
    alone = find(tmp_path, train=False, validation_fraction=0.2, seed=5)
    assert (alone.train, alone.validation) == (None, found.validation)
    assert any("2 of 6 images" in note and "seed 5" in note for note in found.notes)


def test_a_training_split_alone_can_be_divided(tmp_path: Path) -> None:
    splits(tmp_path, "Train", "test")
    found = find(tmp_path, validation_fraction=0.4)
    assert found.train is not None
    assert found.validation.source == tmp_path / "Train"
    assert {*found.train.classes} == {"a", "b"}
    splits(tmp_path, "valid")
    with pytest.raises(InputError, match=r"valid is the validation split already.*validation_fraction=null"):
        find(tmp_path, validation_fraction=0.4)
    assert find(tmp_path, validation_fraction=None).validation.source.name == "valid"


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    found = find(images(tmp_path, "train", "plane", "test"), validation_fraction=0.3)
    assert found.validation.classes == ("plane", "test", "train")


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), float("inf"), "much", True, [0.2]])
def test_impossible_fractions(tmp_path: Path, fraction: Any) -> None:
    images(tmp_path, "a", "b")
    with pytest.raises(InputError, match=r"data\.options\.validation_fraction=.*between 0 and 1"):
        find(tmp_path, validation_fraction=fraction)


# -- tables


def table(root: Path, text: str, name: str = "train.csv", encoding: str = "utf-8") -> Path:
    (root / name).write_text(text, encoding=encoding)
    return root


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("id,label\n0.jpg,b\n1.jpg,a\n2.jpg,b\n", "utf-8"),
        ("Label;Image_ID\nb;0\na;1\nb;2\n", "utf-8-sig"),
        ('width,filename,class\r\n3,"0.jpg",b\r\n3,./1.jpg,a\r\n3,2,b\r\n', "utf-8"),
        ("path\tcategory\n0.jpg\tb\n\n1.jpg\ta\n2\tb\n", "utf-8"),
    ],
)
def test_tables_of_labels(tmp_path: Path, text: str, encoding: str) -> None:
    table(images(tmp_path, "images"), text, encoding=encoding)
    with pytest.raises(
        InputError, match=r"validation_fraction=0\.2.* For labels from train\.csv set data\.options\.labels=train\.csv"
    ):
        find(tmp_path)
    with pytest.raises(InputError, match=r"validation_fraction=0\.2, or data\.options\.validation_labels"):
        find(tmp_path, labels="train.csv")
    found = find(tmp_path, labels="train.csv", validation_fraction=0.5)
    assert found.train is not None
    both = dict(
        zip(found.train.paths + found.validation.paths, found.train.names + found.validation.names, strict=True)
    )
    assert both == {tmp_path / f"images/{number}.jpg": label for number, label in enumerate("bab")}
    assert found.train.classes == ("a", "b")


def test_a_column_of_splits(tmp_path: Path) -> None:
    rows = ["filename,label,split", *(f"a/{n},{n},{s}" for n, s in enumerate(("Train", "Train", "valid", "spare")))]
    table(images(tmp_path, "a", count=4), "\n".join(rows))
    found = find(tmp_path, labels="train.csv")
    assert found.train is not None
    assert (len(found.train.paths), found.validation.paths) == (2, (tmp_path / "a/2.jpg",))
    assert any("not used: spare" in note for note in found.notes)
    with pytest.raises(InputError, match=r"never says 'tset': it has Train, valid, spare"):
        find(tmp_path, labels="train.csv", validation_split="tset")
    with pytest.raises(InputError, match=r"'split' and data\.options\.validation_fraction both"):
        find(tmp_path, labels="train.csv", validation_fraction=0.2)


def test_two_tables_and_columns_by_name(tmp_path: Path) -> None:
    images(tmp_path, "photos", count=12)
    table(tmp_path, "name,kind\n" + "\n".join(f"{n},{n}" for n in range(12)))
    table(tmp_path, "name,kind\n3,10\n", "held.csv")
    options = {"labels": "train.csv", "images": "photos", "image_column": "NAME", "label_column": "kind"}
    found = find(tmp_path, **options, validation_labels="held.csv")
    assert found.train is not None
    assert found.train.classes == tuple(str(number) for number in range(12))  # by value
    assert found.validation.names == ("10",)
    with pytest.raises(InputError, match=r"no column 'kin': set data\.options\.label_column.*Did you mean 'kind'"):
        find(tmp_path, **{**options, "label_column": "kin"})
    with pytest.raises(InputError, match=r"is the training table"):
        find(tmp_path, **options, validation_labels="./train.csv")
    with pytest.raises(InputError, match=r"images=pictures: there is no folder"):
        find(tmp_path, **{**options, "images": "pictures"})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0.jpg,a\n9.jpg,a", r"line 3: there is no image '9\.jpg'"),
        ("0.jpg,a\n1.jpg,b\n0,b", r"line 4: 0\.jpg is 'b', but line 2 says 'a'"),
        ("0.jpg,\n", r"line 2: the column 'label' is empty"),
        (",a\n", r"line 2: the column 'id' is empty"),
        ("../secret.jpg,a", r"line 2: '\.\./secret\.jpg' is no path below"),
        ("images/../../secret.jpg,a", r"line 2: .* is no path below"),
        ("/etc/passwd,a", r"line 2: '/etc/passwd' is no path below"),
        ("C:\\\\pictures\\\\0.jpg,a", r"line 2: .* is no path below"),
        ("0.jpg,a,b", r"line 2: expected 2 values"),
        ("0.jpg", r"line 2: expected 2 values"),
        ("twin,a", r"line 2: 'twin' could be twin\.jpg, twin\.png: write its ending"),
        ('"0.jpg,a', r"line 2: "),
        ("", r"no rows below its column names"),
    ],
)
def test_rows_that_cannot_be_meant(tmp_path: Path, rows: str, message: str) -> None:
    root = images(tmp_path / "root", "images")
    (tmp_path / "secret.jpg").touch()
    for ending in ("jpg", "png"):
        (root / f"images/twin.{ending}").touch()
    with pytest.raises(InputError, match=message):
        find(table(root, f"id,label\n{rows}\n"), labels="train.csv", validation_fraction=0.5)


def test_flat_images_beside_a_table(tmp_path: Path) -> None:
    images(tmp_path, ".")
    with pytest.raises(InputError, match=r"train does not exist.* data\.options\.labels=train\.csv"):
        find(table(tmp_path, "id,label\n0,a\n"))


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    images(tmp_path, "images")
    with pytest.raises(InputError, match=r"none\.csv cannot be read"):
        find(tmp_path, labels="none.csv")
    with pytest.raises(InputError, match=r"train\.csv is no UTF-8 text"):
        find(table(tmp_path, "id,label\n0,café\n", encoding="latin-1"), labels="train.csv")
    with pytest.raises(InputError, match=r"has none of the columns image, .*image_column to one of 0\.jpg, a"):
        find(table(tmp_path, "0.jpg,a\n1.jpg,b\n"), labels="train.csv")
    with pytest.raises(InputError, match=r"data\.options\.labels=3: expected text"):
        find(tmp_path, labels=3)


def test_repeated_rows_count_once_and_windows_paths(tmp_path: Path) -> None:
    text = "id,label\nimages\\0.jpg,a\nimages/0.jpg,a\nimages\\1.jpg,b\n2,b\n"
    found = find(table(images(tmp_path, "images"), text), labels="train.csv", validation_fraction=0.5)
    assert any("1 images more than once" in note for note in found.notes)


@pytest.mark.parametrize("other", ["link.jpg", "linked/0.jpg"])
def test_a_picture_and_a_link_to_it_are_one(tmp_path: Path, other: str) -> None:
    root = images(tmp_path, "images")
    (root / "images/link.jpg").symlink_to(root / "images/0.jpg")
    (root / "images/linked").symlink_to(root / "images")
    found = find(table(root, f"id,label\n0,a\n{other},a\n1,b\n2,b\n"), labels="train.csv", validation_fraction=0.5)
    assert any("1 images more than once" in note for note in found.notes)
    with pytest.raises(
        InputError, match=rf"line 3: {Path(other).name} is 'b', but line 2 says of 0.jpg, the same .* 'a'\."
    ):
        find(table(root, f"id,label\n0,a\n{other},b\n1,b\n"), labels="train.csv", validation_fraction=0.5)


def test_several_usual_columns(tmp_path: Path) -> None:
    options = {"labels": "train.csv", "validation_fraction": 0.5}
    table(images(tmp_path, "images"), "path,ID,label\n0,7,a\n1,8,a\n")
    (note,) = (note for note in find(tmp_path, **options).notes if "could be" in note)
    assert "could be the images, path, ID: 'path' is used; data.options.image_column" in note
    assert not any("could be" in note for note in find(tmp_path, **options, image_column="path").notes)
    table(tmp_path, "path,Class,label\n0,a,1\n1,b,2\n")
    with pytest.raises(InputError, match=r"could be the labels, label, Class: set data\.options\.label_column"):
        find(tmp_path, **options)
    found = find(tmp_path, **options, label_column="class").train
    assert found is not None
    assert found.classes == ("a", "b")
    with pytest.raises(InputError, match=r"names the column 'Label' twice"):
        find(table(tmp_path, "path,Label,label\n0,a,1\n"), **options)


@pytest.mark.parametrize("stray", ["picture", "pipe", "folder"])
def test_what_lies_beside_the_class_folders_changes_no_split(stray: str, tmp_path: Path) -> None:
    first = "a.jpg" if stray == "folder" else "a"  # a class may be called like a picture
    images(tmp_path, *(f"{split}/{name}" for split in ("train", "val") for name in (first, "b")))
    for split in ("train", "val"):
        if stray == "picture":
            (tmp_path / split / "cover.jpg").touch()
        elif stray == "pipe":
            os.mkfifo(tmp_path / split / "cover.jpg")
    assert set(check_folder(str(tmp_path)).splits) == {"train", "validation"}
    shutil.rmtree(tmp_path / "val")
    found = find(tmp_path, validation_fraction=0.4)
    assert found.train is not None
    assert found.train.classes == (first, "b")
