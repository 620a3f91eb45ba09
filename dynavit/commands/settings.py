"""Settings as commands take them: as words or a mapping, and those that a trained model can honour."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dynavit.errors import InputError

Overrides = Sequence[str] | Mapping[str, object]
"""Settings in place of those of a configuration: ``["key.subkey=value"]`` or ``{"key.subkey": value}``."""

TO_READ_IMAGES = ("data.mean", "data.std", "data.interpolation", "data.crop_pct")
"""How any image is prepared for the model."""
TO_EXPORT = (
    *TO_READ_IMAGES,
    *("data.name", "data.root", "data.validation_split", "data.download", "data.corrupt", "data.options"),
)
"""Also, which validation data a model is checked on."""
TO_EVALUATE = (*TO_EXPORT, "data.train_split", "data.batch_size", "data.workers", "evaluate")
"""Also, how it is judged."""


def as_words(overrides: Overrides | None) -> list[str]:
    """Return settings as ``key.subkey=value``, the value in YAML.

    Raises:
        InputError: one word alone, or a value that YAML does not have.

    Example:
        >>> as_words({"model.stages": [3, 6], "data.root": "my images", "train.clip_grad_norm": None})
        ['model.stages=[3, 6]', 'data.root=my images', 'train.clip_grad_norm=null']
    """
    if overrides is None:
        return []
    if isinstance(overrides, str) or not isinstance(overrides, Iterable):
        raise InputError(f"overrides={overrides!r}: give a list of key.subkey=value, or a mapping.")
    if not isinstance(overrides, Mapping):
        return [str(word) for word in overrides]
    return [f"{key}={_as_yaml(key, value)}" for key, value in overrides.items()]


def _as_yaml(key: str, value: object) -> str:
    if isinstance(value, str | Path) and not str(value).startswith(("'", '"')):
        return str(value)
    try:
        return json.dumps(value)
    except TypeError:
        raise InputError(f"{key}={value!r}: a setting is text, a number, true or false, a list or a mapping.") from None


def require_counts(least: int = 1, /, **counts: int | Iterable[int] | None) -> None:
    """Refuse numbers of things, one or several, below 1 or another least one.

    Raises:
        InputError: naming the first of them as the option that it is on the command line.
    """
    for name, asked in counts.items():
        several = list(asked) if isinstance(asked, Iterable) and not isinstance(asked, str) else [asked]
        for count in several:
            if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < least):
                raise InputError(f"--{name.replace('_', '-')}={count!r}: give a whole number of {least} or more.")


def require_lists(**values: object) -> None:
    """Refuse one value where several may be given; None is left to its default.

    Raises:
        InputError: naming the first of them.
    """
    for name, value in values.items():
        if value is not None and (isinstance(value, str | Path) or not isinstance(value, Iterable)):
            raise InputError(f"{name}={value!r}: give a list, such as [{value!r}].")


def require_suffix(output: Path, *suffixes: str, option: str = "--output") -> None:
    """Refuse a name of a result with another ending.

    Raises:
        InputError: naming those that are possible.
    """
    if output.suffix.lower() not in suffixes:
        raise InputError(f"{option} {output}: the name must end in {' or '.join(suffixes)}.")


def honour(overrides: Sequence[str], honoured: Sequence[str], idle: Mapping[str, str] | None = None) -> None:
    """Refuse settings that would change nothing; those that do not exist are left to be refused by name.

    Args:
        overrides: ``key.subkey=value``.
        honoured: keys, or whole sections.
        idle: of those, keys that do nothing this time, and why.

    Raises:
        InputError: naming the key, and what to do.
    """
    from dynavit.config.overrides import named_settings

    for override in overrides:
        for key in named_settings(override):
            if idle and key in idle:
                raise InputError(f"{override}: {idle[key]}; leave it out.")
            if key not in honoured and key.partition(".")[0] not in honoured:
                raise InputError(f"{override}: {_advice(key, honoured)}.")


def _advice(key: str, honoured: Sequence[str]) -> str:
    section = key.partition(".")[0]
    if key in ("model.keep_ratio", "model.keep_ratios"):
        flag = "--keep-ratios R,R" if "evaluate" in honoured else "--keep-ratio R"
        return f"the ratio of a trained model is changed with {flag}"
    if key in ("output_dir", "name"):
        return "this names the folder of a training; choose the place of results with --output"
    if section == "evaluate":
        return "this is a setting of evaluate and does nothing here; leave it out"
    if key in TO_EVALUATE:
        why = "the images come from --images" if key in TO_EXPORT and "data.root" not in honoured else "not used here"
        return f"this does nothing, {why}; leave it out"
    return "this shapes training and cannot change a trained model; leave it out, or train again with it"
