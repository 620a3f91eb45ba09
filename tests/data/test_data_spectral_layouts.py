"""Files of multi-spectral sets become samples of one image a spectrum, and what is missing is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dynavit.data.reid import ReidData, create_reid_data
from dynavit.data.reid_layouts import Split
from dynavit.data.spectral_layouts import SPECTRAL_LAYOUTS, read_spectral_layout
from dynavit.data.transforms import create_reid_transforms
from dynavit.errors import InputError

Make = Callable[..., Path]
SIZE = (20, 10)
PLAIN = create_reid_transforms(SIZE, (0.0,) * 3, (1.0,) * 3, flip=0.0, pad=0, erase=0.0)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes images below a root, each of a level of grey, or of several side by side."""

    def files(images: dict[str, int | list[int]]) -> Path:
        for name, levels in images.items():
            strips = [np.full((*SIZE, 3), level, np.uint8) for level in np.atleast_1d(levels)]
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.concatenate(strips, axis=1)).save(tmp_path / name, quality=100)
        return tmp_path

    return files


def spectra(stem: str, folders: tuple[str, ...], *levels: int | None, before: str = "") -> dict[str, Any]:
    pairs = zip(folders, levels, strict=True)
    return {f"{before}{folder}/{stem}": level for folder, level in pairs if level is not None}


def keys(split: Split | None) -> list[tuple[str, str | None, str | None]]:
    assert split is not None
    return [(record.identity, record.camera, record.view) for record in split.records]


def load(name: str, root: Path, **options: Any) -> ReidData:
    return create_reid_data(name, str(root), transforms=PLAIN, **options)


def levels(data: ReidData, index: int, train: bool = False) -> list[int]:
    samples = data.train if train else data.validation
    assert samples is not None
    sample = samples[index]
    assert sample is not None
    assert sample[0].shape == (3, 3, *SIZE)
    return [round(255 * float(one.mean())) for one in sample[0]]


RGBNT201 = ("RGB", "NI", "TI")


def test_rgbnt201_searches_its_test_images_among_themselves(make: Make) -> None:
    root = make(
        spectra("000001_cam1_0_00.jpg", RGBNT201, 10, 20, 30, before="train_171/")
        | spectra("000001_cam2_0_00.jpg", RGBNT201, 11, 21, 31, before="train_171/")
        | spectra("000002_cam1_0_00.jpg", RGBNT201, 12, None, 32, before="train_171/")
        | spectra("000003_cam2_0_07.jpg", RGBNT201, 13, 23, 33, before="train_171/")
        | spectra("000258_cam1_0_00.jpg", RGBNT201, 14, 24, 34, before="test/")
        | spectra("000258_cam3_0_00.jpg", RGBNT201, 15, 25, None, before="test/")
        | {"test/other/000258_cam3_0_00.jpg": 1, "test/RGB/who.jpg": 1}
    )
    layout = read_spectral_layout("rgbnt201", root)
    assert layout.spectra == RGBNT201
    assert keys(layout.train) == [("000001", "1", None), ("000001", "2", None), ("000003", "2", None)]
    assert keys(layout.query) == keys(layout.gallery) == [("000258", "1", None), ("000258", "3", None)]
    assert layout.train is not None
    assert layout.train.skipped == {"without NI, which training needs": ["000002_cam1_0_00.jpg"]}
    assert layout.query.skipped == {
        "not in a folder RGB, NI, TI": ["other/000258_cam3_0_00.jpg"],
        "name without identity and camera": ["who.jpg"],
    }
    data = load("rgbnt201", root)
    assert data.spectra == RGBNT201
    assert [levels(data, index, train=True) for index in (0, 2)] == [[10, 20, 30], [13, 23, 33]]
    assert [levels(data, index) for index in range(4)] == [[14, 24, 34], [15, 25, 0]] * 2
    assert data.present is not None
    assert data.present.tolist() == [[True, True, True], [True, True, False]] * 2
    assert data.has_match.all()
    assert "Of 4 queries and gallery samples some spectra are missing: TI of 2." in data.summary()


def test_rgbnt100_has_three_spectra_side_by_side(make: Make) -> None:
    root = make(
        {
            "bounding_box_train/0001_c1_0001.jpg": [10, 20, 30],
            "bounding_box_train/0002_c2_0001.jpg": [11, 21, 31],
            "query/0003_c1_0001.jpg": [12, 22, 32],
            "bounding_box_test/0003_c1_0002.jpg": [13, 23, 33],
            "bounding_box_test/0003_c4_0002.jpg": [14, 24, 34],
        }
    )
    data = load("rgbnt100", root)
    assert data.spectra == RGBNT201
    assert data.present is None
    assert [levels(data, index) for index in range(3)] == [[12, 22, 32], [13, 23, 33], [14, 24, 34]]
    assert data.cameras.tolist() == [0, 0, 2]
    assert levels(data, 1, train=True) == [11, 21, 31]


