"""Reading, writing and comparing configurations.

Defaults, then a YAML file, then ``key.subkey=value`` from the command line, merged and type-checked by
OmegaConf.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dynavit.config.checks import check
from dynavit.config.limits import parts
from dynavit.config.overrides import expand_names, parse_overrides
from dynavit.config.recipes import find_config
from dynavit.config.schema import Config, leaves, settings
from dynavit.errors import InputError, did_you_mean
from dynavit.files import refuse_special, write_text

_MAX_BYTES = 1_000_000  # a configuration has a few thousand
_SURROGATE = re.compile("[\ud800-\udfff]|\\\\ud[89a-f]")  # of a text, or inside of a list
_BEFORE = {  # settings of loss as version 0.1 called them
    "identity": "identity_weight",
    "center": "center_weight",
    "keep_ratio": "keep_ratio_weight",
    "budget": "keep_ratio_measure",
    "policy_gradient": "policy_gradient_weight",
    "logit_distillation": "logit_distillation_weight",
    "token_distillation": "token_distillation_weight",
}
_HEADER = "# Written by dynavit: every setting of this run.\n"


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, a shipped configuration by its name or none, and apply ``key.subkey=value`` overrides.

    ``${oc.env:NAME}`` stands for an environment variable, and ``${key.subkey}`` for another setting.

    Raises:
        InputError: a missing or malformed file, an unknown key (the nearest is named), a value of the
            wrong type or out of range.
    """
    path = None if path is None else find_config(path)
    given, named = parse_overrides(overrides)
    loaded = OmegaConf.create() if path is None else _read(path)
    loaded = _rename(loaded)
    expand_names(loaded)
    _refuse_other_shapes(loaded, f"{path}: ")
    _refuse_other_shapes(given)
    try:
        for key in named:  # another part, so the options of the one in the file are not its own
            OmegaConf.update(loaded, key, {}, merge=False)
        merged = OmegaConf.merge(_defaults(), loaded, given)
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise InputError(f"{_source(error, path, given)}: {_unknown_key(str(error.full_key))}") from None
    except OmegaConfBaseException as error:
        both = OmegaConf.to_container(OmegaConf.merge(loaded, given))
        raise InputError(f"{_source(error, path, given)}: {_wrong_value(error, both)}") from None
    assert isinstance(config, Config)
    try:
        check(config)
    except InputError as error:
        if overrides or path is None:
            raise
        raise InputError(f"{path}: {error}") from None
    return config


@cache
def _defaults() -> DictConfig:
    return OmegaConf.structured(Config)  # merging copies it


def _read(path: Path) -> DictConfig:
    refuse_special(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} has {path.stat().st_size / 1e6:.0f} MB: it is no configuration.")
        loaded = OmegaConf.load(path)
    except OSError as error:
        if error.errno is None:  # OmegaConf's, for a file that is one number
            raise InputError(f"{path} holds no settings: expected 'key: value' lines.") from None
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8.") from None
    except InputError:
        raise
    except OmegaConfBaseException as error:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        raise InputError(f"{path}: {_wrong_value(error, plain)}") from None
    except Exception as error:  # YAML's own errors have no common base in OmegaConf's interface
        reason = " ".join(str(error).split())
        hint = " Put text that holds ': ' in quotes." if "mapping values" in reason else ""
        raise InputError(f"{path} is not valid YAML: {reason}.{hint}") from None
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{path} holds no settings: expected 'key: value' lines.")
    return loaded


def _sections() -> set[str]:
    """Return the names of the parts that a configuration is made of."""
    config = Config()
    return {entry.name for entry in fields(config) if is_dataclass(getattr(config, entry.name))}


def _rename(tree: DictConfig) -> DictConfig:
    """Give settings of a configuration that version 0.1 saved the names that they have now."""
    plain: Any = OmegaConf.to_container(tree, resolve=False)
    if not _sections() <= plain.keys() or not isinstance(plain["loss"], dict):
        return tree  # written by hand
    loss = {_BEFORE.get(name, name): value for name, value in plain["loss"].items()}
    return OmegaConf.create({**plain, "loss": loss}) if len(loss) == len(plain["loss"]) else tree


def save_config(config: Config, path: str | Path) -> None:
    """Write the complete configuration as YAML.

    Raises:
        InputError: the file cannot be written, or a setting is no UTF-8, which is all that YAML holds.
    """
    try:
        text = OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
    except UnicodeEncodeError:
        key, value = next((key, value) for key, value in leaves(config) if _SURROGATE.search(str(value)))
        raise InputError(
            f"{key}={value}: only UTF-8 can be written to {path}; rename the file or folder, or make a link to it."
        ) from None
    write_text(path, _HEADER + text)


def is_saved_config(path: Path) -> bool:
    """Whether :func:`save_config` wrote a file; another one that is called alike may be somebody else's."""
    if not os.path.isfile(path):  # which Path's raises of a name that is too long
        return False
    with path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER.encode()


