"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence

from dynavit.errors import InputError
from dynavit.text import printable

RUN_HELP = "folder of a trained model, such as checkpoints/quickstart"


def command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
) -> argparse.ArgumentParser:
    """Add a subcommand."""
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", metavar="cpu|cuda", help="(default: cuda if there is one)")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the settings that replace those of a configuration."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key.subkey=value", help="replace settings, e.g. data.root=my_images"
    )


def words(text: str) -> list[str]:
    """Return words with commas between them."""
    return [word.strip() for word in text.split(",")]


def numbers(kind: Callable[[str], float]) -> Callable[[str], list[float]]:
    """Return a parser of positive numbers with commas between them."""

    def parse(text: str) -> list[float]:
        try:
            numbers = [kind(part) for part in text.split(",") if part.strip()]
        except ValueError:
            numbers = []
        if not numbers or not all(0 < number < math.inf for number in numbers):
            raise argparse.ArgumentTypeError(f"{text!r}: numbers above 0 with commas between them, such as 1,8")
        return numbers

    return parse


def mapping(text: str) -> dict[str, object]:
    """Parse a JSON object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: a JSON object, such as '{{\"img_size\": 384}}'")
    return value


def refuse(options: argparse.Namespace, reason: str, *names: str) -> None:
    """Refuse options that were given where they would do nothing.

    Raises:
        InputError: naming the first of them and the reason.
    """
    for name in names:
        if getattr(options, name) not in (None, False):
            raise InputError(f"--{name.replace('_', '-')}: {reason}; leave it out.")


def report(problems: Sequence[str]) -> None:
    """Say on standard error what is left out."""
    from tqdm import tqdm

    for problem in problems:
        tqdm.write(f"warning: {printable(problem)}", file=sys.stderr)  # above a progress bar, not inside it
