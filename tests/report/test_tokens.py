from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.font_manager import fontManager
from PIL import Image

from dynavit import InputError
from dynavit.report import draw_groups, draw_kept, kept_token_grid, style, trace_grid


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def test_kept_patches_keep_their_pixels_and_dropped_ones_fade(image: np.ndarray) -> None:
    before = image.copy()
    kept = np.array([True, False, False, False, True, False])  # 2 x 3 patches of 4 x 4 pixels
    drawn = draw_kept(image, kept, (2, 3))
    assert drawn.dtype == np.uint8
    assert (image == before).all()
    assert (drawn[:4, :4] == image[:4, :4]).all()
    assert (drawn[4:, 4:8] == image[4:, 4:8]).all()
    for dropped in (drawn[:4, 4:], drawn[4:, :4], drawn[4:, 8:]):
        assert dropped.min() >= 180  # light
        assert (dropped == dropped[..., :1]).all()  # and without colour
        assert dropped.std() > 1  # but what was there can still be told


def test_masks_may_be_tensors(image: np.ndarray) -> None:
    kept = torch.tensor([True, False, True, True, False, False])
    assert (draw_kept(torch.from_numpy(image), kept, (2, 3)) == draw_kept(image, kept.numpy(), (2, 3))).all()


def test_patches_share_a_picture_evenly_that_they_do_not_divide(image: np.ndarray) -> None:
    kept = np.arange(15) % 2 == 0
    drawn = draw_kept(image, kept, (3, 5))
    for y in range(8):
        for x in range(12):
            patch = (y * 3 // 8) * 5 + x * 5 // 12
            assert (drawn[y, x] == image[y, x]).all() or not kept[patch]
    whole = draw_groups(image, np.zeros(15, dtype=int), (3, 5))
    assert (whole == image.mean(axis=(0, 1)).round()).all()


def test_what_does_not_fit_is_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="grid of 2 x 3"):
        draw_kept(image, np.ones(5, dtype=bool), (2, 3))
    with pytest.raises(InputError, match="8x12 pixels"):
        draw_kept(image, np.ones(45, dtype=bool), (9, 5))
    with pytest.raises(InputError, match="uint8"):
        draw_kept(image.astype(np.float32), np.ones(6, dtype=bool), (2, 3))
    with pytest.raises(InputError, match="all of one size"):
        kept_token_grid([image, image[:4]], [], (2, 3))
    with pytest.raises(InputError, match="for 1 images"):
        kept_token_grid([image], [np.ones((2, 6), dtype=bool)], (2, 3))
    with pytest.raises(InputError, match="a title for"):
        kept_token_grid([image], [np.ones((1, 6), dtype=bool)], (2, 3), titles=["input"])
    with pytest.raises(InputError, match="a caption an image"):
        kept_token_grid([image], [], (2, 3), captions=["one", "two"])


def find(canvas: Image.Image, part: np.ndarray) -> list[tuple[int, int]]:
    """Where a picture appears on a canvas, exactly: (top, left) of each place."""
    pixels = np.asarray(canvas)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, part.shape)[:, :, 0]
    corner = (windows[:, :, 0, 0] == part[0, 0]).all(axis=-1)
    places = np.argwhere(corner)
    return [(int(y), int(x)) for y, x in places if (windows[y, x] == part).all()]


def test_grid_has_a_row_an_image_and_a_column_a_stage(image: np.ndarray) -> None:
    images = [image, image[::-1].copy()]
    stages = [
        np.array([[1, 1, 1, 0, 0, 1]] * 2, dtype=bool),
        torch.tensor([[1, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0]]),
    ]
    canvas = kept_token_grid(images, stages, (2, 3), captions=["a " * 300, "line\nbreak"], scale=4)
    assert canvas.mode == "RGB"
    places = []
    for number, picture in enumerate(images):
        shown = [picture, *(draw_kept(picture, stage[number], (2, 3)) for stage in stages)]
        for column in shown:
            found = find(canvas, column.repeat(4, axis=0).repeat(4, axis=1))
            assert len(found) == 1  # enlarged without smoothing, whole, and once
            places += found
    tops, lefts = [top for top, _ in places], [left for _, left in places]
    assert tops[:3] == [tops[0]] * 3
    assert tops[3:] == [tops[3]] * 3
    assert tops[3] >= tops[0] + 8 * 4
    assert lefts[:3] == lefts[3:] == sorted(lefts[:3])
    assert lefts[1] >= lefts[0] + 12 * 4


@pytest.mark.parametrize(("side", "shown"), [(16, 192), (64, 192), (128, 256), (224, 224), (384, 384)])
def test_small_pictures_are_enlarged(side: int, shown: int) -> None:
    picture = np.zeros((side, side, 3), dtype=np.uint8)
    canvas = np.asarray(kept_token_grid([picture], [], (4, 4)))
    black = (canvas == 0).all(axis=-1)
    assert black.sum(axis=1).max() == shown
    assert black.sum(axis=0).max() == shown


def test_titles_count_what_is_kept(image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageDraw

    written: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **_: written.append(text))
    same, different = np.zeros((2, 6), dtype=bool), np.zeros((2, 6), dtype=bool)
    same[:, :4] = True
    different[0, :3] = different[1, :1] = True
    kept_token_grid([image] * 2, [same, different], (2, 3), captions=["two\nlines", "long " * 99])
    assert written[:4] == ["input", "stage 1: 4 of 6", "stage 2: 1-3 of 6", "two lines"]
    assert written[4].startswith("long long")
    assert written[4].endswith("...")
    assert len(written[4]) < 150


def test_letters_beyond_ascii_are_drawn(image: np.ndarray) -> None:
    def drawn(caption: str) -> bytes:
        return kept_token_grid([image], [], (2, 3), captions=[caption]).tobytes()

    assert drawn("ö") != drawn("ß") != drawn("ж")  # a font without them draws the same box for all


