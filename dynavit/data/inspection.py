"""Looking into every image file of a data set, and remembering what was found."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
from PIL import Image
from tqdm import tqdm

from dynavit.data.pictures import read_picture
from dynavit.data.samples import UNREADABLE
from dynavit.errors import InputError
from dynavit.files import write_text
from dynavit.text import printable

_RULES = 1  # raise it when other files can be read, so that what was found before is looked at again
_THREADS = 4


@dataclass(frozen=True)
class Findings:
    """What is in the files of a data set.

    Attributes:
        unreadable: why files cannot be read.
        sizes: by width and height in pixels how many files there are, and one of them.
        shared: files that are for training and for validation, by their content: one of each.
        decoded: whether files were read to their end, or only their headers.
        remembered: whether they were looked at before, and have not changed since.
    """

    unreadable: Mapping[Path, str]
    sizes: Mapping[tuple[int, int], tuple[int, Path]]
    shared: Sequence[tuple[Path, Path]]
    decoded: bool
    remembered: bool = False


def inspect_files(
    train: Sequence[Path], validation: Sequence[Path], decode: bool = True, remember: bool = False
) -> Findings:
    """Read all files of both splits.

    Args:
        train, validation: the files.
        decode: read them to their end and compare the splits' contents; False reads headers only.
        remember: keep the findings in the user's cache folder, and take them from there while no file has another
            name, size or time.
    """
    paths = list(dict.fromkeys([*train, *validation]))
    place = _place(paths, len(train), decode) if remember else None
    known = _recall(place, paths, decode) if place is not None else None
    if known is not None:
        return known
    unreadable: dict[int, str] = {}
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow remarks on files that it can read
        with ThreadPoolExecutor(_THREADS) as pool:
            looks = pool.map(_decode if decode else _open, paths)
            for number, look in enumerate(tqdm(looks, "data check", len(paths), leave=False, disable=None)):
                if isinstance(look, str):
                    unreadable[number] = look
                else:
                    count, first = sizes.get(look, (0, number))
                    sizes[look] = (count + 1, first)
    numbers = {path: number for number, path in enumerate(paths)}
    shared = [(numbers[one], numbers[other]) for one, other in _shared(train, validation)] if decode else []
    if place is not None:
        found = {
            "unreadable": sorted(unreadable.items()),
            "sizes": [[*size, *what] for size, what in sorted(sizes.items())],
            "shared": shared,
        }
        with suppress(InputError):  # what cannot be kept is looked at again next time
            write_text(place, json.dumps(found))
    return _findings(paths, unreadable, sizes, shared, decode)


def _decode(path: Path) -> tuple[int, int] | str:
    try:
        return read_picture(path).size
    except UNREADABLE as error:
        return _reason(error, path)


def _open(path: Path) -> tuple[int, int] | str:
    try:
        with Image.open(path) as image:
            return image.size
    except UNREADABLE as error:
        return _reason(error, path)


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "it is empty" if path.stat().st_size == 0 else "it is no image that Pillow knows"
    return printable(" ".join(str(getattr(error, "strerror", None) or error).split())) or type(error).__name__


def _shared(train: Iterable[Path], validation: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Return files of the same content; only those of the same size are read."""
    sizes = {path: _size(path) for path in (*train, *validation)}
    common = {sizes[path] for path in train} & {sizes[path] for path in validation} - {0, None}
    contents = {_content(path): path for path in train if sizes[path] in common}
    alike = ((contents.get(_content(path)), path) for path in validation if sizes[path] in common)
    return [(one, other) for one, other in alike if one is not None]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _content(path: Path) -> bytes | Path:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return path


def _place(paths: Sequence[Path], train: int, decode: bool) -> Path | None:
    """Return the file for what is found in files of this state."""
    digest = hashlib.sha256(f"{_RULES} {PIL.__version__} {decode} {train}".encode())
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            return None
        digest.update(os.fsencode(path.absolute()) + f"\0{state.st_size} {state.st_mtime_ns}\0".encode())
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return base / "dynavit" / "data-checks" / f"{digest.hexdigest()}.json"


def _recall(place: Path, paths: Sequence[Path], decode: bool) -> Findings | None:
    """Return what is remembered; None where there is nothing, or something else."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        unreadable = {_number(number, paths): str(reason) for number, reason in found["unreadable"]}
        sizes = {
            (_positive(width), _positive(height)): (_positive(count), _number(first, paths))
            for width, height, count, first in found["sizes"]
        }
        shared = [(_number(one, paths), _number(other, paths)) for one, other in found["shared"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    if len(unreadable) + sum(count for count, _ in sizes.values()) != len(paths):
        return None
    return _findings(paths, unreadable, sizes, shared, decode, remembered=True)


def _number(value: Any, paths: Sequence[Path]) -> int:
    if not isinstance(value, int) or not 0 <= value < len(paths):
        raise ValueError(value)
    return value


def _positive(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(value)
    return value


def _findings(
    paths: Sequence[Path],
    unreadable: Mapping[int, str],
    sizes: Mapping[tuple[int, int], tuple[int, int]],
    shared: Sequence[tuple[int, int]],
    decoded: bool,
    remembered: bool = False,
) -> Findings:
    return Findings(
        {paths[number]: printable(reason) for number, reason in unreadable.items()},
        {size: (count, paths[first]) for size, (count, first) in sizes.items()},
        [(paths[one], paths[other]) for one, other in shared],
        decoded,
        remembered,
    )
