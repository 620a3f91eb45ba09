"""Re-identification data: numbering, the rule of valid matches, reports, errors, and the transforms."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dynavit.data.reid import ReidData, create_reid_data
from dynavit.data.samples import Samples, collate, reproducible
from dynavit.data.transforms import create_reid_transforms
from dynavit.errors import InputError

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
PLAIN = create_reid_transforms((16, 8), ZERO, ONE, flip=0.0, pad=0, erase=0.0)
MARKET = ("bounding_box_train", "query", "bounding_box_test")

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes PNGs below a root; the n-th is grey of level n."""

    def images(*names: str) -> Path:
        for level, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 16), (level,) * 3).save(tmp_path / name)
        return tmp_path

    return images


def market(*names: str) -> list[str]:
    """Return paths of the Market layout for names like t12c3 (train), q12c3 and g12c3."""
    folders = dict(zip("tqg", MARKET, strict=True))
    paths = []
    for number, name in enumerate(names):
        identity, camera = name[1:].split("c")
        paths.append(f"{folders[name[0]]}/{identity}_c{camera}s1_{number:06}_00.png")
    return paths


def load(root: Path, name: str = "market1501", **options: Any) -> ReidData:
    return create_reid_data(name, str(root), transforms=PLAIN, **options)


def levels(samples: Samples | None) -> list[int]:
    """Return the grey level of every sample."""
    assert samples is not None
    return [round(255 * float(samples[index][0][0, 0, 0])) for index in range(len(samples))]


def test_images_come_with_their_numbers(make: Make) -> None:
    names = ["t10c5", "t10c2", "t2c9", "q7c2", "q1c9", "g7c12", "g0c2", "g1c2", "g7c2"]
    data = load(make(*market(*names)))
    assert data.class_names == ("2", "10")
    assert data.camera_names == ("2", "5", "9", "12")
    assert data.train is not None
    assert [data.train[index][1:] for index in range(3)] == [(0, 0), (1, 1), (1, 2)]
    assert data.train_identities.tolist() == [0, 1, 1]
    seen = [names[level] for level in levels(data.train)]
    assert seen == ["t2c9", "t10c2", "t10c5"]
    assert data.train_cameras.tolist() == [2, 0, 1]
    assert data.num_query == 2
    searched = [names[level] for level in levels(data.validation)]
    assert searched == ["q1c9", "q7c2", "g0c2", "g1c2", "g7c12", "g7c2"]
    assert [data.validation[index][1] for index in range(6)] == data.identities.tolist() == [1, 2, 0, 1, 2, 2]
    assert data.cameras.tolist() == [2, 0, 0, 0, 3, 0]
    assert data.views.tolist() == [-1] * 6
    assert data.image_ids.tolist() == list(range(6))
    assert Path(data.validation.dataset.path(4)).name == "7_c12s1_000005_00.png"
    assert (data.num_cameras, data.num_views) == (4, 0)
    assert "2 of 2 queries have a valid match." in data.summary()


def test_cameras_have_the_same_numbers_without_training(make: Make) -> None:
    root = make(*market("t1c1", "t2c3", "q1c2", "g1c3"))
    trained, evaluated = load(root), load(root, train=False)
    assert evaluated.train is None
    assert evaluated.camera_names == trained.camera_names == ("1", "2", "3")
    assert evaluated.class_names == trained.class_names
    for path in (root / MARKET[0]).iterdir():
        path.unlink()
    (root / MARKET[0]).rmdir()
    alone = load(root, train=False)
    assert alone.camera_names == ("2", "3")
    assert alone.class_names == ()
    assert "There is no training split: cameras are numbered by the queries and the gallery alone." in alone.notes
    assert "train              0          0        -" in alone.summary()


