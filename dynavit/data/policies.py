"""timm's policy strings for automatic augmentation, read in full: timm passes over parts that it does not know."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from dynavit.errors import InputError, did_you_mean

_SETS = ("weights", "3aw", "3a")
_EXAMPLES = "'rand-m9-mstd0.5-inc1', 'augmix-m5-w4-d2' or '3a'"

_NOISE = {"mstd": (float, 0, math.inf)}
_PARTS: Mapping[str, Mapping[str, tuple[type, float, float]]] = {
    # of the weighted sets, which are drawn without replacement, the smaller one has 14 operations
    "rand": {
        "m": (int, 0, 100), "n": (int, 1, 14), "p": (float, 0, 1), "mmax": (int, 1, 100), "inc": (int, 0, 1), **_NOISE,
    },
    "augmix": {
        "m": (int, 0, 100), "w": (int, 1, 100), "d": (int, 1, 100), "a": (float, 1e-3, 1000), "b": (int, 0, 1),
        **_NOISE,
    },
    **dict.fromkeys(("v0", "v0r", "original", "originalr", "3a"), _NOISE),
}  # fmt: skip
"""By the first part of a policy what the others may be: whole or any numbers, with their ends."""


def check_policy(key: str, policy: object) -> None:
    """Refuse a policy of which timm would read a part, or none.

    Args:
        key: the setting, for messages.
        policy: such as ``"rand-m9-mstd0.5-inc1"``.

    Raises:
        InputError: it is no text, begins with no known name, or a part is unknown, out of range, or there twice.

    Example:
        >>> check_policy("auto_augment", "rand-m9-n3-mstd0.5-t3aw")
    """
    if not isinstance(policy, str):
        raise InputError(f"{key}={policy!r}: is a text, such as {_EXAMPLES}; null leaves it out.")
    name, *parts = policy.split("-")
    if name not in _PARTS:
        raise InputError(
            f"{key}={policy!r}: begins with one of {', '.join(_PARTS)}, such as {_EXAMPLES}; null leaves it out."
            f"{did_you_mean(name, _PARTS)}"
        )
    seen = set()
    for part in parts:
        option = _option(name, part)
        if option is None:
            raise InputError(f"{key}={policy!r}: {part!r} is no part of {name!r}. It may have {_admitted(name)}.")
        if option in seen:
            raise InputError(f"{key}={policy!r}: gives {option!r} twice; keep one of them.")
        seen.add(option)


def _option(name: str, part: str) -> str | None:
    """Return which option a part sets; None if it sets none, or to an impossible value."""
    if name == "rand" and part[:1] == "t":
        return "t" if part[1:] in _SETS else None
    found = re.fullmatch(r"([a-z]+)([0-9]+(\.[0-9]+)?)", part)
    if found is None or found[1] not in _PARTS[name]:
        return None
    kind, low, high = _PARTS[name][found[1]]
    fits = low <= float(found[2]) <= high and (kind is float or found[3] is None)
    return found[1] if fits else None


def _admitted(name: str) -> str:
    admitted = [
        f"{option} and a {'whole ' if kind is int else ''}number "
        + (f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}")
        for option, (kind, low, high) in _PARTS[name].items()
    ]
    sets = [f"t and one of {', '.join(_SETS)}"] if name == "rand" else []
    return "; ".join([*admitted, *sets])
