"""The command that compares methods which need no training."""

from __future__ import annotations

import argparse
from pathlib import Path

from dynavit.cli.arguments import add_device, command, numbers, refuse
from dynavit.text import printable


def add_methods(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit methods``."""
    summary = "compare published methods that need no training, at equal cost, on your model and images"
    parser = command(commands, "methods", _methods, summary)
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH|NAME",
        help="folder of a model, state dict (.safetensors, .pth), or a timm name for timm's weights",
    )
    parser.add_argument("--architecture", metavar="NAME", help="timm name; needed for a state dict")
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="images in DIR/train/CLASS and DIR/val/CLASS (default: what the checkpoint was trained on)",
    )
    parser.add_argument("--img-size", type=int, metavar="PIXELS", help="(default: the architecture's)")
    parser.add_argument(
        "--configs", nargs="+", type=Path, metavar="YAML", help="the methods (default: all of configs/methods)"
    )
    parser.add_argument(
        "--keep-ratios", type=numbers(float), default=[0.9, 0.7, 0.5], metavar="0.9,0.7,0.5",
        help="each budget is what dropping at this ratio costs (default: 0.9,0.7,0.5)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="use N training and N validation images only")
    parser.add_argument(
        "--calibration-images", type=int, default=512, metavar="N",
        help="training images that thresholds are set on (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, metavar="N", help="how often speed is measured (default: 7)")
    parser.add_argument("--no-timing", action="store_true", help="do not measure speed")
    parser.add_argument(
        "--output", type=Path, default=Path("checkpoints/methods"), metavar="DIR", help="(default: %(default)s)"
    )
    add_device(parser)


def _methods(options: argparse.Namespace) -> None:
    from dynavit.commands.comparisons import compare_methods
    from dynavit.report.table import format_table

    if options.no_timing:
        refuse(options, "with --no-timing speed is not measured", "rounds")
    rounds = 7 if options.rounds is None else options.rounds
    rows, about = compare_methods(
        options.checkpoint,
        options.configs,
        options.keep_ratios,
        architecture=options.architecture,
        root=options.root,
        img_size=options.img_size,
        limit=options.limit,
        batch_size=options.batch_size,
        calibration_images=options.calibration_images,
        rounds=None if options.no_timing else rounds,
        output=options.output,
        device=options.device,
        log=lambda line: print(printable(line)),
    )
    print(f"\n{printable(about['model'])}; {about['images']}; {about['measured_on']}\n")
    print(format_table(rows))
    print(f"\nWritten to {printable(options.output)}: methods.md, methods.json, methods.csv, methods.png")
