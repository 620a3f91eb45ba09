"""Labelled images as ``(image, label, index)``, random in a reproducible way."""

from __future__ import annotations

import operator
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from dynavit.data.pictures import UNREADABLE, convert_picture
from dynavit.data.transforms import Transform, apply_transform
from dynavit.errors import InputError

Sample = tuple[torch.Tensor, int, int]


class Samples(Dataset[Sample | None]):
    """A map-style data set of ``(PIL image, label)`` that yields ``(tensor, label, index)``.

    The randomness of a sample, whether it comes from ``random``, ``numpy.random`` or ``torch``,
    depends on ``(seed, epoch, index)`` alone: not on the number of workers, nor on what was read
    before; and it leaves the caller's generators as they were.

    Args:
        dataset: may also have ``set_epoch(epoch)``, ``path(index)`` to name a file in messages, and
            ``foreground(index)``, which this class then has too. In place of an image it may give a tuple of M, one a
            spectrum, None where one is missing: they are transformed alike, to a tensor ``(M, C, H, W)``.
        transform: applied to the image, which is upright and has as many channels as the transform's attribute
            ``channels`` says; 3, so RGB, where it does not.
        seed: not negative.
        train: whether ``set_epoch`` changes the randomness; otherwise epochs are all alike.
        corrupt: ``"stop"`` raises an error that names an image that cannot be read; ``"skip"`` warns
            of it once and, in training, gives the next readable one; otherwise None, which
            :func:`collate` drops.
    """

    foreground: Callable[[int], np.ndarray]
    """The wrapped data set's; absent where that has none."""

    def __init__(
        self, dataset: Dataset[Any], transform: Transform, seed: int, train: bool, corrupt: str = "stop"
    ) -> None:
        if corrupt not in ("stop", "skip"):
            raise InputError(f"data.corrupt is 'stop' or 'skip', got {corrupt!r}.")
        self.dataset: Any = dataset
        self.transform = transform
        self.seed = seed
        self.train = train
        self.corrupt = corrupt
        self._epoch = _shared_zeros(1, torch.int64)
        self._warned = _shared_zeros(len(self), torch.bool)
        if hasattr(dataset, "foreground"):
            self.foreground = dataset.foreground

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, here, in workers that already run, and in the wrapped data set."""
        self._epoch.fill_(epoch)
        _forward_epoch(self.dataset, epoch)

    def __getitem__(self, index: int) -> Sample | None:
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self._read(index)
        if sample is None and self.train:  # the next readable one instead: training batches keep their size
            others = (self._read((index + step) % len(self)) for step in range(1, len(self)))
            sample = next((other for other in others if other is not None), None)
        return sample

    def _read(self, index: int) -> Sample | None:
        epoch = int(self._epoch)
        _forward_epoch(self.dataset, epoch)
        entropy = (self.seed, int(self.train), epoch if self.train else 0, index)
        with reproducible(*entropy):
            try:
                content, label = self.dataset[index]
                pictures = [self._converted(image) for image in (content if isinstance(content, tuple) else [content])]
            except InputError:  # a ValueError, but about the data set, not about one file
                raise
            except UNREADABLE as error:
                self._report(index, error)
                return None
            if isinstance(content, tuple):
                return self._spectra(pictures, index, entropy), as_label(label), index
            (picture,) = pictures
            assert picture is not None
            tensor = _transformed(self.transform, picture, self._name(index), self.train)
            return tensor, as_label(label), index

    def _converted(self, image: object) -> Image.Image | None:
        return None if image is None else convert_picture(_checked_image(image), _channels(self.transform))

    def _spectra(self, pictures: Sequence[Image.Image | None], index: int, entropy: tuple[int, ...]) -> torch.Tensor:
        """Return the pictures of a sample as ``(M, C, H, W)``, transformed by the same draws; zeros for None."""
        tensors: list[torch.Tensor | None] = []
        for picture in pictures:
            with reproducible(*entropy, 1):
                name = self._name(index)
                tensors.append(None if picture is None else _transformed(self.transform, picture, name, self.train))
        blank = next((torch.zeros_like(tensor) for tensor in tensors if tensor is not None), None)
        if blank is None:
            raise InputError(f"{self._name(index)}: the data set gives no picture of any spectrum.")
        return torch.stack([blank if tensor is None else tensor for tensor in tensors])

    def _name(self, index: int) -> str:
        return _path(self.dataset, index) or f"image {index}"

    def _report(self, index: int, error: Exception) -> None:
        if self.corrupt == "stop":
            _refuse(self._name(index), error)
        if not self._warned[index]:
            self._warned[index] = True
            warnings.warn(_skipped(self._name(index), error), stacklevel=4)


class StreamSamples(IterableDataset[Sample]):
    """A stream of ``(PIL image, label)`` that yields ``(tensor, label, index)``.

    The index is unique over the loader's workers and over processes, provided that the stream hands
    each of them a part of its own, as timm's do. The randomness of a sample depends on
    ``(seed, epoch, index)``, so it changes with the number of workers. There is no length: how many
    samples a stream gives is known for certain only at its end.

    Args:
        dataset: yields ``(PIL image, label)``; may also have ``set_epoch(epoch)``.
        transform: as in :class:`Samples`.
        seed: not negative.
        train: whether ``set_epoch`` changes the randomness; otherwise epochs are all alike.
        corrupt: ``"stop"`` raises an error at an image that cannot be converted; ``"skip"`` warns and leaves it out.
    """

    def __init__(
        self, dataset: IterableDataset[Any], transform: Transform, seed: int, train: bool, corrupt: str = "stop"
    ) -> None:
        self.dataset: Any = dataset
        self.transform = transform
        self.seed = seed
        self.train = train
        self.corrupt = corrupt
        self._epoch = _shared_zeros(1, torch.int64)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._rank = torch.distributed.get_rank() if distributed else 0
        self._processes = torch.distributed.get_world_size() if distributed else 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, here, in workers that already run, and in the wrapped stream."""
        self._epoch.fill_(epoch)
        _forward_epoch(self.dataset, epoch)

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch = int(self._epoch) if self.train else 0
        if self.train:
            _forward_epoch(self.dataset, epoch)  # which a worker that already ran was not told
        for position, (image, label) in enumerate(self.dataset):
            index = (position * self._processes + self._rank) * workers + number
            name = f"image {index} of the stream"
            checked = _checked_image(image)
            try:
                picture = convert_picture(checked, _channels(self.transform))
            except UNREADABLE as error:
                if self.corrupt == "stop":
                    _refuse(name, error)
                warnings.warn(_skipped(name, error), stacklevel=2)
                continue
            with reproducible(self.seed, int(self.train), epoch, index):
                tensor = _transformed(self.transform, picture, name, self.train)
            yield tensor, as_label(label), index


