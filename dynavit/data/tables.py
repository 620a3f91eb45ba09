"""Labels from a CSV file: which image shows what, and to which split it belongs."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynavit.data.files import image_endings
from dynavit.data.labelled import LabelledFiles
from dynavit.errors import InputError, did_you_mean
from dynavit.text import listed

IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "id", "image_id")
"""Names that a column of images may have, whatever their case."""
LABEL_COLUMNS = ("label", "class", "category", "target")
"""Names that a column of labels may have, likewise."""
SPLIT_COLUMN = "split"


@dataclass(frozen=True)
class Row:
    """One image of a table; ``split`` is None where the table has no such column."""

    line: int
    path: Path
    label: str
    split: str | None


@dataclass(frozen=True)
class Table:
    """The rows of a table, each image once, also where links lead to it, and notes, one line each."""

    source: Path
    rows: tuple[Row, ...]
    has_splits: bool
    notes: tuple[str, ...] = ()

    def files(self, split: str | None = None) -> LabelledFiles:
        """Return the images, or those of one split; classes are sorted, by value where all are whole numbers."""
        rows = [row for row in self.rows if split is None or row.split == split]
        labels = {row.label for row in rows}
        by_value = all(label.isdecimal() for label in labels)
        classes = sorted(labels, key=lambda label: (int(label) if by_value else 0, label))
        return LabelledFiles(
            self.source,
            tuple(row.path for row in rows),
            tuple(row.label for row in rows),
            tuple(classes),
            notes=self.notes,
        )


def read_table(
    path: Path, folders: Sequence[Path], image_column: str | None = None, label_column: str | None = None
) -> Table:
    """Read a table of images and labels: UTF-8, a line of column names, then commas, semicolons or tabs.

    A column ``split`` is understood as well. Others are ignored.

    Args:
        path: the table.
        folders: where the images are; the first that has one counts. Endings may be left out.
        image_column: the name of its column; the first of :data:`IMAGE_COLUMNS` that there is if None. Where there
            are several, a note says which one was taken.
        label_column: likewise, of :data:`LABEL_COLUMNS`, of which only one may be there.

    Raises:
        InputError: no such file, column or image, several columns of labels, a row without label, or one that
            contradicts another, naming the line.
    """
    text = _text(path)
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    places = _Places(folders)
    try:
        columns = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        folded = [name.casefold() for name in columns]
        if twice := [name for name in columns if folded.count(name.casefold()) > 1]:
            raise InputError(f"{path} names the column {twice[0]!r} twice: rename or remove one of them.")
        image, *more_images = _columns(path, columns, "image_column", image_column, IMAGE_COLUMNS)
        label, *more_labels = _columns(path, columns, "label_column", label_column, LABEL_COLUMNS)
        # with the wrong column of images files would be missing; wrong labels would be trained on
        if more_labels:
            raise InputError(
                f"{path} has several columns that could be the labels, {listed([label, *more_labels])}: set "
                f"data.options.label_column to one of them."
            )
        split = next((name for name in columns if name.casefold() == SPLIT_COLUMN), None)
        rows: dict[str, Row] = {}
        repeated = 0
        for cells in reader:
            row = _row(path, reader.line_num, cells, len(columns), (image, label, split), places)
            before = rows.setdefault(places.real(row.path), row)
            if (before.label, before.split) != (row.label, row.split):
                link = "" if before.path == row.path else f" of {before.path.name}, the same file by a link,"
                raise InputError(
                    f"{path}, line {row.line}: {row.path.name} is {_described(row)}, but line {before.line} says{link} "
                    f"{_described(before)}. Keep one of them."
                )
            repeated += before is not row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.reader.line_num}: {error}.") from None
    if not rows:
        raise InputError(f"{path} has no rows below its column names.")
    notes = [f"{path} names {repeated:,} images more than once; each counts once."] if repeated else []
    if more_images:
        notes.append(
            f"{path} has several columns that could be the images, {listed([image, *more_images])}: {image!r} is used; "
            f"data.options.image_column chooses another."
        )
    return Table(path, tuple(rows.values()), split is not None, tuple(notes))


def _described(row: Row) -> str:
    return f"{row.label!r}" if row.split is None else f"{row.label!r} in split {row.split!r}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text (byte {error.start:,}): save it as CSV UTF-8.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _columns(path: Path, columns: list[str], key: str, wanted: str | None, usual: Sequence[str]) -> list[str]:
    """Return the wanted column alone, or all with a usual name, the most usual one first; never none."""
    names = {name.casefold(): name for name in columns}
    candidates = usual if wanted is None else (wanted.casefold(),)
    if found := [names[name] for name in candidates if name in names]:
        return found
    missing = f"has none of the columns {', '.join(usual)}" if wanted is None else f"has no column {wanted!r}"
    hint = "" if wanted is None else did_you_mean(wanted, columns)
    raise InputError(f"{path} {missing}: set data.options.{key} to one of {listed(columns)}.{hint}")


def _row(
    path: Path,
    line: int,
    cells: dict[str, str],
    width: int,
    columns: tuple[str, str, str | None],
    places: _Places,
) -> Row:
    where = f"{path}, line {line}"
    if None in cells or None in cells.values():
        raise InputError(f"{where}: expected {width} values, one a column.")
    image, label, split = ("" if name is None else cells[name].strip() for name in columns)
    for name, value in zip(columns, (image, label, split), strict=True):
        if name is not None and not value:
            raise InputError(f"{where}: the column {name!r} is empty. Fill it in, or remove the line.")
    return Row(line, places.find(where, image), label, split if columns[2] is not None else None)


class _Places:
    """The folders that a table's images are in."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self._listings: dict[Path, dict[str, list[str]]] = {}
        self._real_folders: dict[Path, str] = {}

    def find(self, where: str, name: str) -> Path:
        """Return the file of an image named in a table, which may have been written on Windows."""
        relative = name.replace("\\", "/")
        inside = os.path.normpath(relative)
        if relative.startswith("/") or re.match(r"[A-Za-z]:/", relative) or inside.partition("/")[0] in ("..", "."):
            raise InputError(f"{where}: {name!r} is no path below {self.folders[0]}; write it relative to that folder.")
        for folder in self.folders:
            place = folder / inside
            found = self._listing(place.parent).get(place.name, [])
            if place.name in found:
                return place
            if len(found) > 1:
                raise InputError(f"{where}: {name!r} could be {listed(found)}: write its ending.")
            if found:
                return place.with_name(found[0])
        raise InputError(
            f"{where}: there is no image {name!r} in {listed(self.folders)}; say where the "
            f"images are with data.options.images=FOLDER, or remove the line."
        )

    def real(self, path: Path) -> str:
        """Return where links lead to; only those are followed, since that takes a look at every folder on the way."""
        if path.is_symlink():
            return os.path.realpath(path)
        if path.parent not in self._real_folders:
            self._real_folders[path.parent] = os.path.realpath(path.parent)
        return os.path.join(self._real_folders[path.parent], path.name)

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        """Return the files of a folder by name, and images also by their names without ending."""
        if folder not in self._listings:
            listing: dict[str, list[str]] = {}
            try:
                names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
            except (OSError, ValueError):  # no such folder, or no possible name of one
                names = []
            for name in names:
                stem, ending = os.path.splitext(name)
                listing.setdefault(name, []).append(name)
                if ending.lower() in image_endings():
                    listing.setdefault(stem, []).append(name)
            self._listings[folder] = listing
        return self._listings[folder]
