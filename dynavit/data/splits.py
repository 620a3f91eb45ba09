"""Which files are for training and which for validation: by folder, by a table, or divided here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynavit.data.files import image_endings, is_hidden
from dynavit.data.labelled import LabelledFiles, read_class_folders, split_off, visible_folders
from dynavit.data.sources import LAYOUT, check_options, given_root
from dynavit.data.tables import Table, read_table
from dynavit.errors import InputError, did_you_mean
from dynavit.numbers import is_finite_number
from dynavit.text import listed

OPTIONS = ("validation_fraction", "labels", "validation_labels", "images", "image_column", "label_column")
FRACTION = "data.options.validation_fraction=0.2"

_USUAL = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "test", "testing"),
}
"""By the default name of a split the names that others give it, the nearest first."""


@dataclass(frozen=True)
class FileSplits:
    """Training files, None where they were not asked for; validation files; notes, one line each."""

    train: LabelledFiles | None
    validation: LabelledFiles
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """Which splits of which folder; see :func:`create_classification_data` for what the fields mean."""

    root: str | None
    train: bool
    train_split: str
    validation_split: str
    seed: int
    options: Mapping[str, Any]


def find_splits(wanted: Wanted) -> FileSplits:
    """Find the files of both splits.

    Raises:
        InputError: a folder, table or option that does not exist, or that contradicts another.
    """
    check_options("folder", wanted.options, OPTIONS)
    # what is null is not set, so that a command line can take it back
    wanted = replace(wanted, options={key: value for key, value in wanted.options.items() if value is not None})
    root, fraction = _root(wanted.root), _fraction(wanted.options)
    for key in ("train_split", "validation_split"):
        if not getattr(wanted, key).strip():
            raise InputError(f"data.{key} is empty: give the name of a folder, or of a split in a table.")
    splits = (_by_table if "labels" in wanted.options else _by_folder)(root, wanted, fraction)
    files = [files for files in (splits.train, splits.validation) if files is not None]
    told = [*splits.notes, *(note for split in files for note in split.notes)]
    return replace(splits, train=splits.train if wanted.train else None, notes=tuple(dict.fromkeys(told)))


def split_name(asked: str, names: Sequence[str], taken: str | None = None) -> str | None:
    """Return which of these names a split has; those that others give it are known where a default is asked for.

    Args:
        asked: its name in the configuration.
        names: of what there is.
        taken: is another split's.

    Raises:
        InputError: several would do equally well.

    Example:
        >>> split_name("val", ["Train", "Validation", "test"])
        'Validation'
    """
    if asked in names:
        return asked
    for usual in _USUAL.get(asked, ()):
        found = [name for name in names if name != taken and _plain(name) == usual]
        if len(found) > 1:
            key = "train_split" if asked == "train" else "validation_split"
            raise InputError(f"{' and '.join(found)} could both be the split {asked!r}: set data.{key}={found[0]}.")
        if found:
            return found[0]
    return None


def is_class_folder(folder: Path) -> bool:
    """Whether images lie directly in a folder, and none in the folders inside: then it is no split."""
    return _holds_images(folder) and not any(_holds_images(folder / name) for name in visible_folders(folder))


def _holds_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(
                os.path.splitext(entry.name)[1].lower() in image_endings()
                and not is_hidden(entry.name)
                and entry.is_file()  # not a folder, nor a pipe
                for entry in entries
            )
    except OSError:
        return False


def nested(root: Path, folders: Sequence[str], *splits: str) -> list[str]:
    """Return which of the folders in a root hold all these splits, so that one of them is the root that was meant."""
    return [name for name in folders if all(split_name(split, visible_folders(root / name)) for split in splits)]


def _plain(name: str) -> str:
    """Return a split's name without what does not matter: ``Training_set`` is ``training``."""
    return re.sub(r"[ _-]*set$", "", name.casefold().strip())


def _root(root: str | None) -> Path:
    path = Path(given_root("folder", root, LAYOUT))
    if path.is_file():
        archive = path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")
        raise InputError(
            f"data.root={root} is a file, not a folder; " + ("unpack it first." if archive else f"{LAYOUT}.")
        )
    if not path.is_dir():
        raise InputError(f"data.root={root} does not exist; {LAYOUT}.")
    return path


def _fraction(options: Mapping[str, Any]) -> float | None:
    fraction = options.get("validation_fraction")
    if fraction is None:
        return None
    if not is_finite_number(fraction) or not 0 < fraction < 1:
        raise InputError(f"data.options.validation_fraction={fraction}: a number between 0 and 1, such as 0.2.")
    return float(fraction)


def _by_folder(root: Path, wanted: Wanted, fraction: float | None) -> FileSplits:
    if useless := [key for key in wanted.options if key != "validation_fraction"]:
        raise InputError(
            f"data.options.{useless[0]}={wanted.options[useless[0]]} does nothing without data.options.labels=FILE.csv."
        )
    folders = visible_folders(root)
    train_name = split_name(wanted.train_split, folders)
    if fraction is not None:
        return _divided(root, wanted, fraction, folders, train_name)
    if train_name is None and wanted.train:
        raise _missing(root, wanted.train_split, "train", folders)
    validation_name = split_name(wanted.validation_split, folders, taken=train_name)
    if validation_name is None:
        raise _missing(root, wanted.validation_split, "val", folders, train_name)
    named = {"training": (wanted.train_split, train_name), "validation": (wanted.validation_split, validation_name)}
    notes = [
        f"{root} has no folder {asked!r}: {found!r} is used for {purpose}."
        for purpose, (asked, found) in named.items()
        if found is not None and asked != found
    ]
    if train_name is not None and os.path.samefile(root / train_name, root / validation_name):
        raise InputError(
            f"data.train_split={train_name}: training and validation would both read {root / train_name}; set "
            f"data.validation_split to another folder, or {FRACTION} and no data.validation_split."
        )
    train = read_class_folders(root / train_name) if wanted.train and train_name is not None else None
    return FileSplits(train, read_class_folders(root / validation_name), tuple(notes))


