"""Settings drawn from the schema: a key added there is drawn too."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import yaml
from values import CLASSIFY, REID, VALID, WEIRD, WRONG, Value

from dynavit.config import Config
from dynavit.config.schema import leaves

_DEFAULTS = dict(leaves(Config()))
KEYS = tuple(_DEFAULTS)


@dataclass(frozen=True)
class Draw:
    """Settings of one run.

    Attributes:
        name: by which it can be drawn again.
        settings: what was drawn, as text by key: what this draw is about comes first.
        wrong: whether the first one is likely to be impossible.
        file: the YAML file, without what comes from the command line.
        overrides: of the command line.
    """

    name: str
    settings: Mapping[str, str]
    wrong: bool
    file: str
    overrides: tuple[str, ...]

    def __str__(self) -> str:
        way = "command line" if self.overrides else "file"
        shown = " ".join(f"{key}={text[:100]}" for key, text in self.settings.items())
        return f"draw {self.name}, {'wrong ' if self.wrong else ''}in the {way}: {shown}"


def draw(seed: int, number: int) -> Draw:
    """Draw settings: one that all keys take turns to be, and up to three others.

    Every other turn the first value is one that is likely not to work; all others should.
    """
    rng = random.Random(f"{seed} {number}")
    order = random.Random(seed).sample(KEYS, len(KEYS))
    turn, position = divmod(number, len(KEYS))
    key, wrong = order[position], turn % 2 == 1
    text, companions = _wrong_value(rng, key) if wrong else rng.choice(_valid_values(key))
    settings = {key: text, **companions}
    task = settings.get("task", "")
    if task not in ("classify", "reid"):
        fixed = {of["task"] for _, of in VALID.get(key, []) if "task" in of}  # a setting of one task only
        task = fixed.pop() if len(fixed) == 1 else rng.choice(("classify", "classify", "reid"))
    for other in rng.sample(KEYS, rng.randrange(4)):
        text, companions = rng.choice(_valid_values(other))
        added = {other: text, **companions}
        if added.get("task", task) == task and not added.keys() & settings.keys():
            settings |= added
    base = {**(REID if task == "reid" else CLASSIFY)}
    if rng.random() < 0.5:
        return Draw(f"{seed}-{number}", settings, wrong, _yaml(_merged(base, settings)), ())
    replaced = {key: text for key, text in settings.items() if key == "model.kwargs" and text == "{}"}
    overrides = tuple(f"{key}={text}" for key, text in settings.items())  # mappings are merged into the file's
    return Draw(f"{seed}-{number}", settings, wrong, _yaml(base | replaced), overrides)


def names_setting(message: str, key: str, text: str) -> bool:
    """Whether a message names a key, in full or its last part, and its value unless that stands for another one."""
    return key.rpartition(".")[2] in message and ("${" in text or any(form in message for form in _forms(text)))


def _wrong_value(rng: random.Random, key: str) -> Value:
    own = WRONG.get(key, [])
    return (rng.choice(own) if own and rng.random() < 0.5 else rng.choice(WEIRD)), {}


def _valid_values(key: str) -> list[Value]:
    if key in VALID:
        return VALID[key]
    default = _DEFAULTS[key]
    values = [True, False] if isinstance(default, bool) else [default]
    return [(yaml.safe_dump(value, default_flow_style=True).partition("\n")[0], {}) for value in values]


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _forms(text: str) -> set[str]:
    """Return the ways in which a message may show a value, or the part of it that is wrong."""
    value = _parsed(text)
    forms = {text, text.strip("'\""), text.lstrip("."), text[:40], str(value), repr(value)}
    if value is None or value in ("", []):
        forms |= {"missing", "empty", "None", "null", "''"}
    if isinstance(value, str):
        forms |= {value[:40], repr(value)[1:-1], " ".join(value.split()) or "''"}
        with suppress(ValueError):
            forms |= {str(float(value)), repr(float(value))}  # 1e-3 is text to YAML, and a number to people
    if isinstance(value, int | float):
        forms |= {str(float(value)), str(bool(value)), str(value).lower()} if abs(value) < 1e300 else {f"{value:g}"}
    if isinstance(value, list | dict):
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        forms |= {form for item in items for form in _forms(_flow(item))}
    return forms - {""}


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).partition("\n")[0]


def _merged(base: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Put settings into a file, adding the mappings of both."""
    merged = {**base, **settings}
    for key in base.keys() & settings.keys():
        own, drawn = _parsed(base[key]), _parsed(settings[key])
        if isinstance(own, dict) and isinstance(drawn, dict) and drawn:
            merged[key] = _flow({**own, **drawn})
    return merged


def _yaml(settings: Mapping[str, str], node: Any = None, prefix: str = "") -> str:
    """Write settings by section; what is drawn goes in as it stands."""
    node = Config() if node is None else node
    lines = []
    for entry in fields(node):
        key, value = prefix + entry.name, getattr(node, entry.name)
        indent = "  " * key.count(".")
        if is_dataclass(value):
            below = _yaml(settings, value, f"{key}.")
            lines += [f"{indent}{entry.name}:\n{below}"] if below else []
        elif key in settings:
            lines.append(f"{indent}{entry.name}: {settings[key]}\n")
    return "".join(lines)
