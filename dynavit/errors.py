"""The error that means "the user can fix this"."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from dynavit.text import printable

_LONGEST = 900  # characters of a message


class InputError(ValueError):
    """A value the user gave cannot work. The message names it and says what to do.

    The command line prints it as one line and exits with status 2; from Python it is a ValueError. What users wrote
    stands in it printable, and in part where it is very long.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if text.startswith("Caught InputError"):  # from a data worker: torch puts its traceback before the message
            text = text.rstrip().rpartition("dynavit.errors.InputError: ")[2]
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
        super().__init__(printable(text))


class UnsupportedBackbone(InputError, TypeError):
    """A model that dynavit cannot prune; the message names the part in the way and lists what works."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or ``""``.

    Capital letters do not count, and of names that begin alike the shortest is nearest.

    Example:
        >>> did_you_mean("DeiT_small", ["nest_small", "deit_small_patch16_224"])
        " Did you mean 'deit_small_patch16_224'?"
    """
    names = {other.lower(): other for other in sorted(known, reverse=True)}
    asked = str(name).lower()
    begin_alike = sorted((other for other in names if len(asked) > 2 and other.startswith(asked)), key=len)
    nearest = begin_alike or get_close_matches(asked, list(names), n=1)
    return f" Did you mean {names[nearest[0]]!r}?" if nearest else ""
