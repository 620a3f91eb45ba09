"""Training, and the check of its data, as functions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynavit.commands.settings import Overrides, as_words
from dynavit.errors import InputError

if TYPE_CHECKING:
    from dynavit.config import Config
    from dynavit.runs.open import Run
    from dynavit.training.data_check import DataReport

DEFAULT_CONFIG = "folder/finetune"
"""What trains on pictures of one's own, where no configuration is named."""


def train(
    config: str | Path | Config | None = None,
    overrides: Overrides = (),
    *,
    images: str | Path | None = None,
    resume: bool = False,
) -> Run:
    """Train what a configuration describes, after a dense model to start from if there is none yet.

    Args:
        config: a YAML file, the name of a shipped configuration, such as ``"quickstart/classify"``, or a
            configuration; ``"folder/finetune"`` if None and ``images`` are given.
        overrides: settings in place of the configuration's, as ``{"train.epochs": 3}`` or ``["train.epochs=3"]``.
        images: folder with ``train/CLASS`` and ``val/CLASS``; the same as ``data.root``. It names the run, unless
            ``name`` or ``output_dir`` does.
        resume: continue the run in its folder, or start it if there is none.

    Returns:
        The trained run, opened: its folder is ``run.path``, the model ``run.model``.

    Raises:
        InputError: something in the configuration does not exist or does not fit, there is something to lose, or the
            training diverged.
    """
    from dynavit.config import named_settings
    from dynavit.runs.open import open_run
    from dynavit.training import dense_first
    from dynavit.training.monitor import Diverged

    if config is None and images is None:
        raise InputError(
            "give --images DIR with your own pictures, or --config; `dynavit configs` lists what there is."
        )
    words = as_words(overrides)
    settings = _load(DEFAULT_CONFIG if config is None else config, words)
    if images is not None:
        if not str(images) or any("data.root" in named_settings(word) for word in words):
            raise InputError(f"--images {str(images)!r}: give the folder of your pictures, here or as data.root.")
        settings.data.root = str(images)
        if not any(word.startswith(("name=", "output_dir=")) for word in words):
            settings.name = Path(os.path.abspath(images)).name or settings.name  # of a link, its own
    try:
        dense_first.train(settings, resume)
    except Diverged as error:
        saved = (settings.run_dir / "model.safetensors").exists()
        remains = f"The last good checkpoint is in {settings.run_dir}." if saved else "Nothing was saved yet."
        raise InputError(f"stopped, {error} {remains}") from None
    return open_run(settings.run_dir)


def check_data(
    config: str | Path | Config | None = None, overrides: Overrides = (), *, images: str | Path | None = None
) -> DataReport:
    """Look at every picture of a data set: unreadable files, counts, classes that differ between splits.

    Args:
        config: a training whose data are looked at, as :func:`train` takes it.
        overrides: settings in place of the configuration's.
        images: in place of these, ``DIR/train/CLASS`` and ``DIR/val/CLASS``, or ``DIR/CLASS``, or pictures alone.

    Returns:
        What was found, as text by ``report.lines()``; ``report.problems`` are those that stop a training.

    Raises:
        InputError: there are no such data, or settings go with images.
    """
    from dynavit.training import data_check

    words = as_words(overrides)
    if images is None and config is None:
        raise InputError("give --images DIR with pictures, or --config with the settings of a training.")
    if config is not None:
        if images is not None:
            raise InputError(f"--images {images}: --config says already which data to look at.")
        return data_check.check_data(_load(config, words))
    if words:
        raise InputError(f"{words[0]}: settings go with --config YAML, not with --images.")
    return data_check.check_folder(str(images))


def _load(config: str | Path | Config, words: Sequence[str]) -> Config:
    from dynavit.config import Config, load_config
    from dynavit.config.schema import leaves

    if isinstance(config, Config):
        return load_config(None, [*as_words(dict(leaves(config))), *words])
    return load_config(config, words)
