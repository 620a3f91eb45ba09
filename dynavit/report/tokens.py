"""Pictures of the tokens that were kept.

Shapes: B images, H and W pixels, N patches, S stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from dynavit.errors import InputError
from dynavit.models import Trace
from dynavit.report.patches import as_array, draw_groups, draw_kept
from dynavit.report.style import GAP, INK, MARGIN, QUIET, font, shortened

_READABLE = 192  # pixels; smaller pictures are enlarged to about this


def trace_grid(
    images: Sequence[ArrayLike], trace: Trace, grid_size: tuple[int, int], captions: Sequence[str] | None = None
) -> Image.Image:
    """Draw what a forward in eval did to the tokens of its images: those kept after each stage, and groups.

    Where patches went into the token of another place (merged, squeezed), a last column shows which share one; for
    a model that only merges it is the only one. Tokens that a reducer made stand at no place: what they hold fades.

    Args:
        images: B pictures ``(H, W, 3)`` uint8 of one size.
        trace: of these images.
        grid_size: rows and columns of patches.
        captions: a line below each row.

    Raises:
        InputError: numbers or shapes that do not belong together.
    """
    token = trace.source.clamp(min=0)
    held = (trace.source >= 0) & (trace.positions.gather(1, token) >= 0)
    groups = torch.where(held, token, -1).cpu()
    sizes = torch.zeros_like(trace.positions).scatter_add(1, token, held.long())
    shares = bool((sizes > 1).any())
    merges = shares and not trace.choices
    masks = [] if merges else [stage.kept.cpu() for stage in trace.stages]
    return kept_token_grid(images, masks, grid_size, captions=captions, groups=groups if shares else None)


def kept_token_grid(
    images: Sequence[ArrayLike],
    masks_per_stage: Sequence[ArrayLike],
    grid_size: tuple[int, int],
    titles: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    scale: int | None = None,
    groups: ArrayLike | None = None,
) -> Image.Image:
    """Draw one row an image: the image itself, what is left of it after each stage, and what shares a token.

    Args:
        images: B pictures ``(H, W, 3)`` uint8 of one size.
        masks_per_stage: S masks ``(B, N)`` bool, ``kept`` of ``trace.stages``.
        grid_size: rows and columns of patches.
        titles: of the columns; "input", "stage 1: 32 of 64", ... "merged to 16 of 64" if None.
        captions: a line below each row.
        scale: enlarge by this factor, without smoothing; small pictures up to about 192 pixels if None.
        groups: ``(B, N)`` as :func:`draw_groups` takes them, for a last column; none if None.

    Raises:
        InputError: numbers or shapes that do not belong together.
    """
    pictures = [as_array(image) for image in images]
    masks = [as_array(mask).astype(bool) for mask in masks_per_stage]
    shared = None if groups is None else as_array(groups)
    if not pictures or any(picture.shape != pictures[0].shape for picture in pictures):
        raise InputError("kept_token_grid needs one or more images, all of one size.")
    each = masks if shared is None else [*masks, shared]
    if any(mask.ndim != 2 or len(mask) != len(pictures) for mask in each):
        shapes = [mask.shape for mask in each]
        raise InputError(f"kept_token_grid: masks {shapes} for {len(pictures)} images; each is (images, N).")
    titles = _default_titles(masks, shared) if titles is None else titles
    if len(titles) != 1 + len(each) or (captions is not None and len(captions) != len(pictures)):
        raise InputError("kept_token_grid needs a title for the input and each stage, a caption an image.")

    height, width = pictures[0].shape[:2]
    scale = scale or max(1, round(_READABLE / max(height, width)))
    height, width = height * scale, width * scale
    large, small = font(14), font(12, "".join(captions or ()))
    cell = max([width, *(int(large.getlength(title)) + 1 for title in titles)])
    row_height = height + (28 if captions else 0) + GAP
    size = (
        2 * MARGIN + len(titles) * (cell + GAP) - GAP,
        2 * MARGIN + 26 + len(pictures) * row_height - GAP,
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        middle = MARGIN + column * (cell + GAP) + cell // 2
        draw.text((middle, MARGIN + 16), title, fill=INK, font=large, anchor="ms")
    for row, picture in enumerate(pictures):
        top = MARGIN + 26 + row * row_height
        drawn = [picture, *(draw_kept(picture, mask[row], grid_size) for mask in masks)]
        if shared is not None:
            drawn.append(draw_groups(picture, shared[row], grid_size))
        for column, shown in enumerate(drawn):
            enlarged = Image.fromarray(shown).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (MARGIN + column * (cell + GAP) + (cell - width) // 2, top))
        if captions:
            line = shortened(captions[row], small, size[0] - 2 * MARGIN)
            left = MARGIN + (cell - width) // 2
            draw.text((left, top + height + 17), line, fill=QUIET, font=small, anchor="ls")
    return canvas


def _default_titles(masks: Sequence[NDArray[np.bool_]], groups: NDArray[Any] | None) -> list[str]:
    titles = ["input"]
    for stage, mask in enumerate(masks, start=1):
        titles.append(f"stage {stage}: {_range(mask.sum(axis=1))} of {mask.shape[1]}")
    if groups is not None:
        titles.append(f"merged to {_range([len(np.unique(row[row >= 0])) for row in groups])} of {groups.shape[1]}")
    return titles


def _range(counts: ArrayLike) -> str:
    least, most = np.min(counts), np.max(counts)
    return f"{least}" if least == most else f"{least}-{most}"
