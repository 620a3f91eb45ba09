"""An attribute that takes certain words only."""

from __future__ import annotations

from typing import Any

from dynavit.errors import InputError, did_you_mean


class OneOf:
    """A class attribute that checks what instances are given.

    Args:
        choices: the words it takes.

    Example:
        >>> class Model:
        ...     execution = OneOf("auto", "mask")
        >>> model = Model()
        >>> model.execution = "mask"
        >>> model.execution
        'mask'
    """

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __set__(self, instance: Any, value: Any) -> None:
        if value not in self.choices:
            known = ", ".join(map(repr, self.choices))
            raise InputError(f"{self.name}={value!r}: one of {known}.{did_you_mean(str(value), self.choices)}")
        instance.__dict__[self.name] = value  # where attributes are read, as there is no __get__
