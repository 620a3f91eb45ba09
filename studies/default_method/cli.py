"""The command line: ``python tools/reproduce.py default-method ...``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dynavit.cli.program import Parser, require_one_process, run_program
from dynavit.files import require_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing of an experiment and print its tables; returns the exit status."""
    return run_program(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="reproduce.py",
        description="Make the tables behind the default method again: what is not there yet is run, and what was "
        "stopped goes on where it was.",
    )
    parser.add_argument("experiment", choices=["default-method"])
    parser.add_argument(
        "--photographs", type=Path, required=True, metavar="DIR", help="Imagenette: train/CLASS, val/CLASS"
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="of a ViT-S/14, as safetensors")
    parser.add_argument(
        "--part",
        default="small",
        choices=["student", "small", "large", "larger", "training-free"],
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--times", action="store_true", help="measure speed instead of training; nothing else should run meanwhile"
    )
    parser.add_argument("--seeds", default="0,1,2", metavar="0,1,2", help="(default: %(default)s)")
    parser.add_argument("--methods", metavar="NAME;NAME", help="train these only (default: all)")
    parser.add_argument(
        "--split", default="choose", choices=["choose", "val"], help="images to evaluate on (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="trainings at once (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("checkpoints/default-method"), metavar="DIR")
    return parser


def _run(options: argparse.Namespace) -> None:
    from studies.default_method.experiment import DENSE, run_cells
    from studies.default_method.parts import PARTS, Sources, compare_training_free, make_student
    from studies.default_method.report import tables
    from studies.default_method.times import measure_times
    from studies.runner import check, parse_seeds

    require_one_process("reproduce")
    seeds = parse_seeds(options.seeds)
    require_folder(options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    sources = Sources(options.photographs, options.weights, options.output)
    if options.part == "student":
        make_student(sources)
        return
    if options.part == "training-free":
        print(compare_training_free(sources, options.split))
        return
    part = PARTS[options.part]
    folder = options.output / f"{part.name}-{options.split}"
    asked = options.methods and options.methods.split(";")
    names = check(asked, [DENSE, *part.names], seeds, part.recipe.steps)
    cells = [cell for cell in part.cells(seeds) if cell.name in names]
    part.make(sources)
    if options.times:
        print(measure_times(part, part.load(sources, options.split).dense, folder.with_name(f"{part.name}-times.json")))
        return
    run_cells(folder, partial(part.load, sources, options.split), cells, part.recipe, part.evaluated, options.workers)
    print(tables(folder, seeds))