def test_patches_of_a_group_have_their_mean_colour(image: np.ndarray) -> None:
    before = image.copy()
    groups = np.array([0, 3, 0, -1, 3, 5])  # 2 x 3 patches of 4 x 4 pixels
    drawn = draw_groups(image, groups, (2, 3))
    assert drawn.dtype == np.uint8
    assert (image == before).all()
    patches = [image[y : y + 4, x : x + 4].reshape(-1, 3).astype(float) for y in (0, 4) for x in (0, 4, 8)]
    painted = [drawn[y : y + 4, x : x + 4].reshape(-1, 3) for y in (0, 4) for x in (0, 4, 8)]
    for members in ([0, 2], [1, 4], [5]):
        mean = np.concatenate([patches[member] for member in members]).mean(axis=0)
        for member in members:
            assert np.abs(painted[member] - mean).max() <= 0.5
            assert (painted[member] == painted[member][0]).all()
    assert (drawn[4:, :4] == draw_kept(image, np.zeros(6, dtype=bool), (2, 3))[4:, :4]).all()  # of no group
    assert (draw_groups(image, torch.from_numpy(groups), (2, 3)) == drawn).all()


def test_a_picture_in_which_nothing_was_kept_fades(image: np.ndarray) -> None:
    assert (draw_groups(image, np.full(6, -1), (2, 3)) == draw_kept(image, np.zeros(6, dtype=bool), (2, 3))).all()


def test_groups_are_a_last_column(image: np.ndarray) -> None:
    kept, groups = np.array([[1, 0, 1, 0, 1, 0]], dtype=bool), np.array([[0, 0, 1, 1, 2, -1]])
    canvas = kept_token_grid([image], [kept], (2, 3), groups=groups, scale=4)
    lefts = []
    for column in (image, draw_kept(image, kept[0], (2, 3)), draw_groups(image, groups[0], (2, 3))):
        ((_, left),) = find(canvas, column.repeat(4, axis=0).repeat(4, axis=1))
        lefts.append(left)
    assert lefts == sorted(lefts)
    with pytest.raises(InputError, match="for 1 images"):
        kept_token_grid([image], [], (2, 3), groups=groups[0])
    with pytest.raises(InputError, match="draw_groups: an image"):
        kept_token_grid([image], [], (2, 3), groups=groups[:, :5])


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written, in order."""
    from PIL import ImageDraw

    written: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **_: written.append(text))
    return written


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"reducer": "drop"}, ["stage 1: 12 of 24", "stage 2: 6 of 24"]),
        ({"reducer": "fuse"}, ["stage 1: 12 of 24", "stage 2: 6 of 24"]),  # what it made stands nowhere
        ({"reducer": "squeeze"}, ["stage 1: 12 of 24", "stage 2: 6 of 24", "merged to 6 of 24"]),
        ({"reducer": "merge"}, ["merged to 6 of 24"]),
        ({"reducer": {"name": "aggregate", "tokens": 3}}, ["stage 1: 12 of 24", "stage 2: 6 of 24"]),
        ({"reducer": "merge", "keep_ratio": 1.0}, ["stage 1: 24 of 24", "stage 2: 24 of 24"]),
    ],
)
def test_what_is_drawn_of_a_forward(
    options: dict[str, Any], expected: list[str], titles: list[str], model_of: Any, images_for: Any
) -> None:
    model = model_of("vit", depth=3, stages=(1, 2), **{"keep_ratio": 0.5, **options})
    with torch.inference_mode():
        _, trace = model(images_for(model, batch=1), return_trace=True)
    picture = np.zeros((64, 96, 3), dtype=np.uint8)
    trace_grid([picture], trace, model.adapter.grid_size)
    if options["reducer"] == "fuse":  # at its second stage it may drop the token that it made at the first
        titles[-1] = titles[-1].replace(": 5 ", ": 6 ")
    assert titles == ["input", *expected]


def test_groups_are_those_that_were_merged(model_of: Any, images_for: Any) -> None:
    model = model_of("vit", depth=3, stages=(1, 2), keep_ratio=0.6, reducer="merge")
    with torch.inference_mode():
        _, trace = model(images_for(model, batch=2), return_trace=True)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    canvas = trace_grid(list(pictures), trace, (4, 6))
    for picture, source in zip(pictures, trace.source, strict=True):
        shown = draw_groups(picture, source, (4, 6)).repeat(2, axis=0).repeat(2, axis=1)
        assert len(find(canvas, shown)) == 1


def test_captions_are_in_a_font_that_has_their_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    signs = {"DejaVuSans.ttf": set("aé"), "A.ttf": {"犬"}, "B.ttf": set("犬が")}
    monkeypatch.setattr(style, "_characters", lambda name: {ord(sign) for sign in signs.get(Path(name).name, "")})
    entries = [SimpleNamespace(fname=f"/fonts/{name}") for name in ("B.ttf", "A.ttf")]
    monkeypatch.setattr("matplotlib.font_manager.fontManager.ttflist", entries)
    expected = {"dog": "DejaVuSans.ttf", "é": "DejaVuSans.ttf", "犬 が": "B.ttf", "犬": "A.ttf", "ж": "DejaVuSans.ttf"}
    assert {text: Path(style.font_file(text)).name for text in expected} == expected


def test_the_font_of_last_resort_is_none() -> None:
    """Matplotlib brings one with a box for every character, which would take the place of all letters."""
    assert any("LastResort" in entry.fname for entry in fontManager.ttflist)
    assert "LastResort" not in style.font_file("cat \N{CJK UNIFIED IDEOGRAPH-72AC} \U0001f9ff")
