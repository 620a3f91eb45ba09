"""The made-up people in three spectra: who differs from whom in what, and what is bad when."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest

from dynavit.data.quickstart_spectra import FAMILY, SPECTRA, SyntheticSpectra
from dynavit.errors import InputError


@pytest.fixture(scope="module")
def test_split() -> SyntheticSpectra:
    return SyntheticSpectra(False)


def as_somebody_else(data: SyntheticSpectra, index: int, identity: int) -> np.ndarray:
    """Return the pictures of a sample with another person in the same pose and place."""
    own = data.identities[index]
    places = data._places.copy()
    data.identities[index], data._places[identity] = identity, places[own]
    pictures = data.draw(index)[0]
    data.identities[index], data._places[...] = own, places
    return pictures


def test_sizes_and_order(test_split: SyntheticSpectra) -> None:
    assert len(SyntheticSpectra(True)) == 1200
    assert len(test_split) == 48 * 4 * 4
    assert test_split.num_query == 48 * 4
    pictures, identity = test_split[5]
    assert len(pictures) == len(SPECTRA) == 3
    assert all(picture.size == (48, 96) for picture in pictures)
    assert identity == 1
    with pytest.raises(IndexError):
        test_split.draw(len(test_split))
    with pytest.raises(InputError, match="test_identities must be at least 2"):
        SyntheticSpectra(False, 1)


def test_drawn_anew_in_each_epoch_and_never_otherwise(test_split: SyntheticSpectra) -> None:
    train = SyntheticSpectra(True, 8)
    before = train.draw(3)[0]
    assert np.array_equal(SyntheticSpectra(True, 8).draw(3)[0], before)
    train.set_epoch(1)
    assert not np.array_equal(train.draw(3)[0], before)
    fixed = test_split.draw(3)[0]
    test_split.set_epoch(1)
    assert np.array_equal(test_split.draw(3)[0], fixed)
    assert not np.array_equal(SyntheticSpectra(True, 8, seed=1).draw(3)[0], before)


def test_infrared_has_no_colours(test_split: SyntheticSpectra) -> None:
    pictures = np.stack([test_split.draw(index)[0] for index in range(20)]).astype(int)
    spread = (pictures.max(axis=-1) - pictures.min(axis=-1)).mean(axis=(0, 2, 3))
    assert spread[0] > 10
    assert spread[1] == spread[2] == 0


def test_two_of_a_family_differ_where_it_says(test_split: SyntheticSpectra) -> None:
    """The second, third and fourth from the first in one spectrum, from each other in two."""
    for family in range(48 // FAMILY):
        looks = [[repr(asdict(one)) for one in of] for of in test_split.spectral[family * FAMILY :][:FAMILY]]
        for first, second in combinations(range(FAMILY), 2):
            differ = {spectrum for spectrum in range(3) if looks[first][spectrum] != looks[second][spectrum]}
            assert differ == {member - 1 for member in (first, second) if member}
    assert len({repr(asdict(of[0])) for of in test_split.spectral}) == 2 * 48 // FAMILY


def test_in_other_spectra_their_pictures_are_the_same(test_split: SyntheticSpectra) -> None:
    for index in (0, 16, 33):  # of first members
        own = test_split.identities[index]
        assert own % FAMILY == 0
        pictures = test_split.draw(index)[0]
        assert np.array_equal(as_somebody_else(test_split, index, own), pictures)
        for member in range(1, FAMILY):
            other = as_somebody_else(test_split, index, own + member)
            same = [np.array_equal(a, b) for a, b in zip(pictures, other, strict=True)]
            assert same == [spectrum != member - 1 for spectrum in range(3)]


def test_the_person_stands_at_the_same_place_in_all(test_split: SyntheticSpectra) -> None:
    """A thermal camera sees somebody warm in front of something cool, where the mask says."""
    found = []
    for index in range(40):
        pictures, mask, _ = test_split.draw(index)
        assert np.array_equal(test_split.foreground(index), mask)
        assert 0.1 < mask.mean() < 0.6
        thermal = pictures[2, ..., 0].astype(float)
        found.append(thermal[mask].mean() - thermal[~mask].mean())
    assert np.mean(np.array(found) > 0) > 0.95


def test_one_spectrum_is_bad_in_three_of_ten_samples() -> None:
    data = SyntheticSpectra(True, 40)
    dark, flat = 0, 0
    for index in range(len(data)):
        pictures = data.draw(index)[0].astype(float)
        dark += pictures[0].max() < 80
        flat += np.percentile(pictures[2], 98) - np.percentile(pictures[2], 2) < 45
    assert 0.06 < dark / len(data) < 0.14
    assert 0.06 < flat / len(data) < 0.14
