"""Numbers that users give, told from what only looks like one."""

from __future__ import annotations

import math
from numbers import Real
from operator import index
from typing import Any

from dynavit.errors import InputError


def checked_whole(name: str, value: Any, least: int) -> int:
    """Return a whole number.

    Raises:
        InputError: it is none, or too small.
    """
    try:
        whole = least - 1 if isinstance(value, bool) else index(value)
    except TypeError:
        whole = least - 1
    if whole < least:
        raise InputError(f"{name}={value!r}: a whole number, at least {least}.")
    return whole


def is_number(value: Any) -> bool:
    """Whether a value is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite_number(value: Any) -> bool:
    """Whether a value is a real number, and neither infinite nor NaN."""
    return is_number(value) and math.isfinite(value)
