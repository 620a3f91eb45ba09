"""Pictures of ranked lists: each query and what was found for it.

Shapes: H and W pixels of any picture, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from dynavit.errors import InputError
from dynavit.report.patches import as_array, draw_kept
from dynavit.report.style import GAP, INK, MARGIN, QUIET, font, shortened

_RIGHT, _WRONG = (26, 127, 55), (207, 34, 46)
_FRAME, _BADGE = 4, 22  # pixels
_FADED = 0.5  # so that one still sees who it is where few patches are kept
_LINE = 15  # pixels of a caption's line


@dataclass(frozen=True)
class _Cell:
    picture: Image.Image
    caption: list[str]
    correct: bool | None  # None for a query


def ranked_list_figure(
    queries: Sequence[ArrayLike],
    results: Sequence[Sequence[ArrayLike]],
    correct: Sequence[Sequence[bool]],
    *,
    query_captions: Sequence[str] | None = None,
    result_captions: Sequence[Sequence[str]] | None = None,
    query_kept: Sequence[ArrayLike] | None = None,
    result_kept: Sequence[Sequence[ArrayLike]] | None = None,
    grid_size: tuple[int, int] | None = None,
    height: int = 160,
) -> Image.Image:
    """Draw one row a query: the query in a grey frame, then its results from the nearest on.

    A result of the query's identity has a green frame and a check, another a red frame and a cross, so
    that both can be told apart without colours.

    Args:
        queries: pictures ``(H, W, 3)`` uint8; they may differ in size.
        results: for each query its results, the nearest first; rows may differ in length.
        correct: for each result whether it shows the query's identity.
        query_captions: below each query, such as ``"id 7, camera 2"``; a newline starts a new line.
        result_captions: likewise for each result.
        query_kept: for each query ``(N,)`` bool; dropped patches are faded.
        result_kept: likewise for each result.
        grid_size: rows and columns of patches, for the kept tokens.
        height: of every picture, in pixels.

    Raises:
        InputError: no query, numbers that do not belong together, pictures that are not uint8, kept
            tokens without a grid size or of another grid, or a height below 1.
    """
    counts = [len(row) for row in results]
    if not queries or len(queries) != len(results):
        raise InputError(f"ranked_list_figure: {len(queries)} queries and {len(results)} rows of results; one each.")
    for name, nested in {"correct": correct, "result_captions": result_captions, "result_kept": result_kept}.items():
        if nested is not None and [len(row) for row in nested] != counts:
            raise InputError(f"ranked_list_figure: {name} must have {counts} entries, as results does.")
    for name, single in {"query_captions": query_captions, "query_kept": query_kept}.items():
        if single is not None and len(single) != len(queries):
            raise InputError(f"ranked_list_figure: {name} has {len(single)} entries for {len(queries)} queries.")
    if height < 1:
        raise InputError(f"ranked_list_figure: height={height} pixels; 1 or more.")
    if (query_kept is not None or result_kept is not None) and grid_size is None:
        raise InputError("ranked_list_figure: kept tokens need grid_size, the rows and columns of patches.")

    rows = []
    for q, query in enumerate(queries):
        query_cell = _Cell(
            _picture(query, None if query_kept is None else query_kept[q], grid_size, height),
            [] if query_captions is None else query_captions[q].splitlines(),
            None,
        )
        result_cells = [
            _Cell(
                _picture(result, None if result_kept is None else result_kept[q][r], grid_size, height),
                [] if result_captions is None else result_captions[q][r].splitlines(),
                bool(correct[q][r]),
            )
            for r, result in enumerate(results[q])
        ]
        rows.append([query_cell, *result_cells])
    return _draw(rows, height)


def _picture(image: ArrayLike, kept: ArrayLike | None, grid_size: tuple[int, int] | None, height: int) -> Image.Image:
    pixels = as_array(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise InputError(f"ranked_list_figure needs (H, W, 3) uint8 pictures, not {pixels.shape} {pixels.dtype}.")
    if kept is not None and grid_size is not None:
        pixels = draw_kept(pixels, kept, grid_size, _FADED)
    width = max(1, round(pixels.shape[1] * height / pixels.shape[0]))
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)


def _draw(rows: list[list[_Cell]], height: int) -> Image.Image:
    large = font(14)
    small = font(12, "".join(line for row in rows for shown in row for line in shown.caption))
    cell = max(c.picture.width for row in rows for c in row) + 2 * _FRAME
    columns = max(len(row) for row in rows)
    lines = [max(len(c.caption) for c in row) for row in rows]
    heights = [height + 2 * _FRAME + (4 + _LINE * count if count else 0) + GAP for count in lines]
    lefts = [MARGIN + column * (cell + GAP) + (GAP if column else 0) for column in range(columns)]
    size = (lefts[-1] + cell + MARGIN, 2 * MARGIN + 26 + sum(heights) - GAP)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, left in enumerate(lefts):
        draw.text((left + cell // 2, MARGIN + 16), str(column or "query"), fill=INK, font=large, anchor="ms")
    top = MARGIN + 26
    for row, row_height in zip(rows, heights, strict=True):
        for left, shown in zip(lefts, row, strict=False):
            _draw_cell(canvas, draw, shown, left + (cell - shown.picture.width) // 2, top)
            for number, line in enumerate(shown.caption):
                place = (left + cell // 2, top + height + 2 * _FRAME + 4 + _LINE * number + 11)
                draw.text(place, shortened(line, small, cell), fill=QUIET, font=small, anchor="ms")
        top += row_height
    return canvas


def _draw_cell(canvas: Image.Image, draw: ImageDraw.ImageDraw, shown: _Cell, left: int, top: int) -> None:
    """Paste a picture with its frame inside the column, and its mark."""
    colour = QUIET if shown.correct is None else _RIGHT if shown.correct else _WRONG
    width, height = shown.picture.size
    outer = (left - _FRAME, top, left + width + _FRAME - 1, top + height + 2 * _FRAME - 1)
    draw.rectangle(outer, fill=colour)
    canvas.paste(shown.picture, (left, top + _FRAME))
    if shown.correct is None:
        return
    x, y = outer[0], outer[1]
    draw.rectangle((x, y, x + _BADGE, y + _BADGE), fill=colour)
    check, cross = [[(5, 12), (9, 16), (17, 6)]], [[(6, 6), (16, 16)], [(6, 16), (16, 6)]]
    for stroke in check if shown.correct else cross:
        draw.line([(x + dx, y + dy) for dx, dy in stroke], fill="white", width=3, joint="curve")
