"""Reducers by name."""

from __future__ import annotations

import inspect
from typing import Any

from dynavit.errors import InputError, did_you_mean
from dynavit.reducers.aggregate import Aggregate
from dynavit.reducers.base import Reducer
from dynavit.reducers.drop import Drop
from dynavit.reducers.fuse import Fuse
from dynavit.reducers.merge import Merge
from dynavit.reducers.squeeze import Squeeze

_CLASSES: tuple[type[Reducer], ...] = (Aggregate, Drop, Fuse, Merge, Squeeze)
_REDUCERS = {cls.name: cls for cls in _CLASSES}


def create_reducer(name: str, dim: int, **options: Any) -> Reducer:
    """Build a reducer by name.

    Args:
        name: one of :func:`list_reducers`.
        dim: token width D; only reducers with parameters need it.

    Raises:
        InputError: unknown name or option, or an impossible value; the message lists what exists.

    Example:
        >>> create_reducer("fuse", 384, normalize=False).makes
        1
    """
    cls = _REDUCERS.get(name)
    if cls is None:
        raise InputError(
            f"unknown reducer {name!r}.{did_you_mean(name, _REDUCERS)} Known: {', '.join(sorted(_REDUCERS))}."
        )
    known = _options(cls)
    for key in options:
        if key not in known:
            raise InputError(
                f"reducer {name!r} has no option {key!r}.{did_you_mean(key, known)} "
                f"Its options: {', '.join(known) or 'none'}."
            )
    if "dim" in inspect.signature(cls).parameters:
        options["dim"] = dim
    return cls(**options)


def list_reducers() -> dict[str, str]:
    """Return every reducer's name with the first line of its documentation."""
    return {name: (inspect.getdoc(cls) or "").partition("\n")[0] for name, cls in sorted(_REDUCERS.items())}


def reducer_config(reducer: Reducer) -> dict[str, Any]:
    """Return ``{"name": ..., option: value, ...}`` from which :func:`create_reducer` rebuilds it.

    Raises:
        InputError: the class is none of :func:`list_reducers`.
    """
    if _REDUCERS.get(getattr(reducer, "name", "")) is not type(reducer):
        raise InputError(
            f"{type(reducer).__name__} is none of dynavit's reducers, so a saved model could not be rebuilt; "
            f"use one of {', '.join(sorted(_REDUCERS))}."
        )
    return {"name": reducer.name, **{option: getattr(reducer, option) for option in _options(type(reducer))}}


def _options(cls: type[Reducer]) -> list[str]:
    if "__init__" not in vars(cls):  # nn.Module's takes anything
        return []
    return [name for name in inspect.signature(cls).parameters if name != "dim"]
