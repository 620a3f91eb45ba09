"""Commands of training: train, and what can be set and started from."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from dynavit.cli.arguments import add_overrides, command
from dynavit.errors import InputError

_RECIPE = "folder/finetune"


def add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit train``."""
    parser = command(
        commands, "train", _train, "fine-tune a model on your images and prune it, or train what a configuration says"
    )
    parser.epilog = "`dynavit settings` lists all settings, `dynavit configs` the configurations that come along."
    parser.add_argument("--config", metavar="YAML|NAME", help=f"settings of the run (default with --images: {_RECIPE})")
    parser.add_argument(
        "--images", metavar="DIR", help="your images, in DIR/train/CLASS and DIR/val/CLASS; the same as data.root=DIR"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in its folder, or start it if there is none"
    )
    add_overrides(parser)


def _train(options: argparse.Namespace) -> None:
    from dynavit.config import load_config, named_settings
    from dynavit.training.dense_first import train
    from dynavit.training.monitor import Diverged

    if options.config is None and options.images is None:
        raise InputError(
            "give --images DIR with your own pictures, or --config; `dynavit configs` lists what there is."
        )
    config = load_config(options.config or _RECIPE, options.overrides)
    if options.images is not None:
        given = {key for word in options.overrides for key in named_settings(word)}
        if not options.images or "data.root" in given:
            raise InputError(f"--images {options.images!r}: give the folder of your pictures, here or as data.root.")
        config.data.root = options.images
        if not any(word.startswith(("name=", "output_dir=")) for word in options.overrides):
            config.name = Path(os.path.abspath(options.images)).name or config.name  # of a link, its own
    try:
        train(config, options.resume)
    except Diverged as error:
        saved = (config.run_dir / "model.safetensors").exists()
        kept = f"The last good checkpoint is in {config.run_dir}." if saved else "Nothing was saved yet."
        raise InputError(f"stopped, {error} {kept}") from None


def add_settings(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit settings``."""
    parser = command(commands, "settings", _settings, "list what can be set with key.subkey=value, and what it means")
    parser.add_argument("key", nargs="?", metavar="KEY", help="only this one, or those below it, such as train")


def _settings(options: argparse.Namespace) -> None:
    from dynavit.config.describe import described

    for setting, about in described(options.key):
        value = "null" if setting.value is None else setting.value
        limits = f", {setting.within}" if setting.within else ""
        limits += f", one of {', '.join(setting.choices)}" if setting.choices else ""
        print(f"{setting.key}={value}  ({setting.type}{limits})" + (f"\n    {about}" if about else ""))


def add_configs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit configs``."""
    parser = command(commands, "configs", _configs, "list the configurations that come along, or print one")
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this one, to be changed and saved")


def _configs(options: argparse.Namespace) -> None:
    from dynavit.config.recipes import find_recipe, recipes, summary

    if options.name is not None:
        print(find_recipe(options.name).read_text(encoding="utf-8"), end="")
        return
    shipped = recipes()
    width = max(map(len, shipped))
    for name, path in shipped.items():
        print(f"{name:<{width}}  {summary(path)}")
