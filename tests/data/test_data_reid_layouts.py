"""File names of re-identification sets become the right records, and what cannot be used is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dynavit.data.files import HIDDEN, NO_FILE, OTHER_ENDING, SEEN
from dynavit.data.reid_layouts import LAYOUTS, Split, read_layout
from dynavit.errors import InputError

MARKET = ("bounding_box_train", "query", "bounding_box_test")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes empty files below a root; reading a layout opens no image."""

    def files(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return files


def keys(split: Split | None) -> list[tuple[str, str | None, str | None]]:
    assert split is not None
    return [(record.identity, record.camera, record.view) for record in split.records]


def names(split: Split | None) -> list[str]:
    assert split is not None
    return [record.path.name for record in split.records]


def test_market1501(make: Callable[..., Path]) -> None:
    root = make(
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0007_c6s3_000001_00.jpg",
        "bounding_box_train/0000_c2s1_000001_00.jpg",  # a distractor is nobody to learn
        "bounding_box_train/Thumbs.db",
        "query/0001_c1s1_001051_00.jpg",
        "query/0000_c1s1_001051_00.jpg",  # nor to search for
        "bounding_box_test/0001_c2s1_001051_00.jpg.jpg",
        "bounding_box_test/0000_c3s1_001051_00.jpg",
        "bounding_box_test/-1_c3s1_001051_00.jpg",
        "bounding_box_test/readme.jpg",
        "bounding_box_test/._0001_c2s1_001051_00.jpg",
        "bounding_box_test/old/0001_c2s1_000000_00.jpg",  # the benchmark's folders are flat
    )
    layout = read_layout("market1501", root)
    assert keys(layout.train) == [("0002", "1", None), ("0007", "6", None)]
    assert keys(layout.query) == [("0001", "1", None)]
    assert keys(layout.gallery) == [("0000", "3", None), ("0001", "2", None)]
    assert layout.train is not None
    assert layout.train.source == root / "bounding_box_train"
    distractors = "distractors (identity 0), which belong in the gallery"
    assert layout.train.skipped == {distractors: ["0000_c2s1_000001_00.jpg"], HIDDEN: ["Thumbs.db"]}
    assert layout.query.skipped == {distractors: ["0000_c1s1_001051_00.jpg"]}
    assert layout.gallery.skipped == {
        "junk (identity -1)": ["-1_c3s1_001051_00.jpg"],
        HIDDEN: ["._0001_c2s1_001051_00.jpg"],
        "name without identity and camera": ["old/0001_c2s1_000000_00.jpg", "readme.jpg"],
    }


@pytest.mark.parametrize(
    ("name", "folders", "file", "expected"),
    [
        ("dukemtmc", MARKET, "0005_c2_f0046985.jpg", ("0005", "2", None)),
        ("cuhk03np", MARKET, "0001_c1_1.png", ("0001", "1", None)),
        ("veri776", ("image_train", "image_query", "image_test"), "0003_c020_00016450_0.jpg", ("0003", "20", None)),
    ],
)
def test_other_benchmarks_whose_names_tell_all(
    make: Callable[..., Path], name: str, folders: tuple[str, ...], file: str, expected: tuple[str, str, None]
) -> None:
    layout = read_layout(name, make(*(f"{folder}/{file}" for folder in folders)))
    assert keys(layout.train) == keys(layout.query) == keys(layout.gallery) == [expected]
    with pytest.raises(InputError, match="'train' only, got 'train\\+val'"):
        read_layout(name, layout.query.source.parent, train_split="train+val")


def test_views_of_veri776(make: Callable[..., Path]) -> None:
    first, second = "0001_c001_00000001_0.jpg", "0002_c001_00000001_0.jpg"
    root = make(f"image_train/{first}", f"image_train/{second}", f"image_query/{first}", f"image_test/{first}")
    (root / "keypoint_train.txt").write_text(f"/disk/VeRi/image_train/{first} {'-1 ' * 40}5\n\n")
    assert keys(read_layout("veri776", root).train) == [("0001", "1", "5"), ("0002", "1", None)]


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt17(make: Callable[..., Path], train: str, test: str) -> None:
    image = "0000/0000_{:03}_{:02}_0303morning_0008_0.jpg"
    root = make(
        *(f"{train}/{image.format(n, 3)}" for n in range(3)), *(f"{test}/{image.format(n, 15)}" for n in range(2))
    )
    (root / "list_train.txt").write_text(f"{image.format(0, 3)} 0\r\n{image.format(1, 3)} 0\n{image.format(9, 3)} 1\n")
    (root / "list_val.txt").write_text(f"{image.format(2, 3)} 0\nnonsense\n")
    (root / "list_query.txt").write_text(f"{image.format(0, 15)} 0\n")
    (root / "list_gallery.txt").write_text(f"{image.format(1, 15)} 0\n")
    layout = read_layout("msmt17", root)
    assert keys(layout.train) == [("0", "3", None)] * 2
    assert keys(layout.query) == keys(layout.gallery) == [("test-0", "15", None)]  # not the training's person 0
    assert layout.query.records[0].path == root / test / image.format(0, 15)
    assert layout.train is not None
    assert layout.train.skipped == {f"listed, but not in {train}": [image.format(9, 3)]}
    both = read_layout("msmt17", root, train_split="train+val").train
    assert len(keys(both)) == 3
    assert both is not None
    assert both.skipped["line without path, camera and identity"] == ["nonsense"]
    with pytest.raises(InputError, match=r"'train' or 'train\+val', got 'val'"):
        read_layout("msmt17", root, train_split="val")
    (root / "list_train.txt").unlink()
    assert read_layout("msmt17", root, need_train=False).train is None
    with pytest.raises(InputError, match=r"has no list_train.txt"):
        read_layout("msmt17", root)


def test_identity_folders(make: Callable[..., Path]) -> None:
    root = make(
        "train/cat one/a_cam2.JPG",
        "train/cat one/b.webp",
        "train/dog/cam7/x.png",  # folders inside an identity's
        "train/dog/notes.txt",
        "train/stray.jpg",
        "query/cow/1.jpg",
        "gallery/cow/2.jpg",
    )
    layout = read_layout("folder", root)
    assert keys(layout.train) == [("cat one", None, None), ("cat one", None, None), ("dog", None, None)]
    assert layout.train is not None
    assert layout.train.skipped == {OTHER_ENDING: ["dog/notes.txt"], "not in an identity's folder": ["stray.jpg"]}
    seen = read_layout("folder", root, options={"camera_pattern": r"cam(?P<camera>\d)"})
    assert [camera for _, camera, _ in keys(seen.train)] == ["2", None, "7"]


def test_names_by_pattern(make: Callable[..., Path]) -> None:
    root = make("learn/L-12@3.jpg", "learn/L-9@1.jpg", "learn/what.jpg", "all/L-1@2.jpg", "all/L-1@3left.jpg")
    options = {
        "pattern": r"^L-(?P<identity>\d+)@(?P<camera>\d)(?P<view>left)?",
        "query_split": "all",
        "gallery_split": "all",
    }
    layout = read_layout("folder", root, train_split="learn", options=options)
    assert keys(layout.train) == [("12", "3", None), ("9", "1", None)]
    assert keys(layout.query) == keys(layout.gallery) == [("1", "2", None), ("1", "3", "left")]
    assert names(layout.query) == names(layout.gallery)
    assert layout.train is not None
    assert layout.train.skipped == {"name that data.options.pattern does not match": ["what.jpg"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "("}, "data.options.pattern='\\(' is no regular expression"),
        ({"pattern": r"(?P<camera>\d)"}, r"needs the group \(\?P<identity>"),
        ({"pattern": r"(?P<identity>\d)(?P<kamera>\d)"}, "knows identity, camera, view; it has identity, kamera"),
        ({"camera_pattern": r"c(\d)"}, r"needs the group \(\?P<camera>.*it has none"),
        ({"camera_pattern": r"(?P<camera>.)", "pattern": "(?P<identity>.)"}, "exclude each other"),
        ({"patern": "x"}, "Did you mean 'pattern'"),
    ],
)
def test_options_that_cannot_work(make: Callable[..., Path], options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_layout("folder", make("train/a/1.jpg", "query/b/1.jpg", "gallery/b/2.jpg"), options=options)


def test_missing_folders(make: Callable[..., Path]) -> None:
    for name in LAYOUTS:
        with pytest.raises(InputError, match=r"is not a folder; expected ROOT/"):
            read_layout(name, "nowhere")
    root = make(*(f"labeled/{folder}/0001_c1_1.png" for folder in MARKET), "query/0001_c1_1.png")
    with pytest.raises(
        InputError, match=r"no folder bounding_box_train, bounding_box_test; .*set data.root=.*labeled\."
    ):
        read_layout("cuhk03np", root)
    (root / "labeled" / "bounding_box_train" / "0001_c1_1.png").unlink()
    (root / "labeled" / "bounding_box_train").rmdir()
    assert read_layout("cuhk03np", root / "labeled", need_train=False).train is None
    with pytest.raises(InputError, match=r"no folder bounding_box_train; .*Found: bounding_box_test, query"):
        read_layout("cuhk03np", root / "labeled")


def test_splits_without_one_usable_image(make: Callable[..., Path]) -> None:
    root = make(*(f"{folder}/0001_c1s1_0_0.jpg" for folder in MARKET[:2]), "bounding_box_test/image1.jpg")
    with pytest.raises(InputError, match=r"no usable image: 1 name without identity and camera \(image1.jpg\)"):
        read_layout("market1501", root)
    (root / "bounding_box_test" / "image1.jpg").unlink()
    with pytest.raises(InputError, match=r"bounding_box_test has no usable image: it is empty"):
        read_layout("market1501", root)


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"Did you mean 'market1501'"):
        read_layout("market", ".")
    with pytest.raises(InputError, match=r"Its options: none"):
        read_layout("market1501", ".", options={"pattern": "x"})


def test_files_are_found_as_by_every_other_tool(make: Callable[..., Path]) -> None:
    root = make(
        "train/cat/0.jpg", "train/cat/1.avif", "train/.ipynb_checkpoints/0.jpg", "train/@eaDir/cat/0.jpg",
        "elsewhere/dog/0.jpg", "query/cat/1.jpg", "gallery/cat/2.jpg",
    )  # fmt: skip
    (root / "train/dog").symlink_to(root / "elsewhere/dog")
    (root / "train/dog_again").symlink_to(root / "train/dog")
    (root / "train/cat/loop").symlink_to(root / "train")
    os.mkfifo(root / "train/cat/pipe.jpg")
    layout = read_layout("folder", root)
    assert [key[0] for key in keys(layout.train)] == ["cat", "cat", "dog"]
    assert layout.train is not None
    assert layout.train.skipped == {
        HIDDEN: [".ipynb_checkpoints", "@eaDir"],
        NO_FILE: ["cat/pipe.jpg"],
        SEEN: ["cat/loop", "dog_again"],
    }
