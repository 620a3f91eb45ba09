"""Commands of training: train, and what can be set and started from."""

from __future__ import annotations

import argparse

from dynavit.cli.arguments import add_overrides, command
from dynavit.commands.training import DEFAULT_CONFIG


def add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit train``."""
    parser = command(
        commands, "train", _train, "fine-tune a model on your images and prune it, or train what a configuration says"
    )
    parser.epilog = "`dynavit settings` lists all settings, `dynavit configs` the configurations that come along."
    parser.add_argument(
        "--config", metavar="YAML|NAME", help=f"settings of the run (default with --images: {DEFAULT_CONFIG})"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="your images, in DIR/train/CLASS and DIR/val/CLASS; the same as data.root=DIR"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in its folder, or start it if there is none"
    )
    add_overrides(parser)


def _train(options: argparse.Namespace) -> None:
    from dynavit.commands.training import train

    train(options.config, options.overrides, images=options.images, resume=options.resume)


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
