"""Commands that measure and compare, and those that list what there is."""

from __future__ import annotations

import argparse
from pathlib import Path

from dynavit.cli.arguments import add_device, command, mapping, numbers, refuse, words
from dynavit.commands.speed import BACKBONE, ROUNDS
from dynavit.text import printable

_COMMON = ("backbone", "rounds", "model_kwargs")
_OF_MODELS = (
    *("keep_ratios", "dtypes", "selector", "methods", "training", "teacher", "rivals"),
    *("modes", "parts", "image_sizes", "threads"),
)


def add_benchmark(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit benchmark``."""
    summary = "what pruning saves on this machine, and what selectors cost; needs no data and no trained model"
    parser = command(commands, "benchmark", _benchmark, summary)
    parser.add_argument("--backbone", metavar="NAME", help=f"(default: {BACKBONE})")
    parser.add_argument("--keep-ratios", type=numbers(float), metavar="0.7,0.5", help="(default: 0.7)")
    parser.add_argument("--batch-sizes", type=numbers(int), metavar="1,8,32", help="(default: 1,8,32; selectors: 256)")
    parser.add_argument("--dtypes", type=words, metavar="float32,bfloat16", help="float16, too (default: float32)")
    parser.add_argument(
        "--selector", metavar="NAME", help="of learned scores (default: the default method, which learns none)"
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="FILE", help="configurations of methods, or shipped ones such as methods/evit"
    )
    parser.add_argument(
        "--training", action="store_true", help="time training steps, masked and gathered, and their memory"
    )
    parser.add_argument("--teacher", action="store_true", help="with --training: also with distillation from a teacher")
    parser.add_argument(
        "--rivals",
        type=words,
        metavar="auto,NAME",
        help="also time the dense model on smaller images, auto for those as fast as the pruned ones or heights in "
        "pixels, and other timm models",
    )
    parser.add_argument(
        "--modes", type=words, metavar="eager,compile", help="compiled, too; on CUDA also graphs (default: eager)"
    )
    parser.add_argument("--parts", action="store_true", help="also time what the stages are made of")
    parser.add_argument(
        "--image-sizes", type=numbers(int), metavar="224,384", help="sides in pixels (default: the backbone's)"
    )
    parser.add_argument("--threads", type=numbers(int), metavar="1,2", help="of a CPU (default: torch's choice)")
    parser.add_argument("--selectors", action="store_true", help="time every selector against one block instead")
    parser.add_argument("--model-kwargs", type=mapping, metavar="JSON", help="for timm, as '{\"img_size\": 384}'")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"how often each is timed (default: {ROUNDS})")
    parser.add_argument(
        "--suite",
        type=Path,
        metavar="FILE.yaml",
        help="run the benchmarks of a file, in order; --output: a folder",
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="with --suite: begin none after so many")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the numbers, of every round")
    add_device(parser)


def _benchmark(options: argparse.Namespace) -> None:
    from dynavit.commands.speed import benchmark, benchmark_selectors, benchmark_suite
    from dynavit.cost.machine import machine
    from dynavit.evaluation.benchmark_tables import format_models, format_selectors
    from dynavit.runs.open import choose_device

    if options.suite is not None:
        refuse(options, "means nothing with --suite", *_OF_MODELS, *_COMMON, "batch_sizes", "selectors")
        folder = options.output or Path("benchmarks")
        benchmark_suite(options.suite, folder, minutes=options.minutes, device=options.device)
        print(f"Written to {printable(folder)}")
        return
    refuse(options, "belongs to --suite", "minutes")
    backbone = options.backbone or BACKBONE
    common = {name: getattr(options, name) for name in ("model_kwargs", "output", "device")}
    common["rounds"] = ROUNDS if options.rounds is None else options.rounds
    if options.selectors:
        refuse(options, "means nothing with --selectors", *_OF_MODELS)
        table = format_selectors(benchmark_selectors(backbone, options.batch_sizes or [256], **common))
    else:
        if options.methods:
            refuse(options, "means nothing with --methods", "selector")
        rows = benchmark(
            backbone,
            options.keep_ratios or [0.7],
            options.batch_sizes or [1, 8, 32],
            options.dtypes or ["float32"],
            selector=options.selector,
            methods=options.methods or (),
            training=options.training,
            teacher=options.teacher,
            rivals=options.rivals or (),
            modes=options.modes or ["eager"],
            parts=options.parts,
            image_sizes=options.image_sizes or (),
            threads=options.threads or (),
            **common,
        )
        table = format_models(rows)
    print(f"{backbone}, random weights; {machine(choose_device(options.device))}\n\n{table}")
    if options.output is not None:
        print(f"\nWritten: {printable(options.output)}")


def add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit compare``."""
    parser = command(commands, "compare", _compare, "draw the training losses of several runs in one figure")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folders of trainings")
    parser.add_argument(
        "--output", type=Path, default=Path("losses.png"), metavar="FILE", help="(default: %(default)s)"
    )


def _compare(options: argparse.Namespace) -> None:
    from dynavit.commands.comparisons import compare_runs

    compare_runs(options.run_dirs, options.output)
    print(f"Written: {printable(options.output)}")


def add_lists(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit selectors``, ``dynavit scorers`` and ``dynavit reducers``."""
    command(commands, "selectors", _list, "list the selectors, those of other packages included")
    command(commands, "scorers", _list, "list what can give tokens their scores")
    command(commands, "reducers", _list, "list what can become of tokens that are not kept")


def _list(options: argparse.Namespace) -> None:
    from dynavit.reducers import list_reducers
    from dynavit.scorers import list_scorers
    from dynavit.selectors import list_selectors

    lists = {"selectors": list_selectors, "scorers": list_scorers, "reducers": list_reducers}
    for name, summary in lists[options.command]().items():
        print(f"{name:<20}{summary}")
