"""Reading, writing and comparing configurations.

Defaults, then a YAML file, then ``key.subkey=value`` from the command line, merged and type-checked by
OmegaConf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dynavit.config.checks import check
from dynavit.config.recipes import find_config
from dynavit.config.schema import Config, leaves
from dynavit.errors import InputError, did_you_mean


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, a shipped configuration by its name or none, and apply ``key.subkey=value`` overrides.

    Raises:
        InputError: a missing or malformed file, an unknown key (the nearest is named), a value of the
            wrong type or out of range.
    """
    path = None if path is None else find_config(path)
    where = "the command line" if path is None else path
    for override in overrides:
        if "=" not in override:
            raise InputError(f"{override!r}: overrides are written key.subkey=value.")
    try:
        loaded = OmegaConf.create() if path is None else OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise InputError(f"{path} holds no settings: expected 'key: value' lines.")
        merged = OmegaConf.merge(OmegaConf.structured(Config), loaded, OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise InputError(f"{where}: {_unknown_key(str(error.full_key))}") from None
    except OmegaConfBaseException as error:
        raise InputError(f"{where}: {_wrong_value(error, overrides)}") from None
    except InputError:
        raise
    except Exception as error:  # YAML's own errors have no common base in OmegaConf's interface
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    assert isinstance(config, Config)
    check(config)
    return config


def save_config(config: Config, path: str | Path) -> None:
    """Write the complete configuration as YAML."""
    OmegaConf.save(OmegaConf.structured(config), path)


_MAY_CHANGE = ("name", "output_dir", "train.epochs", "train.log_steps", "train.checkpoint_steps", "data.workers")


def changed_keys(before: Config, now: Config) -> list[tuple[str, Any, Any]]:
    """Return key, old and new value of settings that differ and must not when a run is resumed."""
    values = dict(leaves(now))
    return [
        (key, old, values[key])
        for key, old in leaves(before)
        if old != values[key] and key not in _MAY_CHANGE and not key.startswith("evaluate.")
    ]


def _wrong_value(error: OmegaConfBaseException, overrides: Sequence[str]) -> str:
    reason = str(error.msg or error).splitlines()[0].rstrip(".")
    if not error.full_key:  # a whole section was given something else
        return f"{reason}, in {' '.join(overrides) or 'the file'}. Expected key: value pairs below a section."
    node: Any = Config()
    expected = ""
    for part in str(error.full_key).split("."):
        name = part.partition("[")[0]
        if not is_dataclass(node) or name not in {entry.name for entry in fields(node)}:
            break
        expected = {entry.name: str(entry.type) for entry in fields(node)}[name]
        node = getattr(node, name)
    return f"{error.full_key}: {reason}. Expected {expected}."


def _unknown_key(full_key: str) -> str:
    *parents, key = full_key.split(".")
    node: Any = Config()
    for parent in parents:
        node = getattr(node, parent)
    known = [entry.name for entry in fields(node)]
    where = f"in {'.'.join(parents)}" if parents else "at top level"
    everywhere = dict(leaves(Config()))
    elsewhere = [name for name in everywhere if name.rpartition(".")[2] == key]
    hint = f" Did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(key, known)
    return f"unknown key {full_key!r}.{hint} Keys {where}: {', '.join(known)}."
