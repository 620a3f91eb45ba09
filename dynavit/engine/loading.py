"""Batches, for any number of processes."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from dynavit.data.classification import collate


def make_loader(
    dataset: Dataset[Any], batch_size: int, workers: int, sampler: Sampler[int] | None = None
) -> DataLoader[Any]:
    """Return a loader: of whole batches in the sampler's order, or of everything in order."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=sampler is not None,
        num_workers=workers,
        collate_fn=collate,
    )


def prepare_loader(accelerator: Accelerator, loader: DataLoader[Any]) -> Any:
    """Give each process its own batches.

    Streams are left as they are: timm's readers hand each process its part already, and Accelerate
    would divide that once more.
    """
    return loader if isinstance(loader.dataset, IterableDataset) else accelerator.prepare(loader)


def first_images(dataset: Any, count: int) -> list[Tensor]:
    """Return the first readable images ``(3, H, W)`` of a data set, ``count`` at most."""
    if isinstance(dataset, IterableDataset):
        samples = (sample for _, sample in zip(range(count), dataset, strict=False))
    else:
        samples = (dataset[number] for number in range(min(count, len(dataset))))
    return [sample[0] for sample in samples if sample is not None]
