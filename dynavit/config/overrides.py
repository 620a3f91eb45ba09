"""Settings given as ``key.subkey=value``, and the short form of parts by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from dynavit.config.schema import Config, settings
from dynavit.errors import InputError

_NULLS = ("~", "null", "Null", "NULL")  # as YAML has it
_TEXTS = {entry.key for entry in settings(Config()) if entry.type in ("str", "str | None")}
_KEYS = {entry.key for entry in settings(Config())}
_NAMED = [entry.key for entry in settings(Config()) if entry.named]


def parse_overrides(overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """Return overrides as a tree of settings, and the keys of the parts that were given by their name alone.

    Values are YAML, except where the schema says text: that is taken as it stands, so that paths may hold ``": "`` or
    ``" #"`` and names may look like numbers.

    Raises:
        InputError: no ``=``, a key that is none, or a value that is no YAML.
    """
    tree, named = OmegaConf.create(), []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not all(key.split(".")) or not key.isprintable():
            raise InputError(f"{override!r}: overrides are written key.subkey=value.")
        try:
            if key in _TEXTS and not text.startswith(("'", '"')):
                OmegaConf.update(tree, key, None if text in _NULLS else text)
            else:
                tree.merge_with_dotlist([override])
        except yaml.YAMLError as error:
            raise InputError(f"{override!r}: the value is no YAML ({_one_line(error)}); put text in quotes.") from None
        except Exception as error:  # OmegaConf parses keys, and their errors have no common base
            raise InputError(f"{override!r}: overrides are written key.subkey=value ({_one_line(error)}).") from None
        named += expand_names(tree)
    return tree, named


def named_settings(override: str) -> list[str]:
    """Return the keys of settings that a word gives a value, however it is written; unknown ones are left out.

    Raises:
        InputError: it is no override.

    Example:
        >>> named_settings("data={root: images, batch_size: 8}")
        ['data.root', 'data.batch_size']
    """
    return list(_known(parse_overrides([override])[0]))


def _known(given: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for name in given:
        key = f"{prefix}{name}"
        if key in _KEYS:
            yield key
        elif isinstance(given[name], Mapping):
            yield from _known(given[name], f"{key}.")


def expand_names(tree: DictConfig) -> list[str]:
    """Write parts given by their name alone, such as ``selector: topk``, as ``{name: topk}``; return their keys."""
    found = []
    for key in _NAMED:
        section, name = key.split(".")
        part: Any = None if OmegaConf.is_interpolation(tree, section) else tree.get(section)
        named = isinstance(part, DictConfig) and not OmegaConf.is_interpolation(part, name)
        if named and isinstance(part.get(name), str):
            part[name] = {"name": part[name]}
            found.append(key)
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
