"""The command that looks at data."""

from __future__ import annotations

import argparse

from dynavit.cli.arguments import add_overrides, command
from dynavit.errors import InputError


def add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit check``."""
    summary = "look at every picture of a data set: unreadable files, counts, classes that differ between splits"
    parser = command(commands, "check", _check, summary)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images", metavar="DIR", help="DIR/train/CLASS and DIR/val/CLASS, or DIR/CLASS, or pictures alone"
    )
    source.add_argument("--config", metavar="YAML", help="settings of a training, whose data are looked at")
    add_overrides(parser)


def _check(options: argparse.Namespace) -> None:
    from dynavit.commands.training import check_data

    report = check_data(options.config, options.overrides, images=options.images)
    print("\n".join(report.lines()))
    if report.problems:
        raise InputError("a training would stop: " + " ".join(report.problems))
