"""The command line of longer experiments: ``python tools/reproduce.py ...``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dynavit.cli.arguments import add_device, numbers
from dynavit.cli.program import Parser, require_one_process, run_program
from dynavit.files import require_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing of an experiment and print its tables; returns the exit status."""
    return run_program(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="reproduce.py",
        description="Make a table of the documentation again: what is not there yet is run, and what was stopped goes "
        "on where it was.",
    )
    experiments = parser.add_subparsers(required=True, metavar="EXPERIMENT")
    method = experiments.add_parser("default-method", help="which method to take, on photographs")
    method.set_defaults(run=_default_method, output=Path("checkpoints/default-method"))
    method.add_argument(
        "--part",
        default="small",
        choices=["student", "small", "large", "larger", "training-free"],
        help="(default: %(default)s)",
    )
    method.add_argument("--methods", metavar="NAME;NAME", help="train these only (default: all)")
    method.add_argument(
        "--split", default="choose", choices=["choose", "val"], help="images to evaluate on (default: %(default)s)"
    )
    flat = experiments.add_parser("flat-patches", help="whether flat patches can be merged for nothing")
    flat.set_defaults(run=_flat_patches, output=Path("checkpoints/default-method"), seeds="0")
    for experiment in (method, flat):
        experiment.add_argument(
            "--photographs", type=Path, required=True, metavar="DIR", help="Imagenette: train/CLASS, val/CLASS"
        )
        experiment.add_argument("--weights", type=Path, required=True, metavar="FILE", help="of a ViT-S/14")
    removal = experiments.add_parser("training-by-removal", help="probes against masks, on the quickstarts")
    removal.set_defaults(run=_training_by_removal, output=Path("checkpoints/training-by-removal"))
    removal.add_argument(
        "--problem", default="quickstart", choices=["quickstart", "quickstart-reid"], help="(default: %(default)s)"
    )
    removal.add_argument(
        "--keep-ratios", type=numbers(float), default="0.7,0.5,0.3", metavar="R,R", help="(default: %(default)s)"
    )
    clock = experiments.add_parser("wall-clock", help="how long each way of training takes to an accuracy")
    clock.set_defaults(run=_wall_clock, output=Path("checkpoints/wall-clock"))
    clock.add_argument("--keep-ratio", type=float, default=0.3, metavar="R", help="(default: %(default)s)")
    clock.add_argument(
        "--targets",
        type=numbers(float),
        default="85,90",
        metavar="85,90",
        help="top-1 in percent (default: %(default)s)",
    )
    foretold = experiments.add_parser("plan", help="how far tools/plan.py is off, for random stages and keep ratios")
    foretold.set_defaults(run=_plan, output=Path("checkpoints/plan"), seeds="0")
    foretold.add_argument("--backbone", default="deit_small_patch16_224", metavar="NAME", help="(default: %(default)s)")
    foretold.add_argument(
        "--batch-sizes", type=numbers(int), default="1,8", metavar="1,8", help="(default: %(default)s)"
    )
    guides = experiments.add_parser("multimodal", help="whether other spectra help to choose tokens")
    guides.set_defaults(run=_multimodal, output=Path("checkpoints/multimodal"))
    for experiment in (method, clock):
        experiment.add_argument(
            "--times", action="store_true", help="measure speed instead of training; nothing else should run meanwhile"
        )
    for experiment in (method, foretold):
        add_device(experiment)
    for experiment, seeds in ((method, "0,1,2"), (removal, "0,1,2,3,4"), (clock, "0,1,2"), (guides, "0,1,2")):
        experiment.add_argument("--seeds", default=seeds, metavar=seeds, help="(default: %(default)s)")
        experiment.add_argument("--workers", type=int, default=2, metavar="N", help="(default: %(default)s)")
    for experiment in (method, flat, removal, clock, foretold, guides):
        experiment.add_argument("--output", type=Path, metavar="DIR", help="(default: %(default)s)")
    return parser


def _run(options: argparse.Namespace) -> None:
    from studies.runner import parse_seeds

    require_one_process("reproduce")
    options.seeds = parse_seeds(options.seeds)
    require_folder(options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    options.run(options)


def _default_method(options: argparse.Namespace) -> None:
    from dynavit.runs.open import choose_device
    from studies.default_method.experiment import DENSE, run_cells
    from studies.default_method.parts import PARTS, Sources, compare_training_free, make_student
    from studies.default_method.report import tables
    from studies.default_method.times import measure_times
    from studies.quiet import require_quiet
    from studies.runner import check

    device = str(choose_device(options.device))
    sources = Sources(options.photographs, options.weights, options.output, device)
    if options.part == "student":
        make_student(sources)
        return
    if options.part == "training-free":
        print(compare_training_free(sources, options.split))
        return
    part = PARTS[options.part]
    folder = options.output / f"{part.name}-{options.split}"
    asked = options.methods and options.methods.split(";")
    names = check(asked, [DENSE, *part.names], options.seeds, part.recipe.steps)
    if options.times:
        require_quiet()
    part.make(sources)
    load = partial(part.load, sources, options.split)
    if options.times:
        print(measure_times(part, load().dense.to(device), folder.with_name(f"{part.name}-times.json")))
        return
    cells = [cell for cell in part.cells(options.seeds) if cell.name in names]
    run_cells(folder, load, cells, part.recipe, part.evaluated, options.workers, device)
    print(tables(folder, options.seeds))


def _training_by_removal(options: argparse.Namespace) -> None:
    from studies.training_by_removal import compare_executions

    print(compare_executions(options.problem, options.keep_ratios, options.seeds, options.output, options.workers))


def _wall_clock(options: argparse.Namespace) -> None:
    from studies.quiet import require_quiet
    from studies.wall_clock import compare_ways, measure_steps

    if options.times:
        require_quiet()
        measure_steps(options.keep_ratio, options.output)
    else:
        print(compare_ways(options.keep_ratio, options.targets, options.seeds, options.output, options.workers))


def _plan(options: argparse.Namespace) -> None:
    from dynavit.runs.open import choose_device
    from studies.plan_accuracy import compare_with_plan
    from studies.quiet import require_quiet

    require_quiet()
    print(compare_with_plan(options.backbone, options.batch_sizes, options.output, choose_device(options.device)))


def _multimodal(options: argparse.Namespace) -> None:
    from studies.multimodal import compare_guides

    print(compare_guides(options.seeds, options.output, options.workers))


def _flat_patches(options: argparse.Namespace) -> None:
    from studies.default_method.parts import Sources
    from studies.flat_patches import compare_flat_patches

    print(compare_flat_patches(Sources(options.photographs, options.weights, options.output)))
