"""Every setting with its type, its default, and what the schema says of it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from dynavit.config import schema
from dynavit.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Setting:
    """One setting: ``key.subkey``, the type as written, the default, and its documentation."""

    key: str
    kind: str
    default: Any
    about: str


def settings() -> list[Setting]:
    """Return every setting, in the order of the schema."""
    return list(_of(schema.Config(), ""))


def find_settings(key: str) -> list[Setting]:
    """Return the setting of this key, or those below it.

    Raises:
        InputError: there is none.

    Example:
        >>> [setting.default for setting in find_settings("train.epochs")]
        [30]
    """
    everything = settings()
    found = [setting for setting in everything if setting.key == key or setting.key.startswith(f"{key}.")]
    if not found:
        keys = [setting.key for setting in everything]
        same = [name for name in keys if name.rpartition(".")[2] == key]
        hint = f" Did you mean {same[0]!r}?" if same else did_you_mean(key, keys)
        raise InputError(f"there is no setting {key!r}.{hint} `dynavit settings` lists all.")
    return found


def _of(node: Any, prefix: str) -> Iterator[Setting]:
    about = _documentation(type(node))
    for entry in fields(node):
        value = getattr(node, entry.name)
        if is_dataclass(value):
            yield from _of(value, f"{prefix}{entry.name}.")
        else:
            yield Setting(prefix + entry.name, str(entry.type), value, about.get(entry.name, ""))


def _documentation(kind: type) -> dict[str, str]:
    """Return what stands below the fields of a class; what follows several is of all of them."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    about: dict[str, str] = {}
    waiting: list[str] = []
    for statement in tree.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            waiting.append(statement.target.id)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and waiting:
            text = " ".join(str(statement.value.value).split())
            about |= dict.fromkeys(waiting, text)
            waiting = []
    return about
