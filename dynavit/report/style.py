"""How pictures look: the colours, texts and axes that they share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, FAINT = "#24292f", "#646c76", "#d0d7de"
"""Colours of texts, of captions and of the lines behind what is drawn."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which can be told apart without colour vision."""

MARGIN, GAP = 16, 12
"""Pixels round a grid of pictures, and between two of them."""

_ASCII = frozenset(range(128))


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of matplotlib, in inches, that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a large import, needed here alone
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(axes: Axes, grid: Literal["both", "y"] = "both", size: float = 9) -> None:
    """Draw a faint grid behind everything, no frame, and numbers of this size."""
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=size, colors=INK)


def font(size: int, text: str = "") -> Any:
    """Return the font of :func:`font_file`; Pillow's own, which is ASCII, where matplotlib's is packaged elsewhere."""
    try:
        return ImageFont.truetype(font_file(text), size)
    except OSError:
        return ImageFont.load_default(size)


def font_file(text: str) -> str:
    """Return the font that has a sign for most characters: matplotlib's DejaVu Sans, or an installed one that has more.

    DejaVu Sans has no Chinese, Japanese or Korean.
    """
    import matplotlib  # large imports, needed here alone
    from matplotlib.font_manager import fontManager

    usual = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    needed = {ord(character) for character in text if not character.isspace()}
    if needed <= _ASCII or needed <= _characters(usual):
        return usual
    # matplotlib's LastResort has a box for every character
    installed = sorted({entry.fname for entry in fontManager.ttflist if "LastResort" not in entry.fname})
    return min((usual, *installed), key=lambda name: len(needed - _characters(name)))


@cache
def _characters(name: str) -> frozenset[int]:
    """Return the code points that a font has a sign for; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(name).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def shortened(text: str, typeface: Any, width: int) -> str:
    """Return the text on one line, cut off where it is wider than ``width`` pixels."""
    text = " ".join(text.split())
    if typeface.getlength(text) <= width:
        return text
    while text and typeface.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
