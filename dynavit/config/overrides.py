"""Which settings ``key.subkey=value`` words name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from dynavit.config.schema import Config, leaves


def named_settings(override: str) -> list[str]:
    """Return the keys of settings that a word gives a value, however it is written; unknown ones are left out.

    Example:
        >>> named_settings("data={root: images, batch_size: 8}")
        ['data.root', 'data.batch_size']
    """
    given = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    return list(_known(given, dict(leaves(Config())))) if isinstance(given, Mapping) else []


def _known(given: Mapping[Any, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in given.items():
        key = f"{prefix}{name}"
        if key in known:
            yield key
        elif isinstance(value, Mapping):
            yield from _known(value, known, f"{key}.")
