"""A report that is one file: no scripts, nothing to load."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image, UnidentifiedImageError

from dynavit.errors import InputError
from dynavit.files import write_text
from dynavit.report.rows import is_adaptive, is_dense
from dynavit.report.summary import explain, headline
from dynavit.report.table import Column, begins_group, evaluation_columns
from dynavit.report.tradeoffs import advice, price_columns
from dynavit.tables import Row

Picture = str | Path | bytes | Image.Image

_KINDS = ("png", "jpeg", "webp", "gif")  # what every browser shows
_WIDE = 800  # pixels; narrower pictures stand beside each other where there is room
_PRICES = "Points, interpolated between measured rows; a dash where no row is as fast."


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: heading.
        columns: of a table.
        note: a paragraph below it.
        images: pictures by caption.
    """

    title: str
    columns: Sequence[Column] = ()
    note: str = ""
    images: Mapping[str, Picture] = field(default_factory=dict)


def write_report(
    path: str | Path,
    title: str,
    rows: Sequence[Row],
    sections: Sequence[Section],
    settings: Mapping[str, Any],
    metric: str = "top1",
) -> None:
    """Write an evaluation as one self-contained HTML file.

    Args:
        path: file to write. The other arguments are those of :func:`render_report`.

    Raises:
        InputError: no row, a picture that cannot be read, or a file that cannot be written.
    """
    write_text(path, render_report(title, rows, sections, settings, metric))


def render_report(
    title: str,
    rows: Sequence[Row],
    sections: Sequence[Section],
    settings: Mapping[str, Any],
    metric: str = "top1",
) -> str:
    """Return an evaluation as one self-contained page of HTML.

    Args:
        title: heading.
        rows: see :mod:`dynavit.report.rows`; "dense" rows are highlighted.
        sections: what stands below the results; pictures in them are files, the bytes of a PNG or PIL images, and are
            embedded.
        settings: what to know about the run; nested mappings become dotted names.
        metric: the metric to show.

    Raises:
        InputError: no row, or a picture that cannot be read.
    """
    prices = price_columns(rows, metric)
    costs = [Section("What speed costs", prices, _PRICES)] if prices else []
    # the environment escapes everything: titles, captions and settings come from users
    environment = Environment(loader=PackageLoader("dynavit.report", "."), autoescape=True)
    return environment.get_template("report.html").render(
        title=title,
        headline=_typeset(headline(rows, metric)),
        results=_table(evaluation_columns(rows, metric)),
        dense=[is_dense(row) for row in rows],
        adaptive=any(is_adaptive(row) for row in rows),
        explanation=_typeset(explain(rows, metric)),
        advice=[_typeset(line) for line in advice(rows, metric)],
        sections=[_section(section) for section in (*costs, *sections)],
        settings=_flattened(settings),
    )


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "table": _table(section.columns),
        "note": section.note,
        "images": [{"caption": caption, **_embedded(image)} for caption, image in section.images.items()],
    }


def _table(columns: Sequence[Column]) -> dict[str, Any]:
    """Return what the page draws a table from: groups of columns, and lines of cells."""
    groups = [(name, list(members)) for name, members in groupby(columns, key=lambda column: column.group)]
    first = [bool(column.group) and begins_group(columns, n) for n, column in enumerate(columns)]
    cells = zip(*(column.cells for column in columns), strict=True)
    lines = [
        [
            (cell if column.left else _typeset(cell), starts, column.left)
            for cell, starts, column in zip(line, first, columns, strict=True)
        ]
        for line in cells
    ]
    return {"groups": groups, "grouped": any(name for name, _ in groups), "lines": lines}


def _typeset(text: str) -> str:
    """Use the signs that print has and terminals may lack: minus, times, and a dash for nothing."""
    text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)
    text = re.sub(r"(?<=\d)x(?!\w)", "\N{MULTIPLICATION SIGN}", text)
    return "\N{EN DASH}" if text == "-" else text


def _embedded(image: Picture) -> dict[str, Any]:
    """Return what the page shows of a picture: its address, with all of it inside, and whether it is a wide one."""
    if isinstance(image, bytes):
        data, name = image, "given"
    elif isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        data, name = buffer.getvalue(), "given"
    else:
        name = str(image)
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise InputError(f"the picture {name} cannot be read: {error}.") from None
    try:
        opened = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise InputError(f"the picture {name} cannot be read: {error}.") from None
    kind = (opened.format or "").lower()
    if kind not in _KINDS:
        raise InputError(f"the picture {name} is {kind or 'of no known kind'}; use {', '.join(_KINDS)}.")
    return {"source": f"data:image/{kind};base64,{base64.b64encode(data).decode()}", "wide": opened.width > _WIDE}


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
