"""How pictures look: the colours, texts and axes that they share."""

from __future__ import annotations

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


def font(size: int) -> Any:
    """Return matplotlib's DejaVu Sans: Pillow's own font is ASCII, and file names and labels are not."""
    import matplotlib  # a large import, needed here alone

    try:
        return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
    except OSError:  # some distributions package the fonts elsewhere
        return ImageFont.load_default(size)


def shortened(text: str, typeface: Any, width: int) -> str:
    """Return the text on one line, cut off where it is wider than ``width`` pixels."""
    text = " ".join(text.split())
    if typeface.getlength(text) <= width:
        return text
    while text and typeface.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
