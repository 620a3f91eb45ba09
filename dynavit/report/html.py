"""A report that is one file: no scripts, nothing to load."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image, UnidentifiedImageError

from dynavit.errors import InputError
from dynavit.files import write_text
from dynavit.report.rows import is_adaptive, is_dense
from dynavit.report.summary import explain, headline
from dynavit.report.table import evaluation_columns
from dynavit.report.tradeoffs import advice, price_columns
from dynavit.tables import Row

Picture = str | Path | bytes | Image.Image

_KINDS = ("png", "jpeg", "webp", "gif")  # what every browser shows


def write_report(
    path: str | Path,
    title: str,
    rows: Sequence[Row],
    images: Mapping[str, Picture],
    settings: Mapping[str, Any],
    metric: str = "top1",
) -> None:
    """Write an evaluation as one self-contained HTML file.

    Args:
        path: file to write. The other arguments are those of :func:`render_report`.

    Raises:
        InputError: no row, a picture that cannot be read, or a file that cannot be written.
    """
    write_text(path, render_report(title, rows, images, settings, metric))


def render_report(
    title: str,
    rows: Sequence[Row],
    images: Mapping[str, Picture],
    settings: Mapping[str, Any],
    metric: str = "top1",
) -> str:
    """Return an evaluation as one self-contained page of HTML.

    Args:
        title: heading.
        rows: see :mod:`dynavit.report.rows`; "dense" rows are highlighted.
        images: pictures by caption, as files, the bytes of a PNG or PIL images; they are embedded.
        settings: what to know about the run; nested mappings become dotted names.
        metric: the metric to show.

    Raises:
        InputError: no row, or a picture that cannot be read.
    """
    table = evaluation_columns(rows, metric)
    groups = [(name, list(members)) for name, members in groupby(table, key=lambda column: column.group)]
    # the environment escapes everything: titles, captions and settings come from users
    environment = Environment(loader=PackageLoader("dynavit.report", "."), autoescape=True)
    return environment.get_template("report.html").render(
        title=title,
        headline=_typeset(headline(rows, metric)),
        explanation=_typeset(explain(rows, metric)),
        advice=[_typeset(line) for line in advice(rows, metric)],
        prices=[(column, [_typeset(cell) for cell in column.cells]) for column in price_columns(rows, metric)],
        adaptive=any(is_adaptive(row) for row in rows),
        groups=groups,
        columns=table,
        rows=[
            {"dense": is_dense(row), "cells": [_typeset(column.cells[number]) for column in table]}
            for number, row in enumerate(rows)
        ],
        images={caption: _data_uri(image) for caption, image in images.items()},
        settings=_flattened(settings),
    )


def _typeset(text: str) -> str:
    """Use the signs that print has and terminals may lack: minus, times, and a dash for nothing."""
    text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)
    text = re.sub(r"(?<=\d)x(?!\w)", "\N{MULTIPLICATION SIGN}", text)
    return "\N{EN DASH}" if text == "-" else text


def _data_uri(image: Picture) -> str:
    if isinstance(image, bytes):
        kind, data = "png", image
    elif isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        kind, data = "png", buffer.getvalue()
    else:
        try:
            data = Path(image).read_bytes()
            kind = (Image.open(io.BytesIO(data)).format or "").lower()
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"the picture {image} cannot be read: {error}.") from None
        if kind not in _KINDS:
            raise InputError(f"the picture {image} is {kind or 'of no known kind'}; use {', '.join(_KINDS)}.")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{key}"] = ", ".join(map(str, value))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
