"""Selectors by name, including those that other packages provide.

A package offers a selector through an entry point::

    setup(..., entry_points={"dynavit.selectors": ["mine = my_package:MySelector"]})
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from dynavit.errors import InputError
from dynavit.parts import Registry, load_entry_points
from dynavit.selectors.base import Selector

_SELECTORS: Registry[Selector] = Registry("selector")
_S = TypeVar("_S", bound=type[Selector])


def register_selector(name: str, *, override: bool = False) -> Callable[[_S], _S]:
    """Make a :class:`Selector` class available under ``name``.

    Raises:
        InputError: the name is taken and ``override`` is False, or the class is no Selector.
    """

    def register(cls: _S) -> _S:
        if not (inspect.isclass(cls) and issubclass(cls, Selector)):
            raise InputError(f"selector {name!r}: {cls!r} is not a subclass of dynavit.Selector.")
        taken = _SELECTORS.classes.get(name)
        if taken not in (None, cls) and not override:
            raise InputError(
                f"selector {name!r} is already registered by {taken.__module__}; "
                f"choose another name or pass override=True."
            )
        _SELECTORS.classes[name] = cls
        return cls

    return register


def create_selector(name: str, **kwargs: Any) -> Selector:
    """Build a selector by name.

    Raises:
        InputError: unknown name or option; the message lists what exists.

    Example:
        >>> create_selector("topk").fixed_k
        True
    """
    return _selectors().create(name, kwargs)


def list_selectors() -> dict[str, str]:
    """Return every selector's name with the first line of its documentation."""
    return _selectors().summaries()


def _selectors() -> Registry[Selector]:
    _load_entry_points()
    return _SELECTORS


@cache
def _load_entry_points() -> None:
    load_entry_points("selector", register_selector)


def selector_config(selector: Selector) -> dict[str, Any]:
    """Return ``{"name": ..., option: value, ...}`` from which :func:`create_selector` rebuilds it.

    Options are read from the attributes named like the constructor's parameters.

    Raises:
        InputError: the class is not registered, or an option is not kept or not plain data.
    """
    names = [name for name, cls in _selectors().classes.items() if cls is type(selector)]
    if not names:
        raise InputError(
            f"{type(selector).__name__} is not a registered selector, so a saved model could not be "
            f"rebuilt; decorate the class with @dynavit.register_selector('name')."
        )
    return _selectors().config(names[0], selector)
