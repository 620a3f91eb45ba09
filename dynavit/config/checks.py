"""Which values settings may have, alone (declared in the schema) and together."""

from __future__ import annotations

import os

from dynavit.config.limits import check_value
from dynavit.config.schema import Config, settings
from dynavit.errors import InputError


def check(config: Config) -> None:
    """Refuse impossible values.

    Raises:
        InputError: naming the key, the value and what is possible.
    """
    # YAML 1.1 reads an unquoted `no` as false
    if config.train.mixed_precision == "False":
        config.train.mixed_precision = "no"
    defaults = {entry.key: entry.value for entry in settings(Config())}
    for entry in settings(config):
        check_value(entry.key, entry.value, entry.within, entry.choices)
        if isinstance(entry.value, str) and not entry.value.strip():
            raise InputError(f"{entry.key}={entry.value!r}: is empty; give a value, or leave the setting out.")
        if entry.task not in (None, config.task) and entry.value != defaults[entry.key]:
            raise InputError(
                f"{entry.key}={entry.value}: does nothing with task={config.task}; it is of task={entry.task}."
            )
        if entry.named and entry.value is not None and not isinstance(entry.value.get("name"), str):
            raise InputError(f"{entry.key}={entry.value}: needs a name, for example {entry.key}.name={entry.named}.")
    _check_together(config)
    _check_name(config.name)


def _check_together(config: Config) -> None:
    data = config.data
    refused = {
        f"data.mean={data.mean}: 1, 3 or 4 numbers, one for each input channel.": data.mean is not None
        and len(data.mean) not in (1, 3, 4),
        f"data.std={data.std}: 1, 3 or 4 numbers above 0, one for each input channel.": data.std is not None
        and len(data.std) not in (1, 3, 4),
        "model.architecture is missing: give a timm name, or model.checkpoint=FOLDER.": config.model.architecture
        is None
        and config.model.checkpoint is None,
    }
    for message, is_wrong in refused.items():
        if is_wrong:
            raise InputError(message)


def _check_name(name: str) -> None:
    """Refuse names that are not those of one folder: the run would be written somewhere else."""
    if name.strip() in (os.curdir, os.pardir) or "/" in name or os.sep in name or len(os.fsencode(name)) > 255:
        raise InputError(f"name={name!r}: the name of one folder, in checkpoints/; give a path with output_dir=FOLDER.")
