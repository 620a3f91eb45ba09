"""Writing files whole or not at all, as UTF-8 whatever names they hold."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from dynavit.errors import InputError

WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", *WEIGHT_INDEXES)  # in a folder of the Hugging Face Hub
WEIGHT_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to, which takes its place once everything is written.

    The folder is made if missing, and the file gets the permissions that the process gives to new files. Where
    writing fails, what stood at ``path`` stays, and nothing is left beside it. Of a link to a file, the link alone is
    replaced: in a folder that somebody sent, it may point to anything.

    Raises:
        InputError: the file cannot be written, or ``path`` is a folder, named pipe or device.
    """
    path = Path(path)
    partial = _beside(path)
    try:
        _refuse_other_kinds(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} could not be written: {_reason(error)}.") from error
    finally:
        with suppress(OSError):  # it is not there any more, or never was
            partial.unlink()


def write_text(path: str | Path, text: str) -> None:
    r"""Write UTF-8 with plain line ends; what is no text in a file's name becomes ``\udcXX``.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def append_text(path: str | Path, text: str) -> None:
    """Add UTF-8 to the end of a file, made if missing.

    Raises:
        InputError: it is a link, which may point to anything, or cannot be written.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with os.fdopen(file, "a", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        reason = "it is a link to somewhere else: remove the link" if os.path.islink(path) else _reason(error)
        raise InputError(f"{path} could not be written: {reason}.") from error


def write_together(folder: str | Path, files: Mapping[str, str | bytes]) -> None:
    """Write files that belong together: all aside first, and then each in its place.

    Args:
        folder: made if missing.
        files: what to write by name; text as :func:`write_text` writes it.

    Raises:
        InputError: one of them cannot be written; then all that stood there before stays.
    """
    with ExitStack() as stack:
        for name, content in files.items():
            partial = stack.enter_context(replacing(Path(folder) / name))
            partial.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))


@contextmanager
def replacing_together(path: str | Path, *others: str) -> Iterator[Path]:
    """Yield a name to write to, in a new folder beside ``path``, for what writes several files at once.

    Once everything is written, what stands there takes the place of ``path``, and what has its name with the endings
    ``others`` stands beside it; those come first.

    Raises:
        InputError: one of them cannot be written; what stood there before stays, unless the disk fails between two of
            them.
    """
    path = Path(path)
    with replacing(path) as partial, ExitStack() as stack:
        partials = [stack.enter_context(replacing(path.with_suffix(other))) for other in others]
        with TemporaryDirectory(prefix=".writing.", dir=path.parent) as folder:
            whole = Path(folder) / path.name
            yield whole
            for other, place in zip(others, partials, strict=True):
                whole.with_suffix(other).replace(place)
            whole.replace(partial)


def require_folder(folder: str | Path) -> None:
    """Find out before the work whether files can be written into a folder, which may not be there yet.

    Raises:
        InputError: they cannot, or it is no folder.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is a file: give the name of a folder.")
    require_writable(Path(folder) / ".results")


def require_writable(path: str | Path) -> None:
    """Find out before the work whether its result can be written; nothing is left behind.

    Raises:
        InputError: it cannot.
    """
    path = Path(path)
    made: list[Path] = []
    try:
        _refuse_other_kinds(path)
        made = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = _beside(path)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {_reason(error)}.") from error
    finally:
        for folder in made:
            with suppress(OSError):  # it could not be made
                folder.rmdir()


def refuse_special(path: str | Path) -> None:
    """Refuse named pipes and devices, which can be read without end.

    Raises:
        InputError: ``path`` is one.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise InputError(f"{path} is a named pipe, socket or device, not a file.")


def _refuse_other_kinds(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file.")
    refuse_special(path)


def _beside(path: Path) -> Path:
    """Return a name that nobody has; its ending tells some writers the format."""
    return path.parent / f".{path.stem[:100]}.{secrets.token_hex(4)}.partial{path.suffix}"


def _reason(error: OSError) -> str:
    # of making a folder where a file is
    return "a part of its path is a file" if isinstance(error, FileExistsError) else error.strerror or str(error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def weights_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder that seem to hold weights, the Hugging Face Hub's first."""
    names = [path.name for path in folder.iterdir() if path.name.endswith((*WEIGHT_ENDINGS, ".index.json"))]
    return sorted(names, key=lambda name: (name not in WEIGHT_FILES, name))