def test_valid_matches_are_those_by_other_cameras_and_of_other_files(make: Make) -> None:
    rng = random.Random(0)
    names = [f"{split}{rng.randrange(1, 6)}_{rng.choice('0123')}_{n}" for n, split in enumerate("qqqgggg" * 4)]
    folders = {"q": "query", "g": "gallery"}
    paths = [f"{folders[name[0]]}/{name[1:]}.png" for name in names]
    root = make("train/8_1_0.png", "train/9_1_0.png", *paths)
    pattern = r"^(?P<identity>\d)_(?:(?P<camera>[123])|0)_"  # camera 0 means unknown
    for query, gallery in (("query", "gallery"), ("query", "query"), ("gallery", "query")):
        options = {"pattern": pattern, "query_split": query, "gallery_split": gallery}
        data = load(root, "folder", options=options)
        files = [Path(data.validation.dataset.path(index)) for index in range(len(data.validation))]
        n = data.num_query

        def matches(a: Path, b: Path) -> bool:
            (who, camera, _), (other, by, _) = a.stem.split("_"), b.stem.split("_")
            return who == other and a != b and (camera != by or camera == "0")

        expected = [any(matches(a, b) for b in files[n:]) for a in files[:n]]
        assert data.has_match.tolist() == expected
        assert any(expected)
        # what the metrics see says the same
        who, camera, image = data.identities, data.cameras, data.image_ids
        same_camera = (camera[:n, None] == camera[None, n:]) & (camera[:n, None] >= 0)
        valid = (who[:n, None] == who[None, n:]) & ~same_camera & (image[:n, None] != image[None, n:])
        assert torch.equal(valid.any(1), data.has_match)
        assert (len(image.unique()) < len(image)) == (query == gallery)
        for index, file in enumerate(files):
            assert (int(camera[index]) == -1) == (file.stem.split("_")[1] == "0")


def test_views_of_own_data(make: Make) -> None:
    root = make("train/a/left.png", "train/b/top.png", "query/a/top.png", "gallery/a/x.png")
    data = load(root, "folder", options={"camera_pattern": r"^(?P<camera>)(?P<view>left|right|top)"})
    assert data.view_names == ("left", "top")
    assert (data.train_views.tolist(), data.views.tolist()) == ([0, 1], [1, -1])


def test_the_report_says_what_was_found_skipped_and_doubtful(make: Make) -> None:
    names = market("t1c1", "t1c2", "t2c1", "t0c1", "q1c1", "q4c1", "q5c3", "g1c2", "g0c1", "g5c3", "g-1c1")
    data = load(make(*names, "query/photo.png"))
    assert data.has_match.tolist() == [True, False, False]
    assert data.summary().splitlines() == [
        "          identities     images  cameras",
        "train              2          3        2",
        "query              3          3        2",
        "gallery            3          3        3",
        "1 of 3 queries have a valid match.",
        "Queries that cannot be scored: for 1 the gallery has no image of the identity; for 1 all images of the "
        "identity are by the query's own camera and do not count.",
        f"Skipped in {data.validation.dataset.path(0).rpartition('/query')[0]}/bounding_box_train: 1 distractors "
        "(identity 0), which belong in the gallery (0_c1s1_000003_00.png).",
        f"Skipped in {data.validation.dataset.path(0).rpartition('/query')[0]}/query: 1 name without identity and "
        "camera (photo.png).",
        f"Skipped in {data.validation.dataset.path(0).rpartition('/query')[0]}/bounding_box_test: 1 junk (identity -1) "
        "(-1_c1s1_000010_00.png).",
        "1 training identities have only one image: 2.",
        "1 identities are in training and in evaluation, so results say nothing about new ones: 1.",
    ]


