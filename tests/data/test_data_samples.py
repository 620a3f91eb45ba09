from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IterableImageDataset
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from dynavit.data.samples import Samples, StreamSamples, as_label, collate
from dynavit.data.transforms import Preparation
from dynavit.errors import InputError


def plain(image: Image.Image) -> torch.Tensor:
    return pil_to_tensor(image).float()


def noisy(image: Image.Image) -> torch.Tensor:
    """Return the first pixel with one random number of each generator behind it."""
    draws = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
    return torch.cat([plain(image)[:, 0, 0], torch.tensor(draws, dtype=torch.float64)])


class Greys(Dataset[Any]):
    """Image i is grey of level i, its label is i % 3."""

    def __init__(self, size: int = 6) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (4, 4), index), index % 3


class Epochs(Greys):
    """Shows the epoch in which it was read, and is random in itself."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (4, 4), (self.epoch, random.randrange(256), index)), 0

    def foreground(self, index: int) -> np.ndarray:
        return np.full((4, 4), index == 2)


def read(samples: Dataset[Any], workers: int = 0, **options: Any) -> dict[int, torch.Tensor]:
    loader = DataLoader(samples, batch_size=2, num_workers=workers, collate_fn=collate, **options)
    return {int(index): image for images, _, indices in loader for image, index in zip(images, indices, strict=True)}


def states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_images_are_rgb_and_labels_and_indices_theirs():
    image, label, index = Samples(Greys(), plain, seed=0, train=True)[5]
    assert torch.equal(image, torch.full((3, 4, 4), 5.0))
    assert (label, index) == (2, 5)


def test_randomness_does_not_depend_on_workers_or_order():
    samples = Samples(Epochs(), noisy, seed=3, train=True)
    samples.set_epoch(2)
    alone = {index: samples[index][0] for index in (4, 1, 0, 5, 3, 2)}
    for workers in (0, 1, 2):
        random.seed(workers)  # of no influence either
        torch.manual_seed(workers)
        found = read(samples, workers)
        assert found.keys() == alone.keys()
        assert all(torch.equal(found[index], alone[index]) for index in alone)


def test_every_generator_depends_on_seed_epoch_and_index():
    def draws(seed: int, epoch: int, index: int) -> torch.Tensor:
        samples = Samples(Greys(), noisy, seed, train=True)
        samples.set_epoch(epoch)
        return samples[index][0][3:]

    first = draws(0, 0, 0)
    assert torch.equal(first, draws(0, 0, 0))
    for other in (draws(1, 0, 0), draws(0, 1, 0), draws(0, 0, 1)):
        assert (first != other).all()


def test_validation_is_the_same_in_every_epoch():
    samples = Samples(Greys(), noisy, seed=0, train=False)
    before = samples[3][0]
    samples.set_epoch(7)
    assert torch.equal(before, samples[3][0])


def test_the_callers_generators_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    def reseeded(seed: int) -> None:
        raise AssertionError("the generators of the GPU belong to the caller")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded)
    samples = Samples(Greys(), noisy, seed=0, train=True)
    before = states()
    samples[0]
    assert states() == before
    failing = Samples(Greys(), lambda image: noisy(image).reshape(100), seed=0, train=True)
    with pytest.raises(InputError, match=r"^image 0: the augmentation \(data\.augmentation\) failed: .*shape"):
        failing[0]
    assert states() == before


def test_set_epoch_reaches_the_wrapped_set_and_running_workers():
    samples = Samples(Epochs(), plain, seed=0, train=True)
    assert samples[0][0][0, 0, 0] == 0
    loader = DataLoader(samples, num_workers=1, persistent_workers=True, collate_fn=collate)
    for epoch in (3, 4):
        samples.set_epoch(epoch)
        assert samples.dataset.epoch == epoch
        assert {float(images[0, 0, 0, 0]) for images, _, _ in loader} == {epoch}


def test_foreground_is_there_if_the_wrapped_set_has_it():
    assert not hasattr(Samples(Greys(), plain, 0, True), "foreground")
    samples = Samples(Epochs(), plain, 0, True)
    assert samples.foreground(2).all()
    assert not samples.foreground(1).any()


def test_indices_outside_are_refused():
    samples = Samples(Greys(6), plain, 0, True)
    for index in (-1, 6):
        with pytest.raises(IndexError):
            samples[index]
    assert len(list(samples)) == len(samples) == 6


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Folder of one class: a good image, one cut short, a text file, a good image."""
    folder = tmp_path / "class"
    folder.mkdir()
    Image.new("RGB", (4, 4), "red").save(folder / "a.png")
    Image.effect_noise((60, 60), 90).save(folder / "b.jpg")
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:900])
    (folder / "c.png").write_text("not an image")
    Image.new("RGB", (4, 4), "blue").save(folder / "d.png")
    return tmp_path


