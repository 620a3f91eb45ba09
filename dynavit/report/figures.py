"""Saving figures of matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dynavit.errors import InputError
from dynavit.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Target = str | Path | BinaryIO
"""File to write, whose ending is the format; or an open one, which becomes PNG."""


def require_format(path: str | Path) -> None:
    """Refuse a file name whose ending names no format of pictures.

    Raises:
        InputError: naming those that do.
    """
    from matplotlib.backend_bases import FigureCanvasBase  # a large import, needed here alone

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(path).suffix[1:].lower() not in known:
        raise InputError(f"{path}: the name of a picture ends in .png, or in one of {', '.join(known)}.")


def save_figure(figure: Figure, target: Target) -> None:
    """Write a figure, whole or not at all.

    Raises:
        InputError: the file's ending is no format, or it cannot be written.
    """
    if not isinstance(target, str | Path):
        figure.savefig(target)
        return
    require_format(target)
    with replacing(target) as partial:
        figure.savefig(partial)


def png(draw: Callable[[BinaryIO], None]) -> bytes:
    """Return the PNG that a function of an open file draws."""
    file = io.BytesIO()
    draw(file)
    return file.getvalue()
