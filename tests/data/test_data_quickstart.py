from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dynavit.data.quickstart import CANVAS, CLASS_NAMES, ClutteredDigits


@pytest.fixture(scope="module")
def train() -> ClutteredDigits:
    return ClutteredDigits(train=True, size=40)


@pytest.fixture(scope="module")
def held_out() -> ClutteredDigits:
    return ClutteredDigits(train=False, size=40)


def canvases(data: ClutteredDigits, epoch: int) -> np.ndarray:
    data.set_epoch(epoch)
    drawn = np.stack([data.draw(index)[0] for index in range(8)])
    data.set_epoch(0)
    return drawn


def test_the_splits_share_no_digit(train: ClutteredDigits, held_out: ClutteredDigits):
    mine, theirs = ({ink.tobytes() for ink in data.ink} for data in (train, held_out))
    assert len(train.ink) + len(held_out.ink) == 1797
    assert not mine & theirs
    assert train.ink.shape[1:] == (8, 8)
    assert set(train.labels) == set(held_out.labels) == set(range(len(CLASS_NAMES)))


def test_only_training_canvases_change_with_the_epoch(train: ClutteredDigits, held_out: ClutteredDigits):
    first, second = canvases(train, 0), canvases(train, 1)
    assert all((a != b).any() for a, b in zip(first, second, strict=True))
    np.testing.assert_array_equal(canvases(train, 1), second)
    np.testing.assert_array_equal(canvases(held_out, 0), canvases(held_out, 5))


def test_a_canvas_is_a_function_of_seed_epoch_and_index(train: ClutteredDigits):
    again = ClutteredDigits(train=True, size=99)
    again.draw(50)  # what was drawn before has no influence
    for ours, theirs in zip(train.draw(3), again.draw(3), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (train.draw(3)[0] != train.draw(4)[0]).any()
    assert (train.draw(3)[0] != ClutteredDigits(train=True, seed=1).draw(3)[0]).any()


@pytest.mark.parametrize("is_train", [True, False])
def test_the_foreground_is_where_the_digit_is(is_train: bool):
    data = ClutteredDigits(is_train, fragments=0)  # nothing but a digit on a dark background
    for index in range(20):
        canvas, mask, _ = data.draw(index)
        brightness = canvas.astype(float).mean(-1)
        assert mask.shape == (CANVAS, CANVAS)
        np.testing.assert_array_equal(data.foreground(index), mask)
        assert brightness[mask].mean() > brightness[~mask].mean() + 40
        assert not (~mask & (brightness > 165)).any()  # all of the digit's ink lies inside
        assert brightness[mask].min() > np.median(brightness[~mask])


def test_the_digit_lies_over_the_fragments():
    plain, cluttered = ClutteredDigits(True, fragments=0), ClutteredDigits(True, fragments=6)
    numbers = []
    for index in range(30):
        canvas, mask, _ = cluttered.draw(index)
        assert canvas[mask].mean() > np.median(canvas[~mask]) + 40
        numbers.append(((canvas.mean(-1) > 165) & ~mask).sum())
    assert max(numbers) > 60  # the clutter is bright too
    assert not any(((plain.draw(i)[0].mean(-1) > 165) & ~plain.draw(i)[1]).any() for i in range(30))


def test_items_are_images_with_labels(train: ClutteredDigits):
    image, label = train[5]
    canvas, _, expected = train.draw(5)
    assert isinstance(image, Image.Image)
    np.testing.assert_array_equal(np.asarray(image), canvas)
    assert label == expected
    assert len({train[index][1] for index in range(40)}) > 5
    assert ClutteredDigits(True, size=3, transform=lambda image: image.size)[0][0] == (CANVAS, CANVAS)


def test_indices_outside_are_refused(train: ClutteredDigits):
    assert len(train) == 40
    for index in (-1, 40):
        with pytest.raises(IndexError):
            train[index]
        with pytest.raises(IndexError):
            train.foreground(index)


def test_default_sizes():
    assert (len(ClutteredDigits(True)), len(ClutteredDigits(False))) == (12_800, 2_000)
