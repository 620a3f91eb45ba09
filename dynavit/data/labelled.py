"""Image files with the names of their classes."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from dynavit.data.files import describe_skipped, find_images, is_hidden
from dynavit.data.pictures import open_picture
from dynavit.data.sources import LAYOUT
from dynavit.errors import InputError, did_you_mean
from dynavit.text import listed, printable

NO_CLASS = "in no class folder"


@dataclass(frozen=True)
class LabelledFiles:
    """Image files, and what they show; no file is opened.

    Attributes:
        source: the folder or table that tells.
        paths: of the images.
        names: of each image's class.
        classes: names of all classes, in the order of the labels.
        empty: names of class folders without images.
        notes: what was passed over, one line each.
    """

    source: Path
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    empty: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ImageFiles(Dataset[tuple[Image.Image, int]]):
    """The images of labelled files, as they are, with the numbers of their classes.

    Args:
        files: the images.
        classes: their names, in the order of the numbers.
    """

    def __init__(self, files: LabelledFiles, classes: Sequence[str]) -> None:
        self.files = files
        numbers = {name: number for number, name in enumerate(classes)}
        self.labels = [numbers[name] for name in files.names]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return open_picture(self.files.paths[index]), self.labels[index]

    def path(self, index: int) -> str:
        """Return the file of an image."""
        return str(self.files.paths[index])


def visible_folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, without those that are hidden or of the operating system.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}.") from None


def read_class_folders(folder: Path) -> LabelledFiles:
    """Find the images below the class folders of a folder; those of classes are sorted by name.

    Every folder that is not hidden is a class, also one that is a symbolic link. Links back to what was found already
    are passed over.

    Raises:
        InputError: there is no class folder, or one cannot be read.
    """
    found = find_images(folder)
    passed_over = {name for names in found.skipped.values() for name in names}
    known = [name for name in visible_folders(folder) if name not in passed_over]
    skipped = dict(found.skipped)
    paths, names, stray = [], [], []
    for path in found.paths:
        first, *rest = path.relative_to(folder).parts
        if rest:
            paths.append(path)
            names.append(first)
        else:
            stray.append(first)
    if not known:
        here = f" It holds {len(stray):,} images, which belong in folders of their classes." if stray else ""
        raise InputError(f"{folder} has no class folders; {LAYOUT}.{here}")
    if stray:
        skipped[NO_CLASS] = stray
    return LabelledFiles(
        folder,
        tuple(paths),
        tuple(names),
        classes=tuple(sorted(set(names))),
        empty=tuple(name for name in known if name not in set(names)),
        notes=(f"Skipped in {printable(str(folder))}: {printable(describe_skipped(skipped))}.",) if skipped else (),
    )


def split_off(files: LabelledFiles, fraction: float, seed: int) -> tuple[LabelledFiles, LabelledFiles]:
    """Divide files into training and validation, each class for itself.

    Whatever has two images or more gets one for validation at least, and keeps one for training. Which ones depends
    on the seed and on the files' names below the source, so it is the same on every machine and in every run; where
    files are added, a few others may change sides.

    Args:
        files: all of them.
        fraction: of each class that goes to validation, in (0, 1).
        seed: another one chooses others.
    """
    by_class: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(files.names):
        by_class[name].append(index)
    base = files.source if files.source.is_dir() else files.source.parent
    held_out: set[int] = set()
    for indices in by_class.values():
        # the order of digests is random, and what is added does not disturb it
        shuffled = sorted(indices, key=lambda index: _digest(files.paths[index], base, seed))
        wanted = max(1, round(fraction * len(indices)))
        held_out.update(shuffled[: min(wanted, len(indices) - 1)])
    train, validation = (
        replace(
            files,
            paths=tuple(path for index, path in enumerate(files.paths) if (index in held_out) == kept),
            names=tuple(name for index, name in enumerate(files.names) if (index in held_out) == kept),
        )
        for kept in (False, True)
    )
    return train, replace(validation, empty=(), notes=())


def common_classes(
    train: LabelledFiles | None, validation: LabelledFiles, known: Sequence[str] | None = None
) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes of two splits in the order of the labels, and notes about those without images.

    Validation may lack some of the training classes.

    Args:
        train: None where only validation is wanted.
        validation: the other split.
        known: the classes of a model, which both splits are then labelled by.

    Raises:
        InputError: a split has a class that it should not have, a training class has no images, or validation has
            none at all.
    """
    if train is not None and train.empty:
        empty = listed(train.source / name for name in train.empty)
        raise InputError(f"no images in {empty}; {LAYOUT}. Fill or remove such folders.")
    if not validation.names:
        alone = " Where classes have one image each, none can be held out." if train is not None else ""
        raise InputError(f"{validation.source} holds no images to validate on; {LAYOUT}.{alone}")
    classes = tuple(known or (train or validation).classes)
    owner = "the model" if known or train is None else str(train.source)
    for files in filter(None, (train, validation)):
        unknown = sorted({*files.names} - {*classes})
        if unknown:
            raise InputError(
                f"the classes differ: {files.source} has images of {listed(unknown)}, which {owner} does not know; it "
                f"knows {listed(classes)}.{did_you_mean(unknown[0], classes)} Rename or remove such classes."
            )
    notes = []
    if lacking := [name for name in classes if name not in set(validation.names)]:
        notes.append(
            f"{validation.source} has no images of {len(lacking):,} of the {len(classes):,} classes: {listed(lacking)}."
        )
    if strange := [name for name in validation.empty if name not in classes]:
        notes.append(f"{validation.source} has empty folders that are no classes of {owner}: {listed(strange)}.")
    return classes, notes


def require_two(classes: Sequence[str]) -> None:
    """Refuse to train on fewer than two classes.

    Raises:
        InputError: there are fewer.
    """
    if len(classes) < 2:
        raise InputError(
            f"the data have one class only ({listed(classes)}): there is nothing to tell apart. Is data.root the "
            f"folder above it?"
        )


def _digest(path: Path, base: Path, seed: int) -> bytes:
    return hashlib.sha256(b"%d/" % seed + os.fsencode(Path(os.path.relpath(path, base)).as_posix())).digest()