def test_msvr310_leaves_out_matches_of_the_query_s_own_scene(make: Make) -> None:
    names = ("vis", "ni", "th")
    root = make(
        spectra("0001_s001_v1_000.jpg", names, 1, 2, 3, before="bounding_box_train/0001/")
        | spectra("0002_s001_v1_000.jpg", names, 4, 5, 6, before="bounding_box_train/0002/")
        | spectra("0003_s002_v1_000.jpg", names, 7, 8, 9, before="query3/0003/")
        | spectra("0003_s002_v3_000.jpg", names, 10, 11, 12, before="bounding_box_test/0003/")
        | spectra("0003_s014_v1_000.jpg", names, 13, 14, 15, before="bounding_box_test/0003/")
    )
    layout = read_spectral_layout("msvr310", root)
    assert keys(layout.gallery) == [("0003", "002", "3"), ("0003", "014", "1")]
    data = load("msvr310", root)
    assert levels(data, 2) == [13, 14, 15]
    assert data.cameras[0] == data.cameras[1] != data.cameras[2]
    (root / "bounding_box_test/0003/vis/0003_s014_v1_000.jpg").unlink()
    (root / "bounding_box_test/0003/ni/0003_s014_v1_000.jpg").unlink()
    (root / "bounding_box_test/0003/th/0003_s014_v1_000.jpg").unlink()
    with pytest.raises(InputError, match="by the query's own camera"):
        load("msvr310", root)


def test_own_folders_with_cameras_and_other_endings(make: Make) -> None:
    root = make(
        {
            "train/day/a/cam1_1.png": 1,
            "train/night/a/cam1_1.jpg": 2,
            "train/day/b/cam2_1.png": 3,
            "train/night/b/cam2_1.png": 4,
            "query/day/c/cam1_1.png": 5,
            "gallery/night/c/cam2_1.png": 6,
            "gallery/night/c/cam2_1.jpg": 7,
        }
    )
    options = {"spectra": ["day", "night"], "camera_pattern": r"cam(?P<camera>\d)"}
    layout = read_spectral_layout("folder", root, options=options)
    assert keys(layout.train) == [("a", "1", None), ("b", "2", None)]
    assert layout.gallery.skipped == {"of the same name and spectrum as another": ["night/c/cam2_1.png"]}
    data = load("folder", root, options=options)
    assert data.present is not None
    assert data.present.tolist() == [[True, False], [False, True]]
    assert "day of 1, night of 1" in data.summary()
    with pytest.raises(InputError, match=r"expected ROOT/\{train,query,gallery\}/SPECTRUM/IDENTITY"):
        load("folder", root / "nowhere", options=options)


def test_what_cannot_be_read_is_refused(make: Make) -> None:
    for name in SPECTRAL_LAYOUTS:
        options = {"spectra": ["a", "b"]} if name == "folder" else {}
        with pytest.raises(InputError, match=r"is not a folder; expected ROOT/"):
            read_spectral_layout(name, "nowhere", options=options)
    root = make({"query/0001_c1_1.jpg": 1})
    with pytest.raises(InputError, match=r"no folder bounding_box_train, bounding_box_test"):
        read_spectral_layout("rgbnt100", root)
    with pytest.raises(InputError, match=r"data.name=msvr310 has no data.options.pattern"):
        read_spectral_layout("msvr310", root, options={"pattern": "x"})
    with pytest.raises(InputError, match=r"data.train_split of rgbnt201 is 'train' only, got 'val'"):
        read_spectral_layout("rgbnt201", root, "val")
    for wrong in ("day", ["day"], ["day", "day"], ["day", 3], 7):
        with pytest.raises(InputError, match=r"data.options.spectra=.*: give the names of two or more folders"):
            read_spectral_layout("folder", root, options={"spectra": wrong})
    with pytest.raises(InputError, match=r"Did you mean 'rgbnt201'"):
        load("rgbnt202", root)


def test_spectra_of_a_sample_are_augmented_alike() -> None:
    """Mirrored, shifted and erased in the same way; other samples in another."""
    transforms = create_reid_transforms((96, 48), (0.5,) * 3, (0.5,) * 3, flip=0.5, pad=6, erase=1.0)
    data = create_reid_data("quickstart-multimodal", transforms=transforms, options={"train_identities": 8})
    assert data.train is not None
    assert data.spectra == ("colour", "near infrared", "thermal infrared")
    erased = []
    for index in range(6):
        sample = data.train[index]
        assert sample is not None
        outside = (sample[0].abs() > 1).any(dim=1)  # pixels are from -1 to 1, erased ones are standard normal
        assert outside[0].any()
        assert torch.equal(outside[0], outside[1])
        assert torch.equal(outside[0], outside[2])
        again = data.train[index]
        assert again is not None
        assert torch.equal(again[0], sample[0])
        erased.append(outside[0])
    assert not torch.equal(erased[0], erased[1])


def test_an_unreadable_spectrum_makes_an_unreadable_sample(make: Make) -> None:
    root = make(
        {f"{split}/{folder}/{who}/{n}.png": 9 for split in ("train", "gallery", "query") for folder in ("x", "y")
         for who in "ab" for n in range(2)}
    )  # fmt: skip
    (root / "query/y/a/0.png").write_bytes(b"no picture")
    data = load("folder", root, options={"spectra": ["x", "y"]}, corrupt="skip")
    with pytest.warns(UserWarning, match=r"query/x/a/0.png is skipped, it cannot be read: of .*query/y/a/0.png"):
        assert data.validation[0] is None
    with pytest.raises(InputError, match="cannot be read"):
        load("folder", root, options={"spectra": ["x", "y"]}).validation[0]
