"""What a setting may be, declared where it is defined."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dynavit.errors import InputError, did_you_mean

_NO_NUMBERS = ("inf", "infinity", "nan")


@dataclass(frozen=True)
class Interval:
    """Numbers between two ends, written as in mathematics: ``(0, 1]`` is above 0 and at most 1.

    Example:
        >>> 1 in Interval("(0, 1]"), 0 in Interval("(0, 1]"), float("nan") in Interval("[0, inf)")
        (True, False, False)
        >>> str(Interval("(0, inf)")), str(Interval("[2, inf)")), str(Interval("[0, 1)"))
        ('must be above 0', 'must be at least 2', 'lies in [0, 1)')
    """

    text: str

    @property
    def ends(self) -> tuple[float, float]:
        """The lower and the upper one."""
        low, high = self.text[1:-1].split(",")
        return float(low), float(high)

    def __contains__(self, number: float) -> bool:
        low, high = self.ends
        above = number >= low if self.text[0] == "[" else number > low
        return above and (number <= high if self.text[-1] == "]" else number < high)

    def __str__(self) -> str:
        low, high = self.ends
        if high < math.inf:
            return f"lies in {self.text}"
        if low == 0 and self.text[0] == "[":
            return "must not be negative"
        return f"must be {'at least' if self.text[0] == '[' else 'above'} {low:g}"


def setting(
    default: Any,
    within: str | None = None,
    choices: tuple[str, ...] | None = None,
    task: str | None = None,
    named: str | None = None,
) -> Any:
    """Return a dataclass field that says what it may be.

    Args:
        default: its default, or a function without arguments that makes it.
        within: interval of a number, or of each number of a list. Every number has one.
        choices: all that a text may be, where there is one.
        task: the only task that knows it; elsewhere it would do nothing.
        named: it is a part with a name and options, and this is one of the names.
    """
    limits = {"within": Interval(within) if within else None, "choices": choices, "task": task, "named": named}
    if callable(default):
        return field(default_factory=default, metadata=limits)
    return field(default=default, metadata=limits)


def check_value(key: str, value: Any, within: Interval | None = None, choices: tuple[str, ...] | None = None) -> None:
    """Refuse a value that a setting cannot have; numbers inside mappings and lists must be finite.

    Raises:
        InputError: naming the key, the value and what is possible.
    """
    if choices is not None and value is not None and value not in choices:
        raise InputError(f"{key}={value!r}: choose one of {', '.join(choices)}.{did_you_mean(value, choices)}")
    for name, part in parts(key, value):
        shown = f"{name}={part}" if part is value or name != key else f"{key}={value}: {part}"
        if isinstance(part, str) and "\0" in part:
            raise InputError(f"{name}={part!r}: text cannot hold the character NUL.")
        # which YAML takes for text: it writes .inf and .nan
        if isinstance(part, str) and part is not value and part.lower().lstrip("+-") in _NO_NUMBERS:
            raise InputError(f"{shown}: must be a finite number.")
        if not isinstance(part, int | float) or isinstance(part, bool):
            continue
        if isinstance(part, float) and not math.isfinite(part):
            raise InputError(f"{shown}: must be a finite number.")
        if within is not None and part not in within:
            raise InputError(f"{shown}: {within}.")


def parts(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield all that a value is made of; what is in a mapping has a key of its own."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from parts(f"{key}.{name}", part)
    elif isinstance(value, list):
        for part in value:
            yield from parts(key, part)
    else:
        yield key, value
