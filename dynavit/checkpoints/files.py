"""Opening a file of weights by what is in it, without running anything that it says."""

from __future__ import annotations

import codecs
import json
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dynavit.errors import InputError
from dynavit.files import WEIGHT_FILES, weights_in
from dynavit.text import first_line

_SAVE_ALONE = (
    "It has to be saved again with its weights alone, by someone who trusts it: "
    "torch.save(model.state_dict(), 'weights.pth')."
)
_FETCH = "fetch or save it again."
_DOWNLOAD = "download the file itself."

# what files begin with, and what to do instead
_ONNX = "is an ONNX model, which is made for inference: give the torch or safetensors weights it was made from."
_KINDS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the weights themselves: run `git lfs pull`, or " + _DOWNLOAD,
    ),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras and TensorFlow write: convert it to a torch state dict first."),
    (b"\x93NUMPY", "is a NumPy array (.npy), not a mapping of names to tensors: save a torch state dict."),
    (b"\x1f\x8b", "is packed (gzip): unpack it first."),
    (b"BZh", "is packed (bzip2): unpack it first."),
    (b"\xfd7zXZ\x00", "is packed (xz): unpack it first."),
    (b"\x28\xb5\x2f\xfd", "is packed (zstd): unpack it first."),
    (b"7z\xbc\xaf\x27\x1c", "is packed (7z): unpack it first."),
    (b"GGUF", "is a GGUF file, which holds quantised weights: take the torch or safetensors weights."),
    (b"\x89PNG", "is a picture, not weights."),
    (b"\xff\xd8\xff", "is a picture, not weights."),
)


