"""The command line of the studies: ``python tools/study.py ...``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dynavit.cli.program import Parser, require_one_process, run_program
from dynavit.files import require_folder
from dynavit.text import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one study; returns the exit status: 2, with one line on standard error, for bad input."""
    return run_program(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="study.py",
        description="Compare ways of training through a selection, good and bad, on small made-up problems.",
    )
    parser.add_argument(
        "study", choices=["stability", "selection"], help="what makes training explode; how well each selector learns"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="(default: checkpoints/study-STUDY)")
    parser.add_argument("--seeds", default="0,1,2", metavar="0,1,2", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, metavar="N", help="of each run (default: 250; selection: 400)")
    parser.add_argument("--variants", metavar="NAME,NAME", help="run these only (default: all)")
    return parser


def _run(options: argparse.Namespace) -> None:
    from studies.report import report_selection, report_stability
    from studies.runner import parse_seeds

    require_one_process("study")
    seeds = parse_seeds(options.seeds)
    variants = options.variants and [name.strip() for name in options.variants.split(",")]
    output: Path = options.output or Path("checkpoints") / f"study-{options.study}"
    require_folder(output)
    report = report_stability if options.study == "stability" else report_selection
    print(report(output, seeds, options.steps, variants))
    files = ", ".join(f"{options.study}.{kind}" for kind in ("md", "json", "csv", "png"))
    print(f"\nWritten to {printable(output)}: {files}")
