"""Writing files whole or not at all, as UTF-8 whatever names they hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynavit.errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to, which takes its place once everything is written.

    The folder is made if missing, and the file gets the permissions that the process gives to new files. Where
    writing fails, what stood at ``path`` stays, and nothing is left beside it.

    Raises:
        InputError: the file cannot be written, or ``path`` is a folder.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")  # the ending tells some writers the format
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the name of a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        if partial.exists():
            partial.unlink()


def write_text(path: str | Path, text: str) -> None:
    r"""Write UTF-8 with plain line ends; what is no text in a file's name becomes ``\udcXX``.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def require_writable(path: str | Path) -> None:
    """Find out before the work whether its result can be written.

    Raises:
        InputError: it cannot.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the name of a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.stem}.probe{path.suffix}")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
