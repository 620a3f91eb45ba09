"""What a program does around its work: plain output, one line for what is wrong, an exit status."""

from __future__ import annotations

import argparse
import io
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from dynavit.errors import InputError
from dynavit.runs.processes import num_processes
from dynavit.text import printable

_NAMES = {"sklearn": "scikit-learn", "PIL": "pillow", "pytorch_metric_learning": "pytorch-metric-learning"}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)}; see {self.prog} --help\n")


def run_program(work: Callable[[], None]) -> int:
    """Do the work; returns the exit status.

    It is 2, with one line on standard error, for bad input and for a package that is not installed.
    """
    with _plain_output():
        try:
            work()
        except (InputError, OSError) as error:
            print(f"error: {printable(error)}", file=sys.stderr)
            return 2
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "dynavit"):
                raise
            print(
                f"error: this needs the package {package}: pip install {_NAMES.get(package, package)}", file=sys.stderr
            )
            return 2
        except KeyboardInterrupt:
            print("interrupted; continue a training with --resume", file=sys.stderr)
            return 130
    return 0


def require_one_process(name: str) -> None:
    """Refuse to be one of several processes.

    Raises:
        InputError: naming the command.
    """
    if num_processes() > 1:
        raise InputError(f"{name} works in one process: start it without torchrun or accelerate.")


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


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """Say in one line what TensorBoard's writing thread could not write; training goes on without it."""
    if isinstance(failed.exc_value, OSError):
        # in one piece, since the main thread may be writing too
        sys.stderr.write(f"warning: the TensorBoard log could not be written: {failed.exc_value}\n")
    else:
        threading.__excepthook__(failed)