def changed_keys(before: Config, now: Config) -> list[tuple[str, Any, Any]]:
    """Return key, old and new value of all settings that differ."""
    values = dict(leaves(now))
    return [(key, old, values[key]) for key, old in leaves(before) if old != values[key]]


def _refuse_other_shapes(tree: DictConfig, where: str = "") -> None:
    """Refuse one value where a list or ``key: value`` pairs belong, and the reverse; OmegaConf names no key then.

    Refuse ``???`` as well, OmegaConf's mark of a value that is still to come: the default would take its place.
    """
    given: Any = OmegaConf.to_container(tree, resolve=False)
    for name, value in given.items():
        for key, part in parts(str(name), value):
            if part == "???":
                raise InputError(f"{where}{key}='???': this stands for a value that is missing; give one.")
    for section in _sections() & given.keys():
        if not isinstance(given[section], dict) and not _stands_in(given[section]):
            raise InputError(f"{where}{section}={given[section]!r}: Expected a section of key: value pairs.")
    for entry in settings(Config()):
        parent, _, name = entry.key.rpartition(".")
        part = given.get(parent) if parent else given
        value = part.get(name) if isinstance(part, dict) else None
        if value is None or _stands_in(value):
            continue
        shown = f"{where}{entry.key}={value!r}"
        if entry.type.startswith("list") and not (isinstance(value, list) and not any(map(_holds, value))):
            example = "[3, 6, 9]" if "int" in entry.type else "[0.7, 0.5]"
            raise InputError(f"{shown}: Expected {entry.type}, such as {entry.key}={example}.")
        if entry.type.startswith("dict") and not isinstance(value, dict):
            raise InputError(f"{shown}: Expected {entry.type}, such as {entry.key}={{key: value}}.")
        if not entry.type.startswith(("list", "dict")) and _holds(value):
            raise InputError(f"{shown}: Expected {entry.type}; put text that holds ': ' in quotes.")


def _holds(value: Any) -> bool:
    return isinstance(value, list | dict)


def _stands_in(value: Any) -> bool:
    """Whether a value stands for another one, as in ``${data.root}``."""
    return isinstance(value, str) and "${" in value


def _source(error: OmegaConfBaseException, path: Path | None, given: DictConfig) -> str:
    """Return where a wrong setting comes from: what the command line gives replaces that of the file."""
    part: Any = OmegaConf.to_container(given, resolve=False)
    for name in _names(error):
        if isinstance(part, dict) and name not in part and path is not None:
            return str(path)
        part = part.get(name) if isinstance(part, dict) else part
    return "the command line" if path is None or _names(error) else str(path)


def _names(error: OmegaConfBaseException) -> list[str]:
    return re.findall(r"[^.\[\]]+", str(error.full_key or ""))


def _interpolated(tree: Any, key: str = "") -> str:
    """Return the key of the first setting that stands for another one; empty where there is none."""
    if isinstance(tree, dict):
        found = (_interpolated(value, f"{key}.{name}" if key else str(name)) for name, value in tree.items())
        return next(filter(None, found), "")
    return key if _stands_in(tree) else ""


def _wrong_value(error: OmegaConfBaseException, tree: Any) -> str:
    """Return what is wrong with a setting of a tree of plain containers, with its key and value."""
    key = str(error.full_key or _interpolated(tree))  # OmegaConf names no key where another one's value does not fit
    for part in re.findall(r"[^.\[\]]+", key):
        tree = tree[int(part)] if isinstance(tree, list) else tree.get(part) if isinstance(tree, dict) else None
    reason = " ".join(re.split(r"\n\s*full_key:", str(error.msg or error))[0].split()).rstrip(".")
    expected = {entry.key: entry.type for entry in settings(Config())}.get(key.partition("[")[0], "key: value pairs")
    return f"{f'{key}={tree!r}' if key else 'settings'}: {reason}. Expected {expected}."


def _unknown_key(full_key: str) -> str:
    node: Any = Config()
    parents: list[str] = []
    key = full_key
    while "." in key and is_dataclass(getattr(node, key.partition(".")[0], None)):
        parent, _, key = key.partition(".")
        parents.append(parent)
        node = getattr(node, parent)
    known = [entry.name for entry in fields(node)]
    where = f"in {'.'.join(parents)}" if parents else "at top level"
    everywhere = dict(leaves(Config()))
    longer = [name for name in known if name.startswith(f"{key}_")]
    elsewhere = [name for name in everywhere if name.rpartition(".")[2] == key]
    hint = f" Did you mean {elsewhere[0]!r}?" if elsewhere and not longer else did_you_mean(key, longer or known)
    return f"unknown key {full_key!r}.{hint} Keys {where}: {', '.join(known)}."
