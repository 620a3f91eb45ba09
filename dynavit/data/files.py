"""Finding image files: the same ones for every tool."""

from __future__ import annotations

import os
import stat
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from dynavit.errors import InputError

_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".avif", ".jp2", ".j2k", ".tga", ".apng"),
)
_OF_SYSTEMS = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found"}

HIDDEN = "hidden or of the operating system"
OTHER_ENDING = "no image file"
SEEN = "linked to what was found already"
BROKEN = "a link to nothing"
NO_FILE = "a named pipe, socket or device"
UNREADABLE = "a folder that cannot be read"


@dataclass(frozen=True)
class Found:
    """What :func:`find_images` found.

    Attributes:
        paths: of the images, sorted.
        skipped: what was passed over, relative to the folder, by reason.
    """

    paths: tuple[Path, ...]
    skipped: Mapping[str, Sequence[str]]


@cache
def image_endings() -> frozenset[str]:
    """Return the endings of image files, in lower case: those of photographs that this Pillow reads."""
    readable = Image.registered_extensions()
    return frozenset(ending for ending in _ENDINGS if readable.get(ending) in Image.OPEN)


def find_images(folder: str | Path) -> Found:
    """Find the images below a folder by their endings; none is opened.

    Hidden files and folders, those that operating systems leave behind (``__MACOSX``, ``@eaDir``, ``Thumbs.db``),
    pipes and devices are passed over. Symbolic links are followed, but nothing is found twice, and loops end.

    Raises:
        InputError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist, or is no folder.")
    paths: list[Path] = []
    skipped: dict[str, list[str]] = defaultdict(list)
    top = os.path.realpath(folder)
    seen, waiting, links = {top}, [(folder, top)], deque[Path]()
    while waiting or links:
        # what is really there comes before links to it
        if waiting:
            here, real = waiting.pop()
        else:
            here = links.popleft()
            real = os.path.realpath(here)
            reason = SEEN if real in seen else None if os.path.exists(real) else BROKEN
            if reason:
                skipped[reason].append(here.relative_to(folder).as_posix())
                continue
            seen.add(real)
            if not here.is_dir():
                paths.append(here)
                continue
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            skipped[UNREADABLE].append(here.relative_to(folder).as_posix())
            continue
        for entry in entries:
            path = here / entry.name
            reason = _why_not(entry)
            if reason:
                skipped[reason].append(path.relative_to(folder).as_posix())
            elif entry.is_symlink():
                links.append(path)
            elif (place := os.path.join(real, entry.name)) not in seen:
                # below a link there may be what was found at its own place
                seen.add(place)
                if entry.is_dir():
                    waiting.append((path, place))
                else:
                    paths.append(path)
    return Found(tuple(sorted(paths)), {reason: sorted(names) for reason, names in skipped.items()})


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that operating systems leave behind."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _why_not(entry: os.DirEntry[str]) -> str | None:
    if is_hidden(entry.name):
        return HIDDEN
    try:
        mode = entry.stat().st_mode
    except OSError:
        return BROKEN
    if stat.S_ISDIR(mode):
        return None
    if not stat.S_ISREG(mode):
        return NO_FILE
    return None if os.path.splitext(entry.name)[1].lower() in image_endings() else OTHER_ENDING


def describe_skipped(skipped: Mapping[str, Sequence[str]]) -> str:
    """Return how many files were skipped for which reason, with the first names.

    Example:
        >>> describe_skipped({"no image file": ["Thumbs.db"], "junk": ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]})
        '1 no image file (Thumbs.db); 4 junk (a.jpg, b.jpg, c.jpg, ...)'
    """
    return "; ".join(
        f"{len(names):,} {reason} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for reason, names in skipped.items()
    )
