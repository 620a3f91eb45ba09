"""How training gets its batches: of streams, and from workers that stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data import IterableImageDataset
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import dynavit
from dynavit.config import Config
from dynavit.data import sources
from dynavit.data.samples import StreamSamples
from dynavit.data.transforms import create_transforms
from dynavit.runs.loading import make_loader
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


class Reader:
    """A reader of ``count`` pictures, as bright as its epoch, which it does not share with workers."""

    epoch = 0

    def __init__(self, count: int) -> None:
        self.count = count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(start, self.count, step):
            yield Image.new("RGB", (32, 32), (10 * self.epoch,) * 3), number % 3


def streamed(monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Let timm's streams give so many pictures; returns what makes a configuration use one."""

    def create(name: str, root: str | None, **options: Any) -> IterableImageDataset:
        return IterableImageDataset(root=root, reader=Reader(count))

    monkeypatch.setattr(sources, "create_dataset", create)
    return ["data.name=wds/toy", "data.options={num_classes: 3}", "train.steps_per_epoch=3", "train.epochs=2"]


def test_streams_give_whole_batches(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixup exchanges halves: of 17 images, the last one has no other."""
    trainer = Trainer(tiny(*streamed(monkeypatch, 17), "data.mixup=0.8"))
    trainer.fit()
    assert trainer.progress.step == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_without_a_batch_is_refused(tiny: Make, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    trainer = Trainer(tiny(*streamed(monkeypatch, 7 if workers == 0 else 14), f"data.workers={workers}"))
    message = rf"^data.batch_size=8: the training stream of data.name=wds/toy is too short.*workers={max(workers, 1)}; "
    with pytest.raises(dynavit.InputError, match=message):
        trainer.fit()


def test_workers_that_stay_learn_of_the_epoch() -> None:
    _, plain = create_transforms((32, 32), (0.0,) * 3, (1.0,) * 3, "bilinear", 1.0, augmentation=None)
    stream = StreamSamples(IterableImageDataset(root=None, reader=Reader(4)), plain, 0, True)
    loader = make_loader(stream, 2, 1, lasting=True)
    for epoch in (0, 1, 2):
        stream.set_epoch(epoch)
        levels = torch.cat([images[:, 0, 0, 0] for images, *_ in loader])
        torch.testing.assert_close(levels, torch.full((4,), 10 * epoch / 255))


def test_workers_of_a_training_start_once(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    begin = _MultiProcessingDataLoaderIter.__init__

    def counted(self: Any, loader: Any) -> None:
        started.append(loader)
        begin(self, loader)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__init__", counted)
    trainer = Trainer(tiny("data.workers=1", "train.epochs=3"))
    trainer.fit()
    assert len(started) == 2  # training and validation
    for loader in (trainer.batches.loader, trainer.setup.validation):
        assert (loader.persistent_workers, loader.pin_memory) == (True, torch.cuda.is_available())
    once = make_loader(trainer.setup.data.train, 8, 1)  # ends with its only pass
    assert (once.persistent_workers, once.pin_memory) == (False, False)
