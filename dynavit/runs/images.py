"""Pictures of the user's own: which there are, and how a model gets to see them.

Shapes: B images of a batch, C channels, H and W pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dynavit.data.files import NO_FILE, describe_skipped, find_images, image_endings
from dynavit.data.pictures import UNREADABLE, read_picture
from dynavit.data.transforms import Preparation, apply_transform
from dynavit.errors import InputError
from dynavit.models.guides import check_unguided
from dynavit.runs.open import Run

Batch = tuple[list[Path], Tensor, list[str]]
"""Paths and images ``(B, C, H, W)`` of those that can be read, and a message for each that cannot."""

_Item = tuple[Path, Tensor | None, str]


def list_images(folder: str | Path, option: str = "--images") -> list[Path]:
    """Return all image files below a folder, or the one file given, whatever its ending.

    What is passed over is said in one line on the error stream; see :func:`dynavit.data.files.find_images`.

    Args:
        folder: to look into, or a file.
        option: that named it.

    Raises:
        InputError: no such folder, no images in it, or the file is a pipe or device.
    """
    if not str(folder):
        raise InputError(f"{option} is empty: give a folder with pictures, or one picture.")
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        what = f"is {NO_FILE}" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}: {option} takes a folder with pictures, or one picture.")
    listing = find_images(folder)
    note = describe_skipped(listing.skipped)
    if not listing.paths:
        endings = ", ".join(sorted(image_endings()))
        raise InputError(f"{folder} holds no images ({endings}). Passed over: {note or 'nothing, it is empty'}.")
    if note:
        print(f"note: passed over in {folder}: {note}.", file=sys.stderr)
    return list(listing.paths)


def read_images(run: Run, paths: Sequence[Path], batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """Yield images in the order of their paths; a batch is smaller by those that cannot be read.

    Args:
        run: whose model is to see them.
        paths: to read.
        batch_size: files at a time.
        workers: processes that read ahead, where there are several batches; 0 reads in this one. What is yielded does
            not depend on it.

    Raises:
        InputError: not one image can be read, single pictures are not what the model sees, or a worker was ended.
    """
    run.require_one_spectrum()
    check_unguided(run.model)
    loader: DataLoader[_Item] = DataLoader(
        _Pictures(paths, run.preparation),
        batch_size,
        num_workers=workers if len(paths) > batch_size else 0,
        collate_fn=_collate,
        generator=torch.Generator(),  # leaves torch's own alone
    )
    readable = 0
    with tqdm(total=len(paths), desc="images", leave=False, disable=None) as bar:
        for good, images, problems in _batches(loader):
            readable += len(good)
            yield good, images.to(run.device), problems
            bar.update(len(good) + len(problems))
    if not readable:
        raise InputError(f"none of the {len(paths)} image files can be read; the first is {paths[0]}.")


class _Pictures(Dataset[_Item]):
    """Files as ``(path, tensor, "")``, or ``(path, None, message)``."""

    def __init__(self, paths: Sequence[Path], preparation: Preparation) -> None:
        self.paths, self.preparation = paths, preparation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> _Item:
        path = self.paths[index]
        try:
            picture = read_picture(path, self.preparation.channels)
        except UNREADABLE as error:
            return path, None, f"{path} cannot be read and is left out: {error}"
        return path, apply_transform(self.preparation, picture, str(path), "preparing it for the model"), ""


def _collate(items: Sequence[_Item]) -> Batch:
    images = [image for _, image, _ in items if image is not None]
    return (
        [path for path, image, _ in items if image is not None],
        torch.stack(images) if images else torch.empty(0),
        [problem for _, image, problem in items if image is None],
    )


def _batches(loader: DataLoader[_Item]) -> Iterator[Batch]:
    """Go through a loader; say what to do where the system ends its workers."""
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(
            "a process that reads images was ended, mostly for want of (shared) memory: use --workers 0, or a smaller "
            "--batch-size."
        ) from error
