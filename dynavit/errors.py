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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or ``""``."""
    nearest = get_close_matches(name, list(known), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