def _divided(root: Path, wanted: Wanted, fraction: float, folders: Sequence[str], train_name: str | None) -> FileSplits:
    """Divide one folder of classes: the root, or its training split where that is all there is."""
    asked = wanted.validation_split
    others = [name for name in folders if name != train_name and _plain(name) in _USUAL["val"][:4]]
    explicit = [asked] if asked != "val" else [name for name in others if not is_class_folder(root / name)]
    if explicit:
        raise InputError(
            f"data.options.validation_fraction={fraction:g}: {root / explicit[0]} is the validation split already; set "
            f"data.options.validation_fraction=null to use it."
        )
    source = root
    if train_name is not None and not is_class_folder(root / train_name):
        source = root / train_name
    elif wanted.train_split != "train":
        raise _missing(root, wanted.train_split, "train", folders)
    files = read_class_folders(source)
    train, validation = split_off(files, fraction, wanted.seed)
    return FileSplits(train, validation, (_division(source, fraction, wanted.seed, train, validation),))


def _division(source: Path, fraction: float, seed: int, train: LabelledFiles, validation: LabelledFiles) -> str:
    return (
        f"{source} is divided by class with seed {seed}: {len(validation.paths):,} of "
        f"{len(train.paths) + len(validation.paths):,} images (validation_fraction={fraction:g}) are for validation."
    )


def _missing(root: Path, asked: str, default: str, folders: Sequence[str], train_name: str | None = None) -> InputError:
    """Return the error about a split that is not there, with the ways out."""
    key = "train_split" if default == "train" else "validation_split"
    classes = [name for name in folders if is_class_folder(root / name)]
    tables = sorted(path.name for path in root.glob("*.csv"))
    by_table = f" For labels from {listed(tables)} set data.options.labels={tables[0]}." if tables else ""
    if train_name is None and classes:
        return InputError(
            f"{root} holds folders of images ({listed(classes)}) and no splits: set {FRACTION} to validate on a part "
            f"of each class, or make {root / 'train'} and {root / 'val'}.{by_table}"
        )
    hints = [by_table]
    usual = split_name(default, folders, taken=train_name)
    inside = nested(root, folders, default)
    if usual is not None:
        hints.append(f" There is {usual!r}: set data.{key}={usual}.")
    elif default == "val" and train_name is not None:
        hints.append(f" Or set {FRACTION} to validate on a part of {root / train_name}.")
    elif len(inside) == 1:
        hints.append(f" There are splits in {root / inside[0]}: set data.root={root / inside[0]}.")
    return InputError(f"the folder {root / asked} does not exist; {LAYOUT}.{''.join(hints)} Found: {listed(folders)}.")


def _by_table(root: Path, wanted: Wanted, fraction: float | None) -> FileSplits:
    options = wanted.options
    for key in OPTIONS[1:]:
        if not isinstance(options.get(key, ""), str):
            raise InputError(f"data.options.{key}={options[key]}: expected text.")
    if "images" in options:
        folders = [root / options["images"]]
        if not folders[0].is_dir():
            raise InputError(f"data.options.images={options['images']}: there is no folder {folders[0]}.")
    else:
        folders = [root, *(root / name for name in visible_folders(root) if name.casefold() == "images")]

    def read(key: str) -> Table:
        return read_table(root / options[key], folders, options.get("image_column"), options.get("label_column"))

    table = read("labels")
    ways = ["a column 'split'"] if table.has_splits else []
    ways += ["data.options.validation_labels"] if "validation_labels" in options else []
    ways += ["data.options.validation_fraction"] if fraction is not None else []
    if len(ways) != 1:
        raise InputError(
            f"{table.source}: {' and '.join(ways)} both say what is for validation; keep one of them."
            if ways
            else f"{table.source} does not say what is for validation: set {FRACTION}, or "
            f"data.options.validation_labels=OTHER.csv, or add a column 'split' with train and val."
        )
    if fraction is not None:
        train, validation = split_off(table.files(), fraction, wanted.seed)
        return FileSplits(train, validation, (_division(table.source, fraction, wanted.seed, train, validation),))
    if "validation_labels" in options:
        second = read("validation_labels")
        if second.source.samefile(table.source):
            raise InputError(f"data.options.validation_labels={options['validation_labels']} is the training table.")
        return FileSplits(table.files(), second.files(), ())
    return _by_column(table, wanted)


def _by_column(table: Table, wanted: Wanted) -> FileSplits:
    names = list(dict.fromkeys(row.split or "" for row in table.rows))
    train = split_name(wanted.train_split, names)
    validation = split_name(wanted.validation_split, names, taken=train)
    for key, asked, found in (
        ("train_split", wanted.train_split, train),
        ("validation_split", wanted.validation_split, validation),
    ):
        if found is None and (wanted.train or key == "validation_split"):
            raise InputError(
                f"the column 'split' of {table.source} never says {asked!r}: it has {listed(names)}. "
                f"Set data.{key} to one of them.{did_you_mean(asked, names)}"
            )
    if train == validation:
        raise InputError(f"data.train_split and data.validation_split are both {train!r}: they must differ.")
    assert validation is not None
    unused = [name for name in names if name not in (train, validation)]
    notes = [f"{table.source} has splits that are not used: {listed(unused)}."] if unused else []
    return FileSplits(table.files(train) if train is not None else None, table.files(validation), tuple(notes))
