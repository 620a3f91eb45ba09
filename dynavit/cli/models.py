"""Commands about a trained model: evaluate, visualize, predict."""

from __future__ import annotations

import argparse
from pathlib import Path

from dynavit.cli.arguments import RUN_HELP, add_device, add_overrides, command, numbers, refuse, report
from dynavit.tables import csv_text
from dynavit.text import printable


def add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit evaluate``."""
    parser = command(
        commands,
        "evaluate",
        _evaluate,
        "accuracy against MACs against measured speed, at several keep ratios",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_HELP)
    parser.add_argument("--keep-ratios", type=numbers(float), metavar="1.0,0.7,0.5", help="ratios to evaluate")
    parser.add_argument("--batch-sizes", type=numbers(int), metavar="1,32", help="measure speed at these")
    parser.add_argument("--no-timing", action="store_true", help="do not measure speed")
    parser.add_argument(
        "--adaptive",
        action="store_true",
        help="also let every image keep as many tokens as it needs, on average as many as the ratio says: thresholds "
        "calibrated on training images (number: evaluate.calibration_images)",
    )
    parser.add_argument(
        "--rivals",
        metavar="192,160",
        help="compare with the dense model on smaller images: heights in pixels, auto for those as fast as the keep "
        "ratios, or none (default: auto)",
    )
    parser.add_argument(
        "--rival-run",
        action="append",
        metavar="DIR",
        help="compare with another trained model of the same classes, as one of smaller images; may be repeated",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where results go (default: RUN_DIR)")
    add_overrides(parser)
    add_device(parser)


def _evaluate(options: argparse.Namespace) -> None:
    from dynavit.commands.models import evaluate
    from dynavit.report.rows import is_dense
    from dynavit.report.summary import explain
    from dynavit.report.table import aligned, format_table
    from dynavit.report.tradeoffs import PRICES, advice, price_columns
    from dynavit.runs.processes import is_main_process

    if options.no_timing:
        refuse(options, "with --no-timing speed is not measured", "batch_sizes")
    rows = evaluate(
        options.run_dir,
        options.keep_ratios,
        [] if options.no_timing else options.batch_sizes,
        adaptive=options.adaptive or None,
        rivals=options.rivals,
        rival_runs=options.rival_run or (),
        overrides=options.overrides,
        output=options.output,
        device=options.device,
    )
    if not is_main_process():
        return
    if all(is_dense(row) for row in rows):
        print(f"{printable(options.run_dir)} holds a dense model: it has no pruning stages, so there is one row.")
    metric = "map" if any("map" in row for row in rows) else "top1"
    print(f"{format_table(rows, metric)}\n\n{explain(rows, metric)}")
    if prices := price_columns(rows, metric):
        print(f"\n{PRICES}\n\n{aligned(prices)}\n")
    for line in advice(rows, metric):
        print(line)
    written = printable(options.output or Path(options.run_dir))
    print(f"\nWritten to {written}: report.html, and its tables and pictures as files beside it")


def add_visualize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit visualize``."""
    parser = command(commands, "visualize", _visualize, "draw which tokens are kept on your own images")
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_HELP)
    parser.add_argument("--images", required=True, metavar="DIR", help="folder with images, or one image")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="(default: the one trained with)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where pictures go (default: RUN_DIR/kept_tokens)")
    add_device(parser)


def _visualize(options: argparse.Namespace) -> None:
    from dynavit.commands.prediction import visualize

    output: Path = options.output or Path(options.run_dir) / "kept_tokens"
    pages = visualize(
        options.run_dir,
        options.images,
        options.output,
        keep_ratio=options.keep_ratio,
        device=options.device,
        report=report,
    )
    print(f"{len(pages)} picture(s) of up to 8 images each written to {printable(output)}")


def add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit predict``."""
    parser = command(commands, "predict", _predict, "label the images of a folder, or find for each the most alike")
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_HELP)
    parser.add_argument("--images", required=True, metavar="DIR", help="folder with images, or one image")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="(default: the one trained with)")
    parser.add_argument("--top", type=int, metavar="K", help="name so many classes, or images (default: 1)")
    parser.add_argument(
        "--gallery", metavar="DIR", help="re-identification: find images of this folder, not of --images"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default: 32)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read images (default: 2)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=".csv or .json; .npz for embeddings, or a classifier's probabilities and features (default: the terminal)",
    )
    parser.add_argument(
        "--tokens", type=Path, metavar="FILE.json", help="write which patches were kept, and all scores"
    )
    add_device(parser)


def _predict(options: argparse.Namespace) -> None:
    from dynavit.commands.prediction import embed, predict

    output: Path | None = options.output
    settings = {
        "keep_ratio": options.keep_ratio,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "device": options.device,
        "report": report,
    }
    if output is not None and output.suffix.lower() == ".npz":
        refuse(options, "a file .npz holds arrays, and no such rows", "top", "gallery")
        refuse(options, "a file .npz is written without them", "tokens")
        names, features = embed(options.run_dir, options.images, output, **settings)
        print(f"{len(names)} images, {features.shape[1]} numbers each, in {printable(output)}")
        return
    top = 1 if options.top is None else options.top
    rows = predict(
        options.run_dir,
        options.images,
        output,
        top=top,
        gallery=options.gallery,
        tokens=options.tokens,
        **settings,
    )
    if output is None:
        print(csv_text(rows, terminal=True), end="")
    else:
        print(f"{len(rows)} images {'labelled' if 'label' in rows[0] else 'matched'} in {printable(output)}")
