r"""Rows as comma-separated values, for spreadsheets and for reading back, and names that are safe to print.

Text that a spreadsheet would take for a formula begins with ``'``, so that it is shown and not run; numbers stay
numbers. What is no text in a file's name, and no UTF-8, is written as ``\udcXX``. :func:`read_csv` undoes both.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynavit.errors import InputError
from dynavit.files import write_text
from dynavit.text import is_command

Row = dict[str, Any]
"""A line of a table: what stands in each column, by its name."""

# the wide forms count as the plain ones in East Asian spreadsheets, and spaces before are dropped in some
_FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
_GUARDED = re.compile(rf"'(?={_FORMULA.pattern})")
_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|U000([0-9a-f]{5}))")
_LIKE_AN_ESCAPE = re.compile(r"\\(?=u[0-9a-f]{4}|U000[0-9a-f]{5})")


def csv_text(rows: Sequence[Row], terminal: bool = False) -> str:
    r"""Return rows as CSV with ``\n`` line ends; a column for every name, in the order in which names first come.

    Args:
        rows: of numbers, text and None, which leaves a cell empty, as a missing name does.
        terminal: what :func:`printable` escapes is escaped, too, so that a row is one line; :func:`read_csv` undoes it.

    Example:
        >>> print(csv_text([{"image": "=1+1.jpg", "change": -0.5}]), end="")
        image,change
        '=1+1.jpg,-0.5
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines: list[list[Any]] = [names, *([row.get(name) for name in names] for row in rows)]
    return "".join(_line([_cell(cell, terminal) for cell in line]) for line in lines)


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """Write rows as :func:`csv_text` gives them, in UTF-8.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, csv_text(rows))


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read rows that :func:`write_csv` wrote: text as it was, and numbers as text.

    Raises:
        InputError: the file cannot be read, is no UTF-8, or a line has more or fewer cells than the first.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    try:
        lines = [[_plain(cell) for cell in line] for line in csv.reader(io.StringIO(text, newline=""), strict=True)]
    except csv.Error as error:
        raise InputError(f"{path} is no table of comma-separated values: {error}.") from None
    names, *cells = lines or [[]]
    for number, line in enumerate(cells, start=2):
        if len(line) != len(names):
            raise InputError(f"{path}, line {number}: {len(line)} cells, and {len(names)} in the first line.")
    return [dict(zip(names, line, strict=True)) for line in cells]


def _line(cells: Sequence[Any]) -> str:
    # with this line end the module quotes both of its characters
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: Any, terminal: bool) -> Any:
    if not isinstance(value, str):
        return value
    text = _LIKE_AN_ESCAPE.sub(r"\\u005c", value)
    text = "".join(
        _escape(ord(character))
        if (is_command(character) if terminal else "\ud800" <= character <= "\udfff")
        else character
        for character in text
    )
    return f"'{text}" if _FORMULA.match(text) else text


def _escape(number: int) -> str:
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _plain(cell: str) -> str:
    cell = cell[1:] if _GUARDED.match(cell) else cell
    return _ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), cell)
