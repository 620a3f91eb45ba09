"""Registry of a model by name: how selectors, scorers and reducers are created, listed and described."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, get_type_hints

from dynavit.errors import InputError, did_you_mean

_T = TypeVar("_T")
_PLAIN: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Registry(Generic[_T]):
    """All classes of one kind, by name.

    A part's options are its constructor's parameters, kept in attributes of the same name.

    Args:
        kind: what they are, for messages.
        supplied: parameters that are no options, because the model supplies them.

    Attributes:
        classes: the classes by name.
    """

    def __init__(self, kind: str, supplied: tuple[str, ...] = ()) -> None:
        self.kind, self.supplied = kind, supplied
        self.classes: dict[str, type[_T]] = {}

    def create(self, name: str, options: Mapping[str, Any], **supplied: Any) -> _T:
        """Build a part from its options and, if it asks for them, the parameters that the model supplies.

        Args:
            name: of the part.
            options: with ``module``, where the class is from, as :func:`with_module` adds it; it is never imported.

        Raises:
            InputError: unknown name or option, or an option of another type; the message lists what exists, or says
                what to import first.
        """
        if name not in self.classes:
            known = sorted(self.classes)
            if isinstance(options.get("module"), str):
                raise InputError(f"unknown {self.kind} {name!r}: {_where(options['module'])}")
            raise InputError(f"unknown {self.kind} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
        cls = self.classes[name]
        known = self.options(cls)
        if "module" not in known:
            options = {key: value for key, value in options.items() if key != "module"}
        for key in options:
            if key not in known:
                raise InputError(
                    f"{self.kind} {name!r} has no option {key!r}.{did_you_mean(key, known)} "
                    f"Its options: {', '.join(known) or 'none'}."
                )
        self._check_types(name, options)
        asked = inspect.signature(cls).parameters
        return cls(**options, **{key: value for key, value in supplied.items() if key in asked})

    def _check_types(self, name: str, options: Mapping[str, Any]) -> None:
        try:
            hints = get_type_hints(self.classes[name].__init__)
        except (NameError, TypeError):  # somebody else's annotations, which cannot be looked up
            return
        for key, value in options.items():
            kind = hints.get(key)
            if kind not in _PLAIN:
                continue
            fits = isinstance(value, int | float if kind is float else kind)  # type: ignore[arg-type]
            if not fits or isinstance(value, bool) != (kind is bool):
                raise InputError(f"{self.kind} {name!r}: {key}={value!r}; give {_PLAIN[kind]}.")

    def summaries(self) -> dict[str, str]:
        """Return every name with the first line of its documentation."""
        classes = sorted(self.classes.items())
        return {name: (inspect.getdoc(cls) or "").partition("\n")[0] for name, cls in classes}

    def config(self, name: str, part: _T) -> dict[str, Any]:
        """Return ``{"name": ..., option: value, ...}``, from which the part can be built again.

        Raises:
            InputError: an option is not kept, or is not plain data.
        """
        config: dict[str, Any] = {"name": name}
        for option in self.options(type(part)):
            value = getattr(part, option, inspect.Parameter.empty)
            values = value.values() if isinstance(value, dict) else (value,)
            if not all(isinstance(one, bool | int | float | str | None) for one in values):
                raise InputError(
                    f"option {option!r} of {self.kind} {name!r} cannot be saved: keep it as a plain number, string or "
                    f"None in self.{option}."
                )
            config[option] = value
        return config

    def options(self, cls: type[_T]) -> list[str]:
        """Return the names of a class's options."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return [name for name in named if name not in self.supplied]


def with_module(config: Mapping[str, Any], part: Any) -> dict[str, Any]:
    """Return a part's description, of a class that is not dynavit's with the ``module`` that it is from."""
    module = type(part).__module__
    return dict(config) if module.partition(".")[0] == "dynavit" else {"module": module, **config}


def load_entry_points(kind: str, register: Callable[[str], Callable[[Any], Any]]) -> None:
    """Register what other packages provide through entry points of the group ``dynavit.KINDs``.

    Args:
        kind: what they are.
        register: gives for a name the function that registers something under it.
    """
    for entry in entry_points(group=f"dynavit.{kind}s"):
        try:
            register(entry.name)(entry.load())
        except Exception as error:  # somebody else's package must not break ours
            owner = entry.dist.name if entry.dist else entry.value
            warnings.warn(f"{kind} {entry.name!r} of {owner} was not loaded: {error}", stacklevel=3)


def _where(module: str) -> str:
    if module in ("__main__", "__mp_main__"):
        return (
            "it was registered by the script or notebook that saved the model. Run the code that registers it "
            "first, or put that into a module of your own."
        )
    return f"it was registered by {module}, import that first."


def named_config(part: Any, called: str, otherwise: str = "") -> dict[str, Any]:
    """Return a part that is given by its name, or by a mapping, as ``{"name": ..., option: value}``.

    Raises:
        InputError: it is neither; ``called`` names what was given and ``otherwise`` what else is possible.
    """
    if isinstance(part, str):
        return {"name": part}
    if isinstance(part, Mapping) and isinstance(part.get("name"), str) and all(isinstance(key, str) for key in part):
        return dict(part)
    raise InputError(f"{called}: give a name, or a mapping with 'name'{otherwise}.")
