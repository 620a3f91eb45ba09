"""The command line: ``dynavit train|evaluate|...`` and, the same, ``python tools/train.py ...``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dynavit.cli import data, export, measure, methods, models, training, tuning
from dynavit.cli.program import Parser, require_one_process, run_program
from dynavit.version import __version__

COMMANDS = (
    tuning.add_tune,
    tuning.add_plan,
    data.add_check,
    training.add_train,
    training.add_settings,
    training.add_configs,
    models.add_evaluate,
    export.add_export,
    models.add_visualize,
    models.add_predict,
    measure.add_benchmark,
    methods.add_methods,
    measure.add_compare,
    measure.add_lists,
)

_SHARED = ("train", "evaluate")  # among several processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, as :func:`~dynavit.cli.program.run_program` does."""
    return run_program(lambda: _run(_parse(arguments)))


def _run(options: argparse.Namespace) -> None:
    if options.command not in _SHARED:
        require_one_process(options.command)
    options.run(options)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser: argparse.ArgumentParser = Parser(
        prog="dynavit", description="Make Vision Transformers cheaper by dropping tokens while they run."
    )
    parser.add_argument("--version", action="version", version=f"dynavit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one run only; settings may stand on both sides of an option
    if rest and not (hasattr(options, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options
