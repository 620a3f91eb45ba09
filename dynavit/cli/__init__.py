"""The command line: ``dynavit train|evaluate|...`` and, the same, ``python tools/train.py ...``."""

from __future__ import annotations

import argparse
import io
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from dynavit import __version__
from dynavit.cli import data, methods, models, studies, training
from dynavit.cli.arguments import check_counts
from dynavit.engine.processes import num_processes
from dynavit.errors import InputError
from dynavit.text import printable

COMMANDS = (
    data.add_check,
    training.add_train,
    training.add_settings,
    training.add_configs,
    models.add_evaluate,
    models.add_export,
    models.add_visualize,
    models.add_predict,
    studies.add_benchmark,
    methods.add_methods,
    studies.add_study,
    studies.add_compare,
    studies.add_lists,
)

_SHARED = ("train", "evaluate")  # among several processes
_INSTALL = {"sklearn": "scikit-learn", "PIL": "pillow", "pytorch_metric_learning": "pytorch-metric-learning"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    It is 2, with one line on standard error, for bad input and for a package that is not installed.
    """
    with _plain_output():
        options = _parse(arguments)
        try:
            check_counts(options)
            if num_processes() > 1 and options.command not in _SHARED:
                raise InputError(f"{options.command} works in one process: start it without torchrun or accelerate.")
            options.run(options)
        except (InputError, OSError) as error:
            print(f"error: {printable(error)}", file=sys.stderr)
            return 2
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "dynavit"):
                raise
            install = _INSTALL.get(package, package)
            print(f"error: {options.command} needs the package {package}: pip install {install}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; continue a training with --resume", file=sys.stderr)
            return 130
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser: argparse.ArgumentParser = _Parser(
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


@contextmanager
def _plain_output() -> Iterator[None]:
    """Say warnings and failures of threads in one line each, on a terminal that may know few characters."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    format_warning, report_thread = warnings.formatwarning, threading.excepthook
    try:
        for stream in streams:
            stream.reconfigure(errors="backslashreplace")
        warnings.formatwarning = lambda message, *_: f"warning: {printable(message)}\n"
        threading.excepthook = _report_thread
        yield
    finally:
        warnings.formatwarning, threading.excepthook = format_warning, report_thread
        for stream, errors in zip(streams, before, strict=True):
            with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                stream.reconfigure(errors=errors)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)}; see {self.prog} --help\n")


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """Say in one line what TensorBoard's writing thread could not write; training goes on without it."""
    if isinstance(failed.exc_value, OSError):
        # in one piece, since the main thread may be writing too
        sys.stderr.write(f"warning: the TensorBoard log could not be written: {failed.exc_value}\n")
    else:
        threading.__excepthook__(failed)
