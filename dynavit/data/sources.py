"""Finding and opening data sets of labelled images by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision.datasets
from PIL import Image
from timm.data.dataset import ImageDataset
from timm.data.dataset_factory import create_dataset
from torch.utils.data import Dataset
from torchvision.datasets import VisionDataset

from dynavit.data.pictures import open_picture
from dynavit.data.quickstart import ClutteredDigits
from dynavit.errors import InputError, did_you_mean

LAYOUT = "expected ROOT/SPLIT/CLASS/*.jpg (or .png, .webp, ...)"


@dataclass(frozen=True)
class Request:
    """One split of one data set."""

    name: str
    root: str | None
    split: str
    train: bool
    seed: int
    download: bool
    options: Mapping[str, Any]


def open_split(request: Request) -> Dataset[Any]:
    """Return the data set of ``(PIL image, label)``; an IterableDataset where it can only be streamed.

    Raises:
        InputError: unknown name or option, or files that are missing or not laid out as expected.
    """
    if request.name == "quickstart":
        return _open_quickstart(request)
    if request.name.startswith("torchvision/"):
        return _open_torchvision(request)
    if "/" in request.name:
        return _open_timm(request)
    raise InputError(
        f"unknown data set {request.name!r}.{did_you_mean(request.name, ('quickstart', 'folder'))} "
        f"data.name is quickstart, folder, torchvision/NAME, or a name of timm such as hfds/NAME."
    )


def _open_quickstart(request: Request) -> Dataset[Any]:
    check_options(request.name, request.options, ("fragments", "train_size", "validation_size"))
    options = request.options
    key = "train_size" if request.train else "validation_size"
    size = options.get(key)
    if size is not None and size < 1:
        raise InputError(f"data.options.{key} must be at least 1, got {size}.")
    return ClutteredDigits(request.train, size, options.get("fragments", 6), request.seed)


def _open_torchvision(request: Request) -> Dataset[Any]:
    cls = _torchvision_class(request.name)
    arguments = _arguments(cls)
    if "train" in arguments:
        values: dict[str, Any] = {"train": request.train}
    elif "split" in arguments:
        values = {"split": request.split}
    elif request.train:
        raise InputError(
            f"{request.name} has no training and validation split, so it could only be validated on what "
            f"it was trained on; put its images in folders and use data.name=folder."
        )
    else:
        values = {}
    if "root" in arguments:
        values["root"] = given_root(request.name, request.root, "the folder of its files")
    if "download" in arguments:
        values["download"] = request.download
    if "loader" in arguments:
        values["loader"] = open_picture  # as it is: Samples knows how many channels the model takes
    reserved = {*values, "root", "transform", "target_transform", "transforms", "loader"}
    check_options(request.name, request.options, [*(name for name in arguments if name not in reserved), "num_classes"])
    values.update((key, value) for key, value in request.options.items() if key in arguments)
    if missing := [name for name, needed in arguments.items() if needed and name not in values]:
        raise InputError(f"{request.name} needs {', '.join(f'data.options.{name}' for name in missing)}.")
    try:
        dataset: Dataset[Any] = cls(**values)
    except Exception as error:  # their answers to missing files and wrong arguments have no common type
        hint = ""
        if values.get("download") is False and isinstance(error, RuntimeError | OSError):
            hint = f" Set data.download=true to fetch it into {request.root}."
        elif "split" in values and isinstance(error, ValueError):
            hint = f" Set data.{_split_key(request)}."
        raise InputError(f"{request.name} cannot be opened: {_line(error)}{hint}") from error
    return dataset


def _torchvision_class(name: str) -> Any:
    known = {
        name.lower(): cls
        for name in torchvision.datasets.__all__
        if inspect.isclass(cls := getattr(torchvision.datasets, name)) and issubclass(cls, VisionDataset)
    }
    wanted = name.partition("/")[2].lower()
    if wanted not in known:
        nearest = did_you_mean(name.partition("/")[2], [cls.__name__ for cls in known.values()])
        raise InputError(
            f"data.name={name}: torchvision has no such data set.{nearest} "
            f"They are listed at https://docs.pytorch.org/vision/stable/datasets.html."
        )
    return known[wanted]


def _arguments(cls: type) -> dict[str, bool]:
    """Return a constructor's arguments, also those it hands on to its base; whether they are needed."""
    found: dict[str, bool] = {}
    for base in cls.__mro__:
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(parameter.name, parameter.default is parameter.empty)
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _open_timm(request: Request) -> Dataset[Any]:
    kind = request.name.partition("/")[0].lower()
    reads_files = kind not in ("hfds", "hfids", "tfds", "wds", "torch")
    if reads_files and not Path(given_root(request.name, request.root, "where timm reads images")).exists():
        raise InputError(f"{request.name}: data.root={request.root} does not exist; timm reads images there.")
    options = {key: value for key, value in request.options.items() if key != "num_classes"}
    try:
        dataset: Any = create_dataset(
            request.name,
            request.root,
            split=request.split,
            is_training=request.train,
            download=request.download,
            seed=request.seed,
            input_img_mode="RGB" if kind == "tfds" else "",  # "": as it is, Samples converts better
            **options,
        )
    except ImportError as error:
        raise InputError(f"data.name={request.name} needs another package: {error}. Install it with pip.") from error
    except Exception as error:  # timm's readers and what they call have no common type either
        raise InputError(
            f"data.name={request.name}: timm cannot open it, split {request.split!r}: {_line(error)}"
        ) from error
    return _ReaderImages(dataset.reader) if isinstance(dataset, ImageDataset) else dataset


class _ReaderImages(Dataset[tuple[Image.Image, Any]]):
    """The images of a timm reader as they are.

    timm's own ImageDataset puts the next image in the place of one that it cannot read, and converts
    to RGB by clipping 16 bits.
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        file, label, *_ = self.reader[index]
        with file:
            return open_picture(file), label

    def path(self, index: int) -> str | None:
        """Return the file of an image where the reader knows it."""
        path: str | None = self.reader.filename(index, absolute=True)
        return path


def given_root(name: str, root: str | None, expected: str) -> str:
    """Return the folder of a data set; empty text would be whatever folder a command is run in.

    Raises:
        InputError: there is none.
    """
    if not root:
        raise InputError(f"data.root is empty, but data.name={name} needs data.root=FOLDER; {expected}.")
    return root


def _split_key(request: Request) -> str:
    return "train_split" if request.train else "validation_split"


def check_options(name: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse options that a data set does not have.

    Raises:
        InputError: naming the nearest one, and all.
    """
    known = list(known)
    for key in options:
        if key not in known:
            its = ", ".join(known) or "none"
            raise InputError(f"{name} has no data.options.{key}.{did_you_mean(key, known)} Its options: {its}.")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)
