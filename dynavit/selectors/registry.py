"""Selectors by name, including those that other packages provide.

A package offers a selector through an entry point::

    setup(..., entry_points={"dynavit.selectors": ["mine = my_package:MySelector"]})
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from dynavit.errors import InputError, did_you_mean
from dynavit.selectors.base import Selector

_SELECTORS: dict[str, type[Selector]] = {}
_S = TypeVar("_S", bound=type[Selector])


def register_selector(name: str, *, override: bool = False) -> Callable[[_S], _S]:
    """Make a :class:`Selector` class available under ``name``.

    Raises:
        InputError: the name is taken and ``override`` is False, or the class is no Selector.
    """

    def register(cls: _S) -> _S:
        if not (inspect.isclass(cls) and issubclass(cls, Selector)):
            raise InputError(f"selector {name!r}: {cls!r} is not a subclass of dynavit.Selector.")
        if name in _SELECTORS and _SELECTORS[name] is not cls and not override:
            raise InputError(
                f"selector {name!r} is already registered by {_SELECTORS[name].__module__}; "
                f"choose another name or pass override=True."
            )
        _SELECTORS[name] = cls
        return cls

    return register


def create_selector(name: str, **kwargs: Any) -> Selector:
    """Build a selector by name.

    Raises:
        InputError: unknown name or option; the message lists what exists.

    Example:
        >>> create_selector("topk").budget
        'k'
    """
    cls = _selectors().get(name)
    if cls is None:
        known = sorted(_selectors())
        raise InputError(f"unknown selector {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    options = _options(cls)
    for key in kwargs:
        if key not in options:
            raise InputError(
                f"selector {name!r} has no option {key!r}.{did_you_mean(key, options)} "
                f"Its options: {', '.join(options) or 'none'}."
            )
    return cls(**kwargs)


def list_selectors() -> dict[str, str]:
    """Return every selector's name with the first line of its documentation."""
    found = sorted(_selectors().items())
    return {name: (inspect.getdoc(cls) or "").partition("\n")[0] for name, cls in found}


def _selectors() -> dict[str, type[Selector]]:
    _load_entry_points()
    return _SELECTORS


@cache
def _load_entry_points() -> None:
    for entry in entry_points(group="dynavit.selectors"):
        try:
            register_selector(entry.name)(entry.load())
        except Exception as error:  # somebody else's package must not break ours
            owner = entry.dist.name if entry.dist else entry.value
            warnings.warn(f"selector {entry.name!r} of {owner} was not loaded: {error}", stacklevel=2)


def selector_config(selector: Selector) -> dict[str, Any]:
    """Return ``{"name": ..., option: value, ...}`` from which :func:`create_selector` rebuilds it.

    Options are read from the attributes named like the constructor's parameters.

    Raises:
        InputError: the class is not registered, or an option is not kept or not plain data.
    """
    names = [name for name, cls in _selectors().items() if cls is type(selector)]
    if not names:
        raise InputError(
            f"{type(selector).__name__} is not a registered selector, so a saved model could not be "
            f"rebuilt; decorate the class with @dynavit.register_selector('name')."
        )
    config: dict[str, Any] = {"name": names[0]}
    for option in _options(type(selector)):
        value = getattr(selector, option, inspect.Parameter.empty)
        if not isinstance(value, bool | int | float | str | None):
            raise InputError(
                f"option {option!r} of selector {names[0]!r} cannot be saved: keep it as a plain "
                f"number, string or None in self.{option}."
            )
        config[option] = value
    return config


def _options(cls: type[Selector]) -> list[str]:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