def test_own_data_without_cameras(make: Make) -> None:
    data = load(make("train/a/1.png", "train/b/1.png", "query/c/1.png", "gallery/c/2.png"), "folder")
    assert data.num_cameras == 0
    assert data.cameras.tolist() == [-1, -1]
    assert "No cameras are known: nothing is left out as a match by the query's own camera." in data.notes
    some = load(make("train/a/c1.png", "query/c/x.png"), "folder", options={"camera_pattern": r"c(?P<camera>\d)"})
    assert some.camera_names == ("1",)
    assert "The camera is unknown of 5 images: 1.png, 1.png, 1.png, x.png, 2.png." in some.notes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["t1c1", "t1c2", "q3c1", "g3c2"], "training needs two identities at least, .*bounding_box_train has only 1"),
        (["t0c1", "t-1c2", "q3c1", "g3c2"], "bounding_box_train has no usable image: 1 junk .* 1 distractors"),
        (["t1c1", "t2c2", "q3c1", "g3c1"], "no query .* has a valid match .*: for 1 all images of the identity are by"),
        (["t1c1", "t2c2", "q3c1", "q4c1", "g5c1"], "has a valid match .*: for 2 the gallery has no image"),
    ],
)
def test_data_that_cannot_be_used(make: Make, names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(make(*market(*names)))


def test_one_image_of_everybody_is_no_gallery(make: Make) -> None:
    root = make("train/a/1.png", "train/b/1.png", "all/c/1.png", "all/d/1.png")
    with pytest.raises(InputError, match=r"for 2 the gallery has only the image itself"):
        load(root, "folder", options={"query_split": "all", "gallery_split": "all"})


def test_arguments_that_cannot_work(make: Make) -> None:
    with pytest.raises(InputError, match=r"unknown re-identification data set 'market'.* Did you mean 'market1501'"):
        load(Path("x"), "market")
    with pytest.raises(InputError, match=r"data.name=dukemtmc needs data.root=FOLDER; expected ROOT/"):
        create_reid_data("dukemtmc", transforms=PLAIN)
    with pytest.raises(InputError, match=r"seed must not be negative, got -1"):
        load(Path("x"), seed=-1)
    with pytest.raises(InputError, match=r"data.corrupt is 'stop' or 'skip', got 'maybe'"):
        load(make(*market("t1c1", "t2c2", "q3c1", "g3c2")), corrupt="maybe")
    with pytest.raises(InputError, match=r"no data.options.train_size.*Did you mean"):
        create_reid_data("quickstart-reid", transforms=PLAIN, options={"train_size": 3})


def test_unreadable_images(make: Make) -> None:
    root = make(*market("t1c1", "t1c2", "t2c2", "q3c1", "g3c2"))
    for split, name in (("bounding_box_train", "1_c1s1_000000_00.png"), ("bounding_box_test", "3_c2s1_000004_00.png")):
        (root / split / name).write_bytes(b"no image")
    data = load(root)
    assert data.train is not None
    with pytest.raises(InputError, match=r"1_c1s1_000000_00.png cannot be read"):
        data.train[0]
    data = load(root, corrupt="skip")
    assert data.train is not None
    with pytest.warns(UserWarning, match=r"1_c1s1_000000_00.png is skipped"):
        sample = data.train[0]
    assert sample is not None
    assert sample[1:] == (0, 1)  # the next image of the same person
    with pytest.warns(UserWarning, match=r"3_c2s1_000004_00.png is skipped"):
        batch = collate([data.validation[0], data.validation[1]])
    assert batch is not None
    assert batch[2].tolist() == [0]


def test_quickstart() -> None:
    options = {"train_identities": 4, "images_per_identity": 3, "test_identities": 2, "gallery_per_camera": 1}
    data = create_reid_data("quickstart-reid", transforms=PLAIN, seed=3, options=options)
    assert data.train is not None
    assert (len(data.train), len(data.validation), data.num_query, data.num_cameras) == (12, 16, 8, 4)
    assert [data.train[index][1] for index in range(12)] == data.train_identities.tolist()
    assert [data.validation[index][1] for index in range(16)] == data.identities.tolist()
    assert data.class_names == ("0", "1", "2", "3")
    assert data.has_match.all()
    assert data.validation.foreground(0).shape == (96, 48)
    before = data.train[0][0]
    data.train.set_epoch(1)
    assert not torch.equal(before, data.train[0][0])
    assert create_reid_data("quickstart-reid", transforms=PLAIN, train=False).train is None
    assert "8 of 8 queries" in data.summary()


@pytest.mark.skipif("DYNAVIT_REID_ROOT" not in os.environ, reason="needs a data set in the layout of Market-1501")
def test_a_real_set() -> None:
    data = load(Path(os.environ["DYNAVIT_REID_ROOT"]))
    assert data.train is not None
    assert data.has_match.float().mean() > 0.9
    assert data.num_cameras > 1
    for samples in (data.train, data.validation):
        for index in random.Random(0).sample(range(len(samples)), 30):
            sample = samples[index]
            assert sample is not None
            path = Path(samples.dataset.path(index))
            camera = (data.train_cameras if samples is data.train else data.cameras)[index]
            assert path.name.split("_")[1].startswith(f"c{data.camera_names[int(camera)]}")
            if samples is data.train:
                assert path.name.split("_")[0] == data.class_names[sample[1]]


def ramp(height: int = 40, width: int = 20) -> Image.Image:
    """Return an image whose red grows to the right, green to the bottom, on blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(20, 220, width)
    pixels[..., 1] = np.linspace(20, 220, height)[:, None]
    pixels[..., 2] = 255
    return Image.fromarray(pixels)


def test_evaluation_distorts_to_the_size_and_normalises() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    evaluate = create_reid_transforms((32, 16), mean, std, "bilinear")[1]
    pixels = np.asarray(ramp().resize((16, 32), Image.Resampling.BILINEAR), np.float32) / 255
    expected = (torch.from_numpy(pixels).permute(2, 0, 1) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    torch.testing.assert_close(evaluate(ramp()), expected)
    assert create_reid_transforms(24, mean, std)[1](ramp()).shape == (3, 24, 24)


def test_training_without_its_randomness_is_evaluation() -> None:
    train, evaluate = create_reid_transforms((32, 16), ZERO, ONE, flip=0.0, pad=0, erase=0.0)
    assert torch.equal(train(ramp()), evaluate(ramp()))


def test_images_are_mirrored() -> None:
    train, evaluate = create_reid_transforms((32, 16), ZERO, ONE, flip=1.0, pad=0, erase=0.0)
    assert torch.equal(train(ramp()), evaluate(ramp()).flip(-1))


@pytest.mark.parametrize(("pad", "most"), [(3, 3), (None, 1)])
def test_images_are_shifted_over_black_by_at_most_the_padding(pad: int | None, most: int) -> None:
    half = (0.5, 0.5, 0.5)
    train = create_reid_transforms((32, 16), half, half, flip=0.0, pad=pad, erase=0.0)[0]
    plain = create_reid_transforms((32, 16), ZERO, ONE)[1](ramp())
    whole = (torch.nn.functional.pad(plain, (most,) * 4) - 0.5) / 0.5  # black is -1
    shifts = {(y, x): whole[:, y : y + 32, x : x + 16] for y in range(2 * most + 1) for x in range(2 * most + 1)}
    seen = set()
    for seed in range(60 * most**2):
        with reproducible(seed):
            image = train(ramp())
        (shift,) = [shift for shift, expected in shifts.items() if torch.equal(image, expected)]
        seen.add(shift)
    assert len(seen) > 0.9 * len(shifts)


def test_a_rectangle_becomes_noise() -> None:
    train, evaluate = create_reid_transforms((64, 32), ZERO, ONE, flip=0.0, pad=0, erase=1.0)
    plain = evaluate(ramp())
    values, areas = [], []
    for seed in range(100):
        with reproducible(seed):
            image = train(ramp())
        changed = (image != plain).all(0)
        rows, columns = (torch.nonzero(changed.any(axis)).flatten() for axis in (1, 0))
        window = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert window.all()  # one whole rectangle, each pixel and channel with its own value
        areas.append(window.numel() / changed.numel())
        values.append(image[:, changed])
    noise = torch.cat(values, 1).flatten()
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert 0.01 < min(areas) < 0.05
    assert 0.25 < max(areas) < 0.36
    half = create_reid_transforms((64, 32), ZERO, ONE, flip=0.0, pad=0, erase=0.5)[0]
    with reproducible(0):
        assert 70 < sum(not torch.equal(half(ramp()), plain) for _ in range(200)) < 130


def test_training_images_are_reproducible() -> None:
    train = create_reid_transforms((32, 16), ZERO, ONE)[0]
    images = []
    for seed in (0, 1, 0):
        with reproducible(seed):
            images.append(train(ramp()))
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interpolation": "cubic"}, "interpolation='cubic': choose one of .*Did you mean 'bicubic'"),
        ({"flip": 1.5}, "augmentation.flip is a probability in 0..1, got 1.5"),
        ({"erase": -0.1}, "augmentation.erase is a probability"),
        ({"pad": -1}, "augmentation.pad is a whole number of pixels from 0 to .*, got -1"),
        ({"pad": 0.5}, "augmentation.pad is a whole number of pixels"),
    ],
)
def test_transforms_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_reid_transforms(32, ZERO, ONE, **arguments)


def test_one_camera_names_the_way_out(make: Make) -> None:
    with pytest.raises(
        InputError, match=r"do not count\. To let them count.*data\.name=folder.*data\.options\.pattern"
    ):
        load(make(*market("t1c1", "t2c1", "q1c1", "q4c1", "g1c1", "g4c1")))


@pytest.mark.parametrize(
    "options", [{"camera_pattern": r"(?P<camera>c\d)"}, {"pattern": r"^(?P<identity>[ab])/(?P<camera>c\d)"}]
)
def test_one_camera_of_own_folders(make: Make, options: dict[str, str]) -> None:
    root = make(
        *(f"{split}/{who}/c{1 + (who == 'b')}{split}.png" for split in ("train", "query", "gallery") for who in "ab")
    )
    with pytest.raises(InputError, match=r"read no cameras: leave the group camera out of data\.options\.pattern"):
        load(root, "folder", options=options)
    assert load(root, "folder").has_match.all()
