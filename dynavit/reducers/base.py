"""What a reducer is: it shortens a token sequence once a selector has decided."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from dynavit.errors import InputError, did_you_mean


class Reducer(nn.Module):
    """Base class: turns all tokens of a stage into those that go on."""

    name: str

    @abstractmethod
    def forward(self, tokens: Tensor, index: Tensor) -> Tensor:
        """Reduce ``(B, L, D)`` tokens to the positions ``index`` ``(B, K)``, in that order."""


def create_reducer(name: str, **kwargs: Any) -> Reducer:
    """Build a reducer by name.

    Raises:
        InputError: unknown name.
    """
    known = {cls.name: cls for cls in Reducer.__subclasses__()}
    if name not in known:
        raise InputError(f"unknown reducer {name!r}.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}.")
    if kwargs:
        raise InputError(f"reducer {name!r} has no option {next(iter(kwargs))!r}; it has none.")
    return known[name]()
