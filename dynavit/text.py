"""Text from elsewhere, such as file names, on a terminal."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_JOINERS = "\u200c\u200d"  # some scripts spell with them


def printable(text: object) -> str:
    r"""Return text in which no character moves the cursor, changes colours or turns the direction of reading.

    Those become escapes; the two joiners that some scripts spell with stay.

    Example:
        >>> print(printable("a\x1b[31m\nb"))
        a\x1b[31m\nb
    """
    return "".join(
        character.encode("unicode_escape").decode() if is_command(character) else character for character in str(text)
    )


def is_command(character: str) -> bool:
    """Whether a terminal or an editor may act on a character instead of showing it."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS


def first_line(value: object, length: int = 200) -> str:
    """Return the first line of a text or error, at most so many characters; the name of its type if it is empty."""
    return str(value).strip().partition("\n")[0][:length] or type(value).__name__


def listed(names: Iterable[str] | Iterable[Path], most: int = 10) -> str:
    """Write names with commas, but not hundreds of them, and none in full that is longer than a line.

    Example:
        >>> listed(["a", "b", "c"]), listed("abc", most=2), listed([])
        ('a, b, c', 'a, b and 1 more', 'none')
    """
    found = list(names)
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return (", ".join(printable(name)[:200] for name in found[:most]) or "none") + more


def spread(names: Iterable[str]) -> list[str]:
    """Return names sorted, but first one of every part of a model, so that a part with many hides no other.

    Example:
        >>> spread(["aux.a", "aux.b", "aux.c", "net.a"])
        ['aux.a', 'net.a', 'aux.b', 'aux.c']
    """
    seen: Counter[str] = Counter()
    places = []
    for name in sorted(names):
        part = name.partition(".")[0]
        places.append((seen[part], name))
        seen[part] += 1
    return [name for _, name in sorted(places)]
