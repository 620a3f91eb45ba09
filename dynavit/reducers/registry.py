"""Reducers by name."""

from __future__ import annotations

from typing import Any

from dynavit.errors import InputError
from dynavit.parts import Registry
from dynavit.reducers.aggregate import Aggregate
from dynavit.reducers.base import Reducer
from dynavit.reducers.drop import Drop
from dynavit.reducers.fuse import Fuse
from dynavit.reducers.merge import Merge
from dynavit.reducers.merge_nearest import MergeNearest
from dynavit.reducers.squeeze import Squeeze

_CLASSES: tuple[type[Reducer | Merge], ...] = (Aggregate, Drop, Fuse, Merge, MergeNearest, Squeeze)
_REDUCERS: Registry[Reducer | Merge] = Registry("reducer", supplied=("dim",))
_REDUCERS.classes.update({cls.name: cls for cls in _CLASSES})


def create_reducer(name: str, dim: int, **options: Any) -> Reducer | Merge:
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
    return _REDUCERS.create(name, options, dim=dim)


def list_reducers() -> dict[str, str]:
    """Return every reducer's name with the first line of its documentation."""
    return _REDUCERS.summaries()


def reducer_config(reducer: Reducer | Merge) -> dict[str, Any]:
    """Return ``{"name": ..., option: value, ...}`` from which :func:`create_reducer` rebuilds it.

    Raises:
        InputError: the class is none of :func:`list_reducers`.
    """
    if _REDUCERS.classes.get(getattr(reducer, "name", "")) is not type(reducer):
        raise InputError(
            f"{type(reducer).__name__} is none of dynavit's reducers, so a saved model could not be rebuilt; "
            f"use one of {', '.join(sorted(_REDUCERS.classes))}."
        )
    return _REDUCERS.config(reducer.name, reducer)
