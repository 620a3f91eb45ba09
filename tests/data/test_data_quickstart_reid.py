"""Synthetic identities: reproducible, apart in the two splits, recognisable by the person and not by the scene."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dynavit.data.quickstart_reid import HEIGHT, NUM_CAMERAS, WIDTH, SyntheticIdentities
from dynavit.errors import InputError


@pytest.fixture(scope="module")
def train() -> SyntheticIdentities:
    return SyntheticIdentities(True, num_identities=5)


@pytest.fixture(scope="module")
def test() -> SyntheticIdentities:
    return SyntheticIdentities(False)


@pytest.fixture(scope="module")
def drawn(test: SyntheticIdentities) -> list[tuple[np.ndarray, np.ndarray, int]]:
    return [test.draw(index) for index in range(len(test))]


def pictures(data: SyntheticIdentities, epoch: int) -> np.ndarray:
    data.set_epoch(epoch)
    drawn = np.stack([data.draw(index)[0] for index in range(8)])
    data.set_epoch(0)
    return drawn


def mean_average_precision(features: np.ndarray, data: SyntheticIdentities, same_camera_counts: bool = False) -> float:
    """Return the mAP in percent of a search by Euclidean distance."""
    n, who, camera = data.num_query, np.array(data.identities), np.array(data.cameras)
    squares = np.square(features).sum(1)
    distances = squares[:n, None] + squares[None, n:] - 2 * features[:n] @ features[n:].T
    precisions = []
    for query in range(n):
        same = who[n:] == who[query]
        valid = np.full(len(same), True) if same_camera_counts else ~(same & (camera[n:] == camera[query]))
        order = np.argsort(distances[query][valid], kind="stable")
        ranks = np.flatnonzero(same[valid][order])
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1)))
    return 100 * float(np.mean(precisions))


def coarse(images: list[np.ndarray]) -> np.ndarray:
    """Return the mean colours of 8 x 8 areas ``(n, 192)``."""
    small = [Image.fromarray(image).resize((8, 8), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image, np.float64).ravel() / 255 for image in small])


def per_camera(features: np.ndarray, data: SyntheticIdentities) -> np.ndarray:
    """Take out what all pictures of a camera have in common."""
    camera, result = np.array(data.cameras), features.copy()
    for number in range(NUM_CAMERAS):
        mine = camera == number
        result[mine] = (features[mine] - features[mine].mean(0)) / (features[mine].std(0) + 1e-6)
    return result


def test_sizes_and_order(train: SyntheticIdentities, test: SyntheticIdentities) -> None:
    assert (len(SyntheticIdentities(True)), len(test), test.num_query) == (1200, 800, 200)
    assert train.identities == [who for who in range(5) for _ in range(12)]
    assert train.cameras == [0, 1, 2, 3] * 15
    queries = list(zip(test.identities[:200], test.cameras[:200], strict=True))
    gallery = list(zip(test.identities[200:], test.cameras[200:], strict=True))
    assert queries == [(who, camera) for who in range(50) for camera in range(4)]
    assert gallery == [seen for seen in queries for _ in range(3)]


def test_a_picture_is_a_function_of_seed_epoch_and_index(train: SyntheticIdentities) -> None:
    again = SyntheticIdentities(True, num_identities=9)
    again.draw(50)  # what was drawn before has no influence
    for ours, theirs in zip(train.draw(3), again.draw(3), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (train.draw(3)[0] != train.draw(4)[0]).any()
    assert (train.draw(3)[0] != SyntheticIdentities(True, seed=1).draw(3)[0]).any()


def test_only_training_pictures_change_with_the_epoch(train: SyntheticIdentities, test: SyntheticIdentities) -> None:
    first, second = pictures(train, 0), pictures(train, 1)
    assert all((a != b).any() for a, b in zip(first, second, strict=True))
    np.testing.assert_array_equal(pictures(train, 1), second)
    np.testing.assert_array_equal(pictures(test, 0), pictures(test, 5))


def test_the_splits_share_no_identity_and_all_identities_differ(test: SyntheticIdentities) -> None:
    everyone = SyntheticIdentities(True).looks + test.looks
    assert len({looks.shirt.tobytes() + looks.trousers.tobytes() for looks in everyone}) == 150

    # not by tiny differences of colour alone: the marks that one would name differ too
    def named(looks: object) -> tuple[object, ...]:
        colours = [tuple(np.round(looks.shirt.ravel() * 3)), tuple(np.round(looks.trousers * 3))]  # type: ignore[attr-defined]
        return (
            *colours,
            *(getattr(looks, mark) for mark in ("texture", "period", "angle", "badge", "badge_at", "hem")),
        )

    assert len({named(looks) for looks in everyone}) == 150


def test_the_foreground_is_the_person(test: SyntheticIdentities) -> None:
    shares = []
    for index in range(200, 260):
        picture, mask, who = test.draw(index)
        np.testing.assert_array_equal(test.foreground(index), mask)
        assert picture.shape == (HEIGHT, WIDTH, 3)
        assert mask.shape == (HEIGHT, WIDTH)
        assert who == test.identities[index]
        shares.append(mask.mean())
    assert 0.25 < np.mean(shares) < 0.5
    assert min(shares) > 0.1


def test_pixels_alone_do_not_solve_it_and_the_same_camera_rule_matters(
    test: SyntheticIdentities, drawn: list[tuple[np.ndarray, np.ndarray, int]]
) -> None:
    features = coarse([picture for picture, _, _ in drawn])
    assert mean_average_precision(features, test) < 10  # chance is 2.4
    # with matches by the query's own camera, places would be taken for people
    assert mean_average_precision(features, test, same_camera_counts=True) > 15


def test_the_person_tells_the_identity_and_the_scene_does_not(
    test: SyntheticIdentities, drawn: list[tuple[np.ndarray, np.ndarray, int]]
) -> None:
    person = coarse([np.where(mask[..., None], picture, 128).astype(np.uint8) for picture, mask, _ in drawn])
    scene = coarse([np.where(mask[..., None], 128, picture).astype(np.uint8) for picture, mask, _ in drawn])
    by_person = mean_average_precision(per_camera(person, test), test)
    by_scene = mean_average_precision(per_camera(scene, test), test)
    assert by_person > 18
    assert by_scene < 3.5  # chance is 2.4
    assert mean_average_precision(per_camera(scene, test), test, same_camera_counts=True) > 2 * by_scene


def test_items_are_images_with_identities(train: SyntheticIdentities) -> None:
    image, identity = train[25]
    assert isinstance(image, Image.Image)
    np.testing.assert_array_equal(np.asarray(image), train.draw(25)[0])
    assert identity == 2
    assert SyntheticIdentities(True, 2, transform=lambda image: image.size)[0][0] == (WIDTH, HEIGHT)


def test_indices_and_sizes_that_cannot_be(train: SyntheticIdentities) -> None:
    for index in (-1, 60):
        with pytest.raises(IndexError):
            train[index]
    with pytest.raises(InputError, match=r"data.options.train_identities must be at least 2, got 1"):
        SyntheticIdentities(True, 1)
    with pytest.raises(InputError, match=r"data.options.test_identities must be at least 2, got 0"):
        SyntheticIdentities(False, 0)
    with pytest.raises(InputError, match=r"data.options.gallery_per_camera must be at least 1, got 0"):
        SyntheticIdentities(False, gallery_per_camera=0)
