"""The command that compares methods which need no training."""

from __future__ import annotations

import argparse
from pathlib import Path

from dynavit.cli.arguments import add_device, command, numbers, refuse
from dynavit.files import require_folder
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
    from dynavit.config.recipes import recipes
    from dynavit.evaluation.comparison import evaluate_methods
    from dynavit.evaluation.dense_classifier import open_dense_classifier
    from dynavit.evaluation.methods import read_methods
    from dynavit.evaluation.results import write_methods
    from dynavit.evaluation.speed import machine
    from dynavit.report.table import format_table
    from dynavit.runs.open import choose_device

    if options.no_timing:
        refuse(options, "with --no-timing speed is not measured", "rounds")
    require_folder(options.output)
    shipped = [path for name, path in recipes().items() if name.startswith("methods/")]
    methods = read_methods(options.configs or shipped)
    device = choose_device(options.device)
    classifier = open_dense_classifier(
        options.checkpoint,
        device,
        options.output,
        architecture=options.architecture,
        root=options.root,
        img_size=options.img_size,
        limit=options.limit,
        log=lambda line: print(printable(line)),
    )
    left_out: list[str] = []
    rows = evaluate_methods(
        classifier,
        methods,
        options.keep_ratios,
        batch_size=options.batch_size,
        calibration_images=options.calibration_images,
        rounds=0 if options.no_timing else options.rounds or 7,
        log=left_out.append,
    )
    about = {
        "model": f"{classifier.model.architecture}, {classifier.origin}",
        "images": f"{len(classifier.data.validation)} for validation, {len(classifier.data.train)} for training",
        "measured_on": machine(device),
        "speedup": "over the dense model, timed in turns with the methods of each budget; median over the rounds",
        "left_out": "; ".join(line.rstrip(".").replace(" is left out", "", 1) for line in left_out) or "nothing",
    }
    print("\n".join(map(printable, left_out)))
    print(f"\n{printable(about['model'])}; {about['images']}; {about['measured_on']}\n")
    print(format_table(rows))
    print(f"\nWritten to {printable(options.output)}: {', '.join(write_methods(rows, about, options.output))}")