def read_checkpoint(path: str | Path) -> Any:
    """Read a file of weights, or the weights in a folder of the Hugging Face Hub, on the CPU.

    A file is known by its content, not its ending: safetensors, or what torch saved. Of the latter, tensors, plain
    data, ``argparse.Namespace`` and NumPy's numbers are read; nothing else is, whatever it is.
    An index of shards (``model.safetensors.index.json``) is read with all its shards.

    Returns:
        A mapping of names to tensors, or whatever else torch saved.

    Raises:
        InputError: there is no such file, or it is something else, damaged or unsafe; the message says what it is.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    try:
        if not path.is_file():
            there = "is no regular file" if path.exists() else f"does not exist, seen from {Path.cwd()}"
            raise InputError(f"{path} {there}: give a file or a folder.")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    if path.name.endswith(".index.json"):
        return _shards(path)
    if not start.strip(b"\0"):
        raise InputError(f"{path} is empty: it was not written or downloaded to its end; fetch it again.")
    # the length of the header, then the header
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length < 1 << 32:
        return _safetensors(path, size, length)
    if path.suffix == ".safetensors" and start[:2] not in (b"PK", b"\x80\x02"):
        _refuse_other(path, start)
        raise InputError(f"{path} cannot be read (it does not begin as safetensors do, so it is damaged): {_FETCH}")
    if start.startswith(b"PK"):
        _check_zip(path)
    else:
        _refuse_other(path, start)
    return _torch(path)


def _in_folder(folder: Path) -> Path:
    found = [folder / name for name in WEIGHT_FILES if (folder / name).exists()]
    if found:
        return found[0]
    others = weights_in(folder)
    there = f" (it has {', '.join(others[:5])})" if others else ""
    raise InputError(f"{folder} holds neither {' nor '.join(WEIGHT_FILES[:2])}: name the file itself{there}.")


def _shards(index: Path) -> dict[str, Any]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index} is no index of shards: it lacks weight_map, a mapping of names to files.") from None
    if not names or any(not isinstance(name, str) or name != Path(name).name or name in ("", "..") for name in names):
        raise InputError(f"{index} names no files, or files outside of its folder: {', '.join(map(repr, names[:3]))}.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise InputError(f"{index} names {len(names)} files, of which {', '.join(missing[:3])} is not beside it.")
    merged: dict[str, Any] = {}
    for name in names:
        if name.endswith(".index.json"):
            raise InputError(f"{index} names another index, {name}.")
        part = read_checkpoint(index.parent / name)
        if not isinstance(part, Mapping):
            raise InputError(f"{index.parent / name} holds no state dict: expected a mapping of names to tensors.")
        merged.update(part)
    return merged


def _safetensors(path: Path, size: int, length: int) -> dict[str, torch.Tensor]:
    if 8 + length > size:
        raise InputError(f"{path} cannot be read (it is cut off, at {size} bytes): {_FETCH}")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OSError) as error:
        reason = first_line(error)
        cut = "it is cut off" if "ncomplete" in reason or "Offset" in reason else "it is damaged"
        raise InputError(f"{path} cannot be read ({cut}: {reason}): {_FETCH}") from None


def _refuse_other(path: Path, start: bytes) -> None:
    """Refuse what is known to hold no torch weights, by its first bytes."""
    problem = next((problem for magic, problem in _KINDS if start.startswith(magic)), None)
    head = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if problem is None and head[:256].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        problem = f"is a web page, not the weights: the link led to a page about the file, or to an error; {_DOWNLOAD}"
    if problem is None and start[257:262] == b"ustar":
        problem = "is an archive (tar): unpack it first, and give the file of weights in it."
    if problem is None and path.suffix == ".onnx":
        problem = _ONNX
    if problem is None and (text := _as_text(start)) is not None:
        kind = "JSON" if text.lstrip()[:1] in ("{", "[") else "text"
        problem = f"is {kind}, not weights; it begins with {text.strip()[:30]!r}."
    if problem is None and start[:1] == b"\x08" and (b"onnx" in start[:64] or b"pytorch" in start[:64]):
        problem = _ONNX
    if problem is not None:
        raise InputError(f"{path} cannot be read: it {problem}")


def _as_text(start: bytes) -> str | None:
    encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeDecodeError:
        return None
    return text if all(sign.isprintable() or sign.isspace() for sign in text) and text else None


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise InputError(f"{path} cannot be read (it is cut off or damaged: {first_line(error)}): {_FETCH}") from None
    inner = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in inner:
        problem = f"is a TorchScript archive, which is code as much as weights. {_SAVE_ALONE}"
    elif "data.pkl" in inner:
        return
    elif inner and all(name.endswith(".npy") for name in inner):
        problem = (
            "is a NumPy archive (.npz): save a torch state dict; weights in JAX's names are read by "
            "timm.create_model(..., checkpoint_path=...)."
        )
    elif any(name.endswith(".h5") for name in inner):
        problem = "is a Keras model: convert it to a torch state dict first."
    else:
        problem = "is a zip archive without torch weights: unpack it first, and give the file of weights in it."
    raise InputError(f"{path} cannot be read: it {problem}")


def _torch(path: Path) -> Any:
    try:
        # an open file: of a path, torch believes the ending
        with torch.serialization.safe_globals(_allowed()), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way it likes
        # torch explains at length how to do without this safety; only what it refused is of use
        refused = _refused_classes(path, str(error))
        if not refused:
            raise InputError(
                f"{path} cannot be read (it is damaged, or was not written by torch: {type(error).__name__}): {_FETCH}"
            ) from None
        whole = any(name.startswith(("torch.nn.modules.", "timm.", "__main__.", "transformers.")) for name in refused)
        is_model = "it is a whole model, or holds one: " if whole else "it holds "
        raise InputError(
            f"{path} cannot be read ({is_model}{', '.join(refused[:4])}). Only tensors, plain data, argparse.Namespace "
            f"and NumPy's numbers are. {_SAVE_ALONE}"
        ) from None


def _allowed() -> list[Any]:
    """Return what may be in a file beside tensors and plain data: the arguments of a script, NumPy's numbers."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFD"}
    # the names that NumPy 1 and NumPy 2 write
    scalars = [(scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    return [Namespace, np.dtype, *dtypes, *scalars]


def _refused_classes(path: Path, message: str) -> list[str]:
    names = re.findall(r"GLOBAL (\S+) (?:was not an allowed|whose module)", message)
    try:
        with torch.serialization.safe_globals(_allowed()), path.open("rb") as file:
            names += torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # it is no zip, or damaged
        pass
    return list(dict.fromkeys(first_line(name) for name in names))
