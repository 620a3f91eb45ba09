"""The error that means "the user can fix this"."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """A value the user gave cannot work. The message names it and says what to do.

    The command line prints it as one line and exits with status 2; from Python it is a ValueError.
    """


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
