"""Every setting with what the schema says of it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from dynavit.config.schema import Config, Setting, settings
from dynavit.errors import InputError, did_you_mean


def described(key: str | None = None) -> list[tuple[Setting, str]]:
    """Return settings, with their defaults, and their documentation, in the order of the schema.

    Args:
        key: of one setting, or of a part, such as ``train``; None for all.

    Raises:
        InputError: there is none.

    Example:
        >>> [(setting.value, about) for setting, about in described("train.mixed_precision")]
        [('no', 'no, bf16 or fp16.')]
    """
    about = dict(_documentation(Config(), ""))
    everything = settings(Config())
    if key is None:
        return [(setting, about[setting.key]) for setting in everything]
    found = [setting for setting in everything if setting.key == key or setting.key.startswith(f"{key}.")]
    if not found:
        keys = [setting.key for setting in everything]
        same = [name for name in keys if name.rpartition(".")[2] == key]
        hint = f" Did you mean {same[0]!r}?" if same else did_you_mean(key, keys)
        raise InputError(f"there is no setting {key!r}.{hint} `dynavit settings` lists all.")
    return [(setting, about[setting.key]) for setting in found]


def _documentation(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield what stands below each field of a class."""
    (tree,) = ast.parse(inspect.getsource(type(node))).body
    assert isinstance(tree, ast.ClassDef)
    about: dict[str, str] = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            about[field.target.id] = " ".join(str(text.value.value).split())
    for entry in fields(node):
        value = getattr(node, entry.name)
        if is_dataclass(value):
            yield from _documentation(value, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, about.get(entry.name, "")
