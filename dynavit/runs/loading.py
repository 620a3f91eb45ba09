"""Batches, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset

from dynavit.config import Config
from dynavit.data.classification import collate
from dynavit.errors import InputError


class TrainingBatches:
    """The training batches of this process, of any epoch, from any batch on.

    Attributes:
        streams: the data set is a stream, which can be entered at its beginning only.
        batch_size: images a batch.
        length: batches an epoch, a multiple of the accumulation steps.

    Args:
        sampler: order of the images, with ``set_epoch``; None for streams.
        batch_size: see :func:`fitting_batch_size`.

    Raises:
        InputError: not one step of batches, or a stream of unknown length without ``steps_per_epoch``.
    """

    def __init__(self, accelerator: Accelerator, dataset: Any, sampler: Any, config: Config, batch_size: int) -> None:
        self.accelerator, self.dataset, self.sampler = accelerator, dataset, sampler
        self.streams = isinstance(dataset, IterableDataset)
        self.batch_size = batch_size
        # whole batches of streams too: mixup needs an even number, batch norm more than one image
        loader = make_loader(dataset, batch_size, config.data.workers, sampler, whole=True, lasting=True)
        self.loader = prepare_loader(accelerator, loader)
        self.length = self._length(config)

    def epoch(self, epoch: int, done: int) -> Iterator[Any]:
        """Yield the batches of an epoch, without the first ``done``."""
        loader = skip_first_batches(self.loader, done) if done and not self.streams else self.loader
        if not self.streams:
            # Accelerate counts iterations itself and would start again from 0 after a resume
            loader.set_epoch(epoch)
        # what Accelerate wraps is not always reached through it: not the data set on several processes,
        # nor the sampler when batches are skipped there
        self.dataset.set_epoch(epoch)
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)
        for number, batch in enumerate(loader, start=done):
            if number == self.length:
                return
            yield send_to_device(batch, self.accelerator.device)

    def _length(self, config: Config) -> int:
        limit, window = config.train.steps_per_epoch, config.train.accumulation_steps
        try:
            available = min(len(self.loader), limit or len(self.loader))
        except TypeError:  # a stream that does not know its length
            if limit is None:
                raise InputError(
                    f"data.name={config.data.name} is a stream of unknown length: set train.steps_per_epoch."
                ) from None
            available = limit
        if available < window:
            wanted = f"train.steps_per_epoch={limit}" if limit is not None and limit < window else "the training data"
            raise InputError(
                f"{wanted}: {available} batches of data.batch_size={self.batch_size} for each of "
                f"{self.accelerator.num_processes} process(es), which is less than one step of "
                f"train.accumulation_steps={window}; lower that."
            )
        return available - available % window


def fitting_batch_size(config: Config, images: int, processes: int) -> int:
    """Return ``data.batch_size``, or less where there are too few images for one step of every process.

    Mixup and cutmix, which exchange the two halves of a batch, keep it even.

    Raises:
        InputError: there are not enough images for the smallest batches.
    """
    window, pairs = config.train.accumulation_steps, bool(config.data.mixup or config.data.cutmix)
    size = min(config.data.batch_size, images // (processes * window))
    size -= size % 2 if pairs else 0
    if size < 1:
        raise InputError(
            f"the training split has only {images:,} images, which do not make a batch of {1 + pairs} for each of "
            f"{processes} process(es) and train.accumulation_steps={window}; lower these, or add images."
        )
    return size


def make_loader(
    dataset: Dataset[Any],
    batch_size: int,
    workers: int,
    sampler: Sampler[int] | None = None,
    *,
    whole: bool = False,
    lasting: bool = False,
) -> DataLoader[Any]:
    """Return a loader.

    Args:
        dataset: to load.
        batch_size: images a batch.
        workers: processes that load.
        sampler: order of the images; None for their own.
        whole: leave out a last batch that is smaller than the others.
        lasting: for every epoch of a training, so that workers stay, and memory that a GPU copies from is pinned.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=whole,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=lasting and workers > 0,
        pin_memory=lasting and torch.cuda.is_available(),
    )


def prepare_loader(accelerator: Accelerator, loader: DataLoader[Any]) -> Any:
    """Give each process its own batches.

    Streams are left as they are: timm's readers hand each process its part already, and Accelerate
    would divide that once more.
    """
    return loader if isinstance(loader.dataset, IterableDataset) else accelerator.prepare(loader)


def foreground_of(dataset: Any, preprocessing: dict[str, Any] | None, grid_size: tuple[int, int]) -> Any:
    """Return the function from a sample's index to its foreground mask, if masks fit what the model sees.

    They are over the whole picture, so they do not fit where evaluation crops, nor where the grid of
    patches does not divide it. Without ``preprocessing`` nothing is cropped.
    """
    foreground = getattr(dataset, "foreground", None)
    if foreground is None or (preprocessing is not None and preprocessing["crop_pct"] < 1):
        return None
    height, width = foreground(0).shape
    return None if height % grid_size[0] or width % grid_size[1] else foreground


def first_images(dataset: Any, count: int) -> list[Tensor]:
    """Return the first readable images ``(3, H, W)`` of a data set, ``count`` at most."""
    stream = isinstance(dataset, IterableDataset)
    samples = iter(dataset) if stream else (dataset[number] for number in range(len(dataset)))
    return list(islice((sample[0] for sample in samples if sample is not None), count))


def random_subset(dataset: Any, count: int | None, seed: int = 0) -> Subset[Any]:
    """Return the first ``count`` samples, or all, of a shuffle that is always the same for a seed."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return Subset(dataset, order[:count].tolist())


def random_samples(
    dataset: Any, count: int, batch_size: int, workers: int = 0, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Return some samples, the same ones at each call, as batches of images ``(B, 3, H, W)`` and indices ``(B,)``.

    They are spread over the whole data set, whose order mostly is that of the classes; of a stream they are the first.

    Args:
        dataset: yields ``(image, label, index)``, or None for what cannot be read.
        count: number of samples; fewer where there are no more.
        batch_size: of all batches but the last.
        workers: processes that read them.
        seed: another one chooses others.
    """
    if not isinstance(dataset, IterableDataset):
        dataset = random_subset(dataset, None, seed)  # all of it: some may be unreadable
    batches: list[tuple[Tensor, Tensor]] = []
    for batch in make_loader(dataset, min(batch_size, count), workers):
        missing = count - sum(len(indices) for _, indices in batches)
        if missing <= 0:
            break
        if batch is not None:
            images, _, indices = batch
            batches.append((images[:missing], indices[:missing]))
    return batches
