"""Ranked lists: what is drawn where, and that right and wrong differ without colours."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dynavit import InputError
from dynavit.report import draw_kept
from dynavit.report.ranked_lists import ranked_list_figure

GREEN, RED, GREY = (26, 127, 55), (207, 34, 46), (100, 108, 118)
HEIGHT, WIDTH = 64, 32


@pytest.fixture
def pictures() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (6, HEIGHT, WIDTH, 3), dtype=np.uint8))


def place(canvas: Image.Image, picture: np.ndarray) -> tuple[int, int]:
    """Where a picture's lower right quarter, which no mark covers, lies on the canvas: exactly once."""
    part = picture[HEIGHT // 2 :, WIDTH // 2 + 8 :]
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(canvas), part.shape)[:, :, 0]
    corner = np.argwhere((windows[:, :, 0, 0] == part[0, 0]).all(axis=-1))
    found = [(int(y), int(x)) for y, x in corner if (windows[y, x] == part).all()]
    assert len(found) == 1
    return found[0][0] - HEIGHT // 2, found[0][1] - WIDTH // 2 - 8


def frame(canvas: Image.Image, top: int, left: int) -> set[tuple[int, ...]]:
    """Colours of the four pixels of frame around a picture, on all sides."""
    around = np.asarray(canvas)[top - 4 : top + HEIGHT + 4, left - 4 : left + WIDTH + 4].copy()
    inside = np.zeros(around.shape[:2], dtype=bool)
    inside[4:-4, 4:-4] = True
    inside[:24, :24] = True  # the mark
    return {tuple(int(value) for value in pixel) for pixel in around[~inside]}


def test_a_row_a_query_and_frames_that_tell(pictures: list[np.ndarray]) -> None:
    first, second, *rest = pictures
    canvas = ranked_list_figure(
        [first, second], [[rest[0], rest[1], rest[2]], [rest[3]]], [[True, False, True], [False]], height=HEIGHT
    )
    assert canvas.mode == "RGB"
    places = [place(canvas, picture) for picture in pictures]
    assert [frame(canvas, *at) for at in places] == [{GREY}, {GREY}, {GREEN}, {RED}, {GREEN}, {RED}]
    (top_1, query_1), (top_2, query_2), *found = places
    assert [top for top, _ in found] == [top_1] * 3 + [top_2]
    lefts = [left for _, left in found]
    assert query_1 == query_2 < lefts[0] == lefts[3] < lefts[1] < lefts[2]
    assert top_2 > top_1 + HEIGHT + 8
    assert canvas.width >= lefts[2] + WIDTH + 4
    assert canvas.height >= top_2 + HEIGHT + 4


def mark(correct: bool, picture: np.ndarray) -> np.ndarray:
    """White strokes over the corner of a result."""
    canvas = ranked_list_figure([picture], [[np.zeros_like(picture)]], [[correct]], height=HEIGHT)
    pixels = np.asarray(canvas).astype(int)
    top, left = place(canvas, picture)
    top -= 4
    column = next(x for x in range(left + WIDTH + 4, canvas.width) if tuple(pixels[top, x]) in (GREEN, RED))
    return np.asarray((pixels[top : top + 23, column : column + 23] == 255).all(axis=2))


def test_marks_differ_without_colours(pictures: list[np.ndarray]) -> None:
    check, cross = mark(True, pictures[0]), mark(False, pictures[0])
    assert check.sum() > 20
    assert cross.sum() > 20
    assert (check != cross).sum() > 20
    for symmetric in (cross[::-1], cross[:, ::-1]):  # a cross is one however it is turned, nearly
        assert (symmetric & cross).sum() > 0.7 * cross.sum()
    assert (check[::-1] & check).sum() < 0.7 * check.sum()


def test_dropped_patches_are_faded(pictures: list[np.ndarray]) -> None:
    random = np.random.default_rng(1)
    masks = random.random((6, 8)) < 0.5
    canvas = ranked_list_figure(
        pictures[:2],
        [pictures[2:4], pictures[4:]],
        [[True, False], [True, True]],
        query_kept=masks[:2],
        result_kept=[torch.from_numpy(masks[2:4]), list(masks[4:])],
        grid_size=(4, 2),
        height=HEIGHT,
    )
    for picture, mask in zip(pictures, masks, strict=True):
        place(canvas, draw_kept(picture, mask, (4, 2), 0.5))
    only_results = ranked_list_figure(
        pictures[:1], [pictures[1:2]], [[True]], result_kept=[masks[1:2]], grid_size=(4, 2), height=HEIGHT
    )
    place(only_results, pictures[0])
    place(only_results, draw_kept(pictures[1], masks[1], (4, 2), 0.5))


def test_pictures_of_any_size_get_one_height() -> None:
    shapes = [(20, 10), (10, 20), (300, 100)]
    black = [np.zeros((*shape, 3), dtype=np.uint8) for shape in shapes]
    for picture, (height, width) in zip(black, shapes, strict=True):
        canvas = np.asarray(ranked_list_figure([picture], [[]], [[]], height=120))
        dark = (canvas == 0).all(axis=-1)
        assert dark.sum(axis=0).max() == 120
        assert dark.sum(axis=1).max() == 120 * width // height
    ranked_list_figure(black[:1], [black[1:]], [[True, False]])


def test_captions_and_ranks_are_written(pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, int, int]] = []

    def text(self: object, at: tuple[int, int], line: str, **_: Any) -> None:
        written.append((line, *at))

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    ranked_list_figure(
        pictures[:2],
        [pictures[2:4], pictures[4:5]],
        [[True, False], [True]],
        query_captions=["id 7\ncam 2", ""],
        result_captions=[["id 1", "a very long caption " * 9], ["id 3"]],
    )
    lines = [line for line, *_ in written]
    assert lines[:3] == ["query", "1", "2"]
    assert lines[3:6] == ["id 7", "cam 2", "id 1"]
    assert lines[6].startswith("a ")
    assert lines[6].endswith("...")
    assert lines[7:] == ["id 3"]
    by_line = {line: (x, y) for line, x, y in written}
    assert by_line["id 7"][0] == by_line["cam 2"][0] == by_line["query"][0]
    assert by_line["id 7"][1] == by_line["id 1"][1] < by_line["cam 2"][1] < by_line["id 3"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": [], "results": [], "correct": []}, "0 queries and 0 rows"),
        ({"results": []}, "1 queries and 0 rows"),
        ({"correct": [[True]]}, r"correct must have \[2\] entries"),
        ({"result_captions": [["a"]]}, r"result_captions must have \[2\] entries"),
        ({"query_captions": ["a", "b"]}, "query_captions has 2 entries for 1 queries"),
        ({"query_kept": [np.ones(8, dtype=bool)]}, "need grid_size"),
        ({"query_kept": [np.ones(7, dtype=bool)], "grid_size": (4, 2)}, "grid of 4 x 2"),
        ({"result_kept": [[]], "grid_size": (4, 2)}, r"result_kept must have \[2\] entries"),
        ({"queries": [np.zeros((4, 4, 3))]}, "uint8 pictures"),
        ({"queries": [np.zeros((4, 4), dtype=np.uint8)]}, r"\(4, 4\) uint8"),
        ({"height": 0}, "height=0"),
    ],
)
def test_what_does_not_fit_is_refused(pictures: list[np.ndarray], change: dict[str, Any], message: str) -> None:
    given = {"queries": pictures[:1], "results": [pictures[1:3]], "correct": [[True, False]]}
    with pytest.raises(InputError, match=message):
        ranked_list_figure(**{**given, **change})