def test_a_broken_file_stops_with_its_path(broken: Path):
    samples = Samples(ImageFolder(str(broken)), plain, 0, True)
    assert samples[0][0][0].min() == 255
    for index, name in ((1, "b.jpg"), (2, "c.png")):
        with pytest.raises(InputError, match=rf"{name} cannot be read: .*data\.corrupt=skip"):
            samples[index]
    (broken / "class/d.png").unlink()
    with pytest.raises(InputError, match=r"d\.png cannot be read"):
        samples[3]


def test_broken_files_are_skipped_with_one_warning_each(broken: Path):
    samples = Samples(ImageFolder(str(broken)), plain, 0, False, corrupt="skip")
    loader = DataLoader(samples, batch_size=4, collate_fn=collate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            ((images, labels, indices),) = loader
            assert indices.tolist() == [0, 3]
            assert labels.tolist() == [0, 0]
            assert images[:, 2, 0, 0].tolist() == [0, 255]
    assert [next(name for name in ("b.jpg", "c.png") if name in str(w.message)) for w in caught] == [
        "b.jpg",
        "c.png",
    ]


def test_training_takes_the_next_readable_image_instead(broken: Path):
    samples = Samples(ImageFolder(str(broken)), plain, 0, True, corrupt="skip")
    with pytest.warns(UserWarning, match="is skipped"):
        assert [samples[index][2] for index in range(4)] == [0, 3, 3, 3]
    nothing = Samples(ImageFolder(str(broken)), plain, 0, True, corrupt="skip")
    nothing.dataset.samples = nothing.dataset.samples[1:3]
    with pytest.warns(UserWarning, match="is skipped"):
        assert nothing[0] is None


def test_what_workers_warned_of_is_not_warned_of_again(broken: Path):
    samples = Samples(ImageFolder(str(broken)), plain, 0, False, corrupt="skip")
    assert set(read(samples, workers=2)) == {0, 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert samples[1] is None


def test_where_torchvision_keeps_its_paths():
    class Listed(Greys):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(2)
            vars(self).update(attributes)

        def __getitem__(self, index: int) -> Any:
            raise OSError("broken")

    paths = ["x/0.jpg", Path("x/1.jpg")]
    for attributes in (
        {"_samples": [(path, 0) for path in paths]},
        {"_image_files": paths},
        {"_images": paths},
        {"data": paths},
    ):
        with pytest.raises(InputError, match=r"x.1\.jpg cannot be read: broken"):
            Samples(Listed(**attributes), plain, 0, True)[1]
    for attributes in ({}, {"data": np.zeros((2, 4, 4, 3))}):
        with pytest.raises(InputError, match=r"^image 1 cannot be read"):
            Samples(Listed(**attributes), plain, 0, True)[1]


@pytest.mark.parametrize("error", [OSError, SyntaxError, ValueError, Image.DecompressionBombError])
def test_what_pillow_says_of_broken_files(error: type[Exception]):
    class Broken(Greys):
        def __getitem__(self, index: int) -> Any:
            raise error("broken chunk")

    with pytest.raises(InputError, match="image 3 cannot be read: broken chunk"):
        Samples(Broken(), plain, 0, True)[3]


def test_errors_of_the_code_are_passed_on():
    class Broken(Greys):
        def __getitem__(self, index: int) -> Any:
            raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        Samples(Broken(), plain, 0, True, corrupt="skip")[3]


def test_mistakes_in_a_data_set_are_not_taken_for_broken_files():
    class Wrong(Greys):
        def __init__(self, answer: Any) -> None:
            super().__init__(1)
            self.answer = answer

        def __getitem__(self, index: int) -> Any:
            return self.answer

    image = Image.new("RGB", (4, 4))
    with pytest.raises(InputError, match=r"gives ndarray where a PIL image was expected"):
        Samples(Wrong((np.zeros((4, 4, 3)), 0)), plain, 0, True, corrupt="skip")[0]
    with pytest.raises(InputError, match="a label is one whole number, but this data set gives dict"):
        Samples(Wrong((image, {"boxes": []})), plain, 0, True, corrupt="skip")[0]
    with pytest.raises(InputError, match=r"'stop' or 'skip', got 'ignore'"):
        Samples(Greys(), plain, 0, True, corrupt="ignore")


def test_labels():
    assert [as_label(value) for value in (3, np.int64(3), torch.tensor(3), np.array([3])[0])] == [3] * 4
    for value in (None, 1.5, "3", (1, 2), torch.tensor([1, 2])):
        with pytest.raises(InputError, match="one whole number"):
            as_label(value)


def test_collate_drops_skipped_samples():
    images, labels, indices = collate([None, (torch.ones(3, 2, 2), 4, 9), (torch.zeros(3, 2, 2), 1, 7), None])
    assert torch.equal(images, torch.stack([torch.ones(3, 2, 2), torch.zeros(3, 2, 2)]))
    assert (labels.tolist(), indices.tolist()) == ([4, 1], [9, 7])
    assert labels.dtype == indices.dtype == torch.int64
    assert collate([None, None]) is None


class Reader:
    """A reader as timm's are: workers share its images out among themselves."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for level in range(start, 7, step):
            yield Image.new("L", (4, 4), level + 10 * self.epoch), level % 2


def stream(train: bool = True, seed: int = 0) -> StreamSamples:
    return StreamSamples(IterableImageDataset(root=None, reader=Reader()), noisy, seed, train)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_every_image_once_under_its_own_index(workers: int):
    batches = list(DataLoader(stream(), batch_size=2, num_workers=workers, collate_fn=collate))
    levels = torch.cat([images[:, 0] for images, _, _ in batches]).tolist()
    indices = torch.cat([indices for _, _, indices in batches]).tolist()
    labels = torch.cat([labels for _, labels, _ in batches]).tolist()
    assert sorted(levels) == list(range(7))
    assert labels == [level % 2 for level in levels]
    assert indices == levels  # because this reader's workers take turns


def test_a_streams_randomness_and_epoch():
    before = states()
    samples = stream()
    first, again = list(samples), list(samples)
    assert states() == before
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    samples.set_epoch(1)
    assert [int(image[0]) for image, _, _ in samples] == [10, 11, 12, 13, 14, 15, 16]  # the wrapped stream's
    assert all((a[0][3:] != b[0][3:]).all() for a, b in zip(first, samples, strict=True))
    assert all((a[0][3:] != b[0][3:]).all() for a, b in zip(first, stream(seed=1), strict=True))
    validation = stream(train=False)
    fixed = [image[3:] for image, _, _ in validation]
    validation.set_epoch(1)
    assert all(torch.equal(a, b[0][3:]) for a, b in zip(fixed, validation, strict=True))


def test_a_stream_does_not_touch_the_callers_generators_between_samples():
    random.seed(0)
    expected = [random.random() for _ in range(3)]
    random.seed(0)
    assert [random.random() for _, _ in zip(range(3), stream(), strict=False)] == expected


def test_a_stream_has_no_length():
    assert isinstance(stream(), IterableDataset)
    assert not hasattr(stream(), "__len__")


def failing(image: Image.Image) -> torch.Tensor:
    raise OSError("of the code, not of the file")


# torch waits 5 seconds for the worker of a loader that failed
@pytest.mark.parametrize(
    ("workers", "corrupt"), [(0, "stop"), (0, "skip"), pytest.param(1, "skip", marks=pytest.mark.slow)]
)
def test_a_transform_that_fails_is_not_taken_for_a_broken_file(broken: Path, workers: int, corrupt: str):
    for train, what in ((True, r"the augmentation \(data\.augmentation\)"), (False, "preparing it for the model")):
        samples = Samples(ImageFolder(str(broken)), failing, 0, train, corrupt)
        with pytest.raises(InputError, match=rf"a\.png: {what} failed: OSError: of the code"):
            list(DataLoader(samples, num_workers=workers, collate_fn=collate))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_have_the_channels_that_the_transform_says(channels: int):
    transform = Preparation(plain, channels)
    assert Samples(Greys(), transform, 0, True)[5][0].shape == (channels, 4, 4)
    assert next(iter(StreamSamples(Floats(), transform, 0, True)))[0].shape == (channels, 4, 4)


class Floats(IterableDataset[Any]):
    """A picture of 8 bits, one of floating-point numbers, one of 8 bits."""

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        for mode in ("L", "F", "L"):
            picture = Image.new(mode, (4, 4))
            picture.putpixel((1, 1), 1)
            yield picture, 0


def test_a_stream_with_pictures_of_unknown_range():
    with pytest.raises(InputError, match=r"^image 1 of the stream cannot be read: .*mode F.*from 0 to 1,"):
        list(StreamSamples(Floats(), plain, 0, True))
    with pytest.warns(UserWarning, match="image 1 of the stream is skipped"):
        kept = list(StreamSamples(Floats(), plain, 0, True, corrupt="skip"))
    assert [index for _, _, index in kept] == [0, 2]
    with pytest.raises(InputError, match="image 0 of the stream: the augmentation"):
        list(StreamSamples(Floats(), failing, 0, True, corrupt="skip"))
