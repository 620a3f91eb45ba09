from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IterableImageDataset
from torch.utils.data import DataLoader

from dynavit.data import sources
from dynavit.data.classification import (
    ClassificationData,
    Samples,
    StreamSamples,
    collate,
    create_classification_data,
)
from dynavit.data.quickstart import ClutteredDigits
from dynavit.data.transforms import create_transforms
from dynavit.errors import InputError

TRANSFORMS = create_transforms(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
GREEN = {"cat": (0, 50, 0), "dog": (0, 100, 0), "eel": (0, 150, 0)}


def create(name: str, root: Path | None = None, **options: Any) -> ClassificationData:
    options.setdefault("transforms", TRANSFORMS)
    return create_classification_data(name, None if root is None else str(root), **options)


def write(root: Path, split: str, classes: Sequence[str] = ("cat", "dog"), images: int = 2) -> None:
    """Write images whose green tells the class."""
    for name in classes:
        folder = root / split / name
        folder.mkdir(parents=True)
        for number in range(images):
            Image.new("RGB", (6, 6), GREEN[name]).save(folder / f"{number}.png")


def colours(samples: Any) -> list[tuple[int, int]]:
    """Return green of the first pixel and label of every sample."""
    return [(round(float(image[1, 0, 0]) * 255), label) for image, label, _ in samples]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    write(tmp_path, "train")
    write(tmp_path, "val", images=1)
    return tmp_path


# -- quickstart


def test_quickstart():
    options = {"train_size": 12, "validation_size": 5, "fragments": 0}
    transforms = create_transforms(64, (0.0,) * 3, (1.0,) * 3)
    data = create("quickstart", transforms=transforms, seed=4, options=options)
    assert (len(data.train), len(data.validation)) == (12, 5)
    assert data.class_names == tuple("0123456789")
    expected = ClutteredDigits(train=True, size=12, fragments=0, seed=4)
    expected.set_epoch(3)
    data.train.set_epoch(3)
    canvas, mask, label = expected.draw(7)
    image, found, index = data.train[7]
    torch.testing.assert_close(image, torch.from_numpy(canvas).permute(2, 0, 1) / 255)
    assert (found, index) == (label, 7)
    np.testing.assert_array_equal(data.train.foreground(7), mask)
    validation = ClutteredDigits(train=False, size=5, fragments=0, seed=4)
    np.testing.assert_array_equal(data.validation.foreground(2), validation.foreground(2))


def test_quickstart_is_the_same_with_any_number_of_workers():
    augmentation = {"random_erasing": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1"}
    transforms = create_transforms(64, (0.5,) * 3, (0.5,) * 3, augmentation=augmentation)
    data = create("quickstart", transforms=transforms, options={"train_size": 8, "validation_size": 2})

    def epoch(number: int, workers: int) -> torch.Tensor:
        data.train.set_epoch(number)
        loader = DataLoader(data.train, batch_size=2, num_workers=workers, collate_fn=collate)
        return torch.cat([images for images, _, _ in loader])

    torch.manual_seed(1)
    first = epoch(1, 0)
    assert torch.equal(first, epoch(1, 2))
    assert not torch.equal(first, epoch(2, 0))
    assert torch.equal(first, epoch(1, 1))


def test_quickstart_options():
    with pytest.raises(InputError, match=r"data\.options\.fragment\. Did you mean 'fragments'"):
        create("quickstart", options={"fragment": 3})
    with pytest.raises(InputError, match=r"data\.options\.train_size must be at least 1, got 0"):
        create("quickstart", options={"train_size": 0})


# -- folders


def test_folder(pets: Path):
    data = create("folder", pets)
    assert isinstance(data.train, Samples)
    assert colours(data.train) == [(50, 0), (50, 0), (100, 1), (100, 1)]
    assert colours(data.validation) == [(50, 0), (100, 1)]
    assert data.class_names == ("cat", "dog")
    assert not hasattr(data.train, "foreground")


def test_folder_keeps_colours_that_plain_conversion_would_not(pets: Path):
    grey = np.full((6, 6), 100 * 257, dtype=np.uint16)
    Image.fromarray(grey).save(pets / "train/cat/0.png")
    Image.new("RGBA", (6, 6), (0, 0, 0, 0)).save(pets / "train/cat/1.png")
    assert colours(create("folder", pets).train)[:2] == [(100, 0), (255, 0)]


@pytest.mark.parametrize("name", ["folder", "ImageFolder/", "torchvision/Country211"])
def test_every_source_reads_pictures_alike(name: str, tmp_path: Path):
    root = tmp_path / "country211" if "torchvision" in name else tmp_path
    for split in ("train", "valid"):
        write(root, split, ("cat",), images=1)
    folder = root / "train/cat"
    lying = Image.new("RGB", (6, 6), (0, 50, 0))
    lying.paste((0, 200, 0), (0, 0, 6, 3))  # the upper half, which the tag turns to the right
    exif = Image.Exif()
    exif[274] = 6
    lying.save(folder / "1.png", exif=exif)
    Image.fromarray(np.linspace(0, 1, 36, dtype=np.float32).reshape(6, 6)).save(folder / "2.png", "TIFF")
    Image.fromarray(np.array([[0, 65535]] * 6, dtype=np.uint16)).save(folder / "3.png", "TIFF")
    data = create(name, tmp_path, validation_split="valid").train
    assert data[1][0][1, :, 0].allclose(torch.tensor(50 / 255), atol=0.02)
    assert data[1][0][1, :, -1].allclose(torch.tensor(200 / 255), atol=0.02)
    with pytest.raises(InputError, match=r"2\.png cannot be read: .*mode F\) go from 0 to 1,.*data\.corrupt=skip"):
        data[2]
    assert data[3][0].min() < 0.3
    assert data[3][0].max() > 0.7
    skipping = create(name, tmp_path, validation_split="valid", corrupt="skip").train
    with pytest.warns(UserWarning, match=r"2\.png is skipped, .*mode F"):
        assert skipping[2][2] == 3


def test_train_and_validation_have_their_own_transforms(pets: Path):
    black = create_transforms(4, (1.0,) * 3, (1.0,) * 3)[1]
    data = create("folder", pets, transforms=(black, TRANSFORMS[1]))
    assert data.train[0][0].max() < 0
    assert data.validation[0][0].max() > 0


def test_splits_by_name_and_without_training(tmp_path: Path):
    write(tmp_path, "fit", ("cat",))
    write(tmp_path, "check", ("cat",), images=3)
    data = create("folder", tmp_path, train_split="fit", validation_split="check")
    assert (len(data.train), len(data.validation)) == (2, 3)
    alone = create("folder", tmp_path, train_split=None, validation_split="check")
    assert alone.train is None
    assert (len(alone.validation), alone.class_names) == (3, ("cat",))


def test_corrupt_files_of_a_folder(pets: Path):
    (pets / "train/dog/0.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"dog.0\.png cannot be read"):
        create("folder", pets).train[2]
    data = create("folder", pets, corrupt="skip")
    with pytest.warns(UserWarning, match=r"dog.0\.png is skipped"):
        batches = list(DataLoader(data.train, batch_size=4, collate_fn=collate))
    assert batches[0][2].tolist() == [0, 1, 3, 3]  # the next readable image stands in


@pytest.mark.parametrize("root", [None, ""])
@pytest.mark.parametrize("name", ["folder", "torchvision/CIFAR10", "ImageFolder/"])
def test_no_root_is_not_the_folder_of_the_command(name: str, root: str | None):
    with pytest.raises(InputError, match=rf"data\.root is empty, but data\.name={name} needs data\.root=FOLDER; "):
        create_classification_data(name, root, transforms=TRANSFORMS)


def test_missing_folders(tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.root=.*nowhere does not exist.*ROOT/SPLIT/CLASS"):
        create("folder", tmp_path / "nowhere")
    for key in ("train_split", "validation_split"):
        with pytest.raises(InputError, match=rf"data\.{key} is empty"):
            create("folder", tmp_path, **{key: ""})
    write(tmp_path, "train")
    with pytest.raises(InputError, match=r"val does not exist.*validation_fraction=0\.2.*Found: train\.") as caught:
        create("folder", tmp_path)
    assert "There is" not in str(caught.value)
    write(tmp_path, "test")
    with pytest.raises(InputError, match=r"There is 'test': set data\.validation_split=test\."):
        create("folder", tmp_path, validation_split="tset")
    with pytest.raises(InputError, match=r"trian does not exist.*There is 'train': set data\.train_split=train"):
        create("folder", tmp_path, train_split="trian", validation_split="test")


def test_a_root_that_is_no_folder_of_splits(tmp_path: Path):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"photos\.zip is a file, not a folder; unpack it first"):
        create("folder", tmp_path / "photos.zip")
    (tmp_path / "photos.txt").touch()
    with pytest.raises(InputError, match=r"photos\.txt is a file, not a folder; expected ROOT/SPLIT"):
        create("folder", tmp_path / "photos.txt")
    write(tmp_path, "unpacked/Pets/train")
    with pytest.raises(InputError, match=r"There are splits in .*Pets: set data\.root=.*unpacked/Pets"):
        create("folder", tmp_path / "unpacked")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/train does not exist.*Found: none"):
        create("folder", tmp_path / "empty")


def test_folders_without_images(pets: Path):
    (pets / "train/eel").mkdir()
    (pets / "train/eel/notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"no images in .*train.eel;"):
        create("folder", pets)
    (pets / "flat").mkdir()
    Image.new("RGB", (4, 4)).save(pets / "flat/0.png")
    with pytest.raises(InputError, match=r"flat has no class folders.*holds 1 images"):
        create("folder", pets, validation_split="flat", train_split=None)


def test_options_of_folders(pets: Path):
    with pytest.raises(InputError, match=r"folder has no data\.options\.size.* Its options: validation_fraction"):
        create("folder", pets, options={"size": 3})
    with pytest.raises(InputError, match=r"image_column=x does nothing without data\.options\.labels"):
        create("folder", pets, options={"image_column": "x"})


# -- torchvision


def write_mnist(root: Path, name: str = "MNIST") -> None:
    """Write data in MNIST's format: training images are grey 40 and 41, test images grey 90."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for prefix, levels, labels in (("train", [40, 41], [3, 9]), ("t10k", [90], [7])):
        images = np.repeat(np.array(levels, dtype=np.uint8), 28 * 28).tobytes()
        header = struct.pack(">4i", 2051, len(levels), 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(labels)) + bytes(labels))


@pytest.mark.parametrize("name", ["torchvision/MNIST", "torchvision/mnist"])
def test_torchvision_with_a_train_argument(name: str, tmp_path: Path):
    write_mnist(tmp_path)
    data = create(name, tmp_path)
    assert colours(data.train) == [(40, 3), (41, 9)]
    assert colours(data.validation) == [(90, 7)]
    assert data.class_names[7] == "7 - seven"


def test_torchvision_with_a_split_argument(tmp_path: Path):
    write(tmp_path, "country211/train")
    write(tmp_path, "country211/valid", images=1)
    data = create("torchvision/Country211", tmp_path, validation_split="valid")
    assert colours(data.train) == [(50, 0), (50, 0), (100, 1), (100, 1)]
    assert colours(data.validation) == [(50, 0), (100, 1)]
    assert data.class_names == ("cat", "dog")
    with pytest.raises(InputError, match=r"'val'.*\{'train', 'valid', 'test'\}.* Set data\.validation_split"):
        create("torchvision/Country211", tmp_path)


def test_torchvision_arguments_of_a_base_class(tmp_path: Path):
    with pytest.raises(InputError, match=r"torchvision/EMNIST needs data\.options\.split\."):
        create("torchvision/EMNIST", tmp_path)
    with pytest.raises(InputError, match=r"Set data\.download=true"):  # found train= and download= in MNIST
        create("torchvision/EMNIST", tmp_path, options={"split": "letters"})


def test_torchvision_without_its_files(tmp_path: Path):
    with pytest.raises(InputError, match=r"torchvision/CIFAR10 cannot be opened.*Set data\.download=true"):
        create("torchvision/CIFAR10", tmp_path)


def test_download_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.download", lambda self: write_mnist_once(Path(self.root)))

    def write_mnist_once(root: Path) -> None:
        if not (root / "MNIST").exists():
            write_mnist(root)

    assert len(create("torchvision/MNIST", tmp_path, download=True).train) == 2


def test_unknown_torchvision_names_and_options(tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.name=torchvision/CIFAR11: .* no such data set\. Did you mean 'CIFAR1"):
        create("torchvision/CIFAR11", tmp_path)
    with pytest.raises(InputError, match=r"no data\.options\.fold\. Did you mean 'folds'"):
        create("torchvision/STL10", tmp_path, options={"fold": 1})
    with pytest.raises(InputError, match=r"no data\.options\.train\."):  # that is what the splits are for
        create("torchvision/MNIST", tmp_path, options={"train": True})


def test_torchvision_without_splits_is_not_validated_on_its_training_images():
    options = {"size": 3, "image_size": (3, 8, 8), "num_classes": 4}
    with pytest.raises(InputError, match="FakeData has no training and validation split"):
        create("torchvision/FakeData", options=options)
    data = create("torchvision/FakeData", options=options, train_split=None)
    assert (len(data.validation), data.class_names) == (3, ("0", "1", "2", "3"))
    assert torch.equal(data.validation[1][0], data.validation[1][0])


def test_classes_are_numbered_where_they_have_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_mnist(tmp_path)
    monkeypatch.setattr("torchvision.datasets.MNIST.classes", None)
    monkeypatch.setattr("torchvision.datasets.MNIST.class_to_idx", None)
    assert create("torchvision/MNIST", tmp_path).class_names == tuple("0123456789")  # largest label: 9
    several = create("torchvision/MNIST", tmp_path, options={"num_classes": 12})
    assert several.class_names == tuple(str(label) for label in range(12))


# -- timm


def test_timm_folder(pets: Path):
    data = create("ImageFolder/", pets)
    assert isinstance(data.train, Samples)
    assert colours(data.train) == [(50, 0), (50, 0), (100, 1), (100, 1)]
    assert colours(data.validation) == [(50, 0), (100, 1)]
    assert data.class_names == ("cat", "dog")


def test_timm_images_are_not_replaced_by_their_neighbours(pets: Path):
    Image.fromarray(np.full((6, 6), 100 * 257, dtype=np.uint16)).save(pets / "train/cat/0.png")
    (pets / "train/cat/1.png").write_bytes(b"broken")
    (pets / "train/dog/0.png").unlink()
    write(pets, "more", ("eel",))
    data = create("ImageFolder/", pets)
    assert len(data.train) == 3
    assert colours([data.train[0], data.train[2]]) == [(100, 0), (100, 1)]
    with pytest.raises(InputError, match=r"train.cat.1\.png cannot be read"):
        data.train[1]
    with pytest.warns(UserWarning, match=r"cat.1\.png is skipped"):
        assert create("ImageFolder/", pets, corrupt="skip").train[1][2] == 2


def test_timm_splits_that_are_the_same_images(pets: Path):
    with pytest.raises(InputError, match="would both read all of"):
        create("ImageFolder/", pets, train_split="a", validation_split="b")
    with pytest.raises(InputError, match="would both read all of"):
        create("torch/folder", pets, train_split="a", validation_split="b")
    assert colours(create("torch/folder", pets).validation) == [(50, 0), (100, 1)]


def test_timm_tar_files(pets: Path):
    for split in ("train", "val"):
        with tarfile.open(pets / f"{split}.tar", "w") as tar:
            tar.add(pets / split, arcname=".")
    data = create("ImageFolder/", pets / "train.tar", train_split=None)
    assert colours(data.validation) == [(50, 0), (50, 0), (100, 1), (100, 1)]
    assert data.class_names == ("cat", "dog")
    with pytest.raises(InputError, match="would both read all of"):
        create("ImageFolder/", pets / "train.tar")


def test_timm_splits_with_other_classes(tmp_path: Path):
    write(tmp_path, "train", ("cat", "dog"))
    write(tmp_path, "val", ("cat",))
    with pytest.raises(InputError, match="only in the training split: dog; only in the validation split: none"):
        create("ImageFolder/", tmp_path)


def test_what_timm_cannot_open(tmp_path: Path):
    with pytest.raises(InputError, match=r"data.name=torch/cifar10: timm cannot open it, split 'train'"):
        create("torch/cifar10", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="Found 0 images"):
        create("ImageFolder/", tmp_path)
    with pytest.raises(InputError, match="unexpected keyword"):
        create("ImageFolder/", tmp_path, options={"colour": "blue"})


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch):
    def missing(*args: Any, **options: Any) -> None:
        raise ModuleNotFoundError("No module named 'datasets'")

    monkeypatch.setattr(sources, "create_dataset", missing)
    with pytest.raises(InputError, match="hfds/beans needs another package: No module named 'datasets'"):
        create("hfds/beans")


class Reader:
    def __init__(self, train: bool) -> None:
        self.train = train

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        for label in (0, 1, 1):
            yield Image.new("L", (6, 6), 20 * label + self.train), label


def test_timm_streams(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def stream(name: str, root: str | None, **options: Any) -> IterableImageDataset:
        asked.append((name, root, options["split"], options["is_training"], options["seed"], options["key"]))
        assert "num_classes" not in options
        return IterableImageDataset(root=root, reader=Reader(options["is_training"]))

    monkeypatch.setattr(sources, "create_dataset", stream)
    options = {"key": "jpg", "num_classes": 3}
    data = create("wds/birds", Path("there"), validation_split="held-out", seed=5, options=options)
    assert asked == [
        ("wds/birds", "there", "train", True, 5, "jpg"),
        ("wds/birds", "there", "held-out", False, 5, "jpg"),
    ]
    assert isinstance(data.train, StreamSamples)
    assert isinstance(data.validation, StreamSamples)
    assert colours(data.train) == [(1, 0), (21, 1), (21, 1)]
    assert colours(data.validation) == [(0, 0), (20, 1), (20, 1)]
    assert data.class_names == ("0", "1", "2")
    with pytest.raises(InputError, match=r"wds/birds does not say .*data\.options\.num_classes"):
        create("wds/birds", Path("there"), options={"key": "jpg"})


# -- any


def test_unknown_names():
    with pytest.raises(InputError, match=r"unknown data set 'folders'\. Did you mean 'folder'\?"):
        create("folders")


def test_negative_seeds_are_refused():
    with pytest.raises(InputError, match="seed must not be negative"):
        create("quickstart", seed=-1)