@contextmanager
def reproducible(*entropy: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch's CPU; put them back on leaving.

    Example:
        >>> with reproducible(0, 1):
        ...     first = random.random()
        >>> with reproducible(0, 1):
        ...     random.random() == first
        True
    """
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seeds = [int(word) for word in np.random.SeedSequence(entropy).generate_state(3)]
    random.seed(seeds[0])
    np.random.seed(seeds[1])  # noqa: NPY002  transforms of timm draw from it
    torch.default_generator.manual_seed(seeds[2])  # torch.manual_seed would seed the caller's GPU too
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)


def collate(samples: Sequence[Sample | None]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Stack samples into images ``(B, C, H, W)``, labels ``(B,)`` and indices ``(B,)``, without skipped ones.

    Returns:
        The three, or None where every sample was skipped.

    Example:
        >>> _, labels, _ = collate([(torch.zeros(3, 2, 2), 4, 0), None, (torch.ones(3, 2, 2), 7, 2)])
        >>> labels
        tensor([4, 7])
    """
    readable = [sample for sample in samples if sample is not None]
    if not readable:
        return None
    images, labels, indices = default_collate(readable)
    return images, labels, indices


def as_label(value: Any) -> int:
    """Return a class label as int.

    Raises:
        InputError: it is something else than one whole number.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(
            f"a label is one whole number, but this data set gives {type(value).__name__}: {value!r}."
        ) from None


def _channels(transform: Transform) -> int:
    return getattr(transform, "channels", 3)


def _transformed(transform: Transform, picture: Image.Image, name: str, train: bool) -> torch.Tensor:
    what = "the augmentation (data.augmentation)" if train else "preparing it for the model"
    return apply_transform(transform, picture, name, what)


def _refuse(name: str, error: Exception) -> NoReturn:
    raise InputError(f"{name} cannot be read: {error}. Replace or remove it, or set data.corrupt=skip.") from error


def _skipped(name: str, error: Exception) -> str:
    return f"{name} is skipped, it cannot be read: {error}"


def _checked_image(image: object) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise InputError(f"this data set gives {type(image).__name__} where a PIL image was expected.")
    return image


def _shared_zeros(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Return zeros that workers share: those that persist over epochs keep their copy of a data set."""
    zeros = torch.zeros(size, dtype=dtype)
    zeros.untyped_storage().share_memory_()
    return zeros


def _forward_epoch(dataset: Any, epoch: int) -> None:
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)


def _path(dataset: Any, index: int) -> str | None:
    if callable(getattr(dataset, "path", None)):
        path = dataset.path(index)
        return None if path is None else str(path)
    # where the data sets of torchvision keep their paths, alone or with labels
    for attribute in ("samples", "_samples", "imgs", "_image_files", "_images", "images", "data"):
        entries = getattr(dataset, attribute, None)
        if isinstance(entries, Sequence) and index < len(entries):
            entry = entries[index][0] if isinstance(entries[index], tuple) else entries[index]
            if isinstance(entry, str | PathLike):
                return str(entry)
    return None
