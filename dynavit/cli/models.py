"""Commands about a trained model: evaluate, export, visualize, predict."""

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
    print(f"\nWritten to {written}: report.html, evaluation.json, evaluation.csv, pareto.png")


def add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit export``."""
    summary = "write a pruned model as a file for deployment, checked against the original"
    parser = command(commands, "export", _export, summary)
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_HELP)
    parser.add_argument(
        "--format", default="onnx", metavar="onnx|pt2", help="pt2: an ExportedProgram of torch (default: onnx)"
    )
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="(default: the one trained with)")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="for batches of this size alone, as some runtimes want (default: any)"
    )
    parser.add_argument("--with-tokens", action="store_true", help="the file also gives which patches each stage kept")
    parser.add_argument(
        "--images", metavar="DIR", help="check with these images (default: the validation data of the run)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="how often speed is measured (default: 15)")
    parser.add_argument("--no-timing", action="store_true", help="do not measure speed")
    parser.add_argument("--output", type=Path, metavar="FILE", help="(default: RUN_DIR/model.onnx, or .pt2)")
    add_overrides(parser)


def _export(options: argparse.Namespace) -> None:
    from dynavit.commands.models import export

    if options.no_timing:
        refuse(options, "with --no-timing speed is not measured", "rounds")
    print("Exporting; this takes from half a minute to a few minutes ...")
    exported = export(
        options.run_dir,
        options.output,
        format=options.format,
        keep_ratio=options.keep_ratio,
        batch=options.batch,
        with_tokens=options.with_tokens,
        images=options.images,
        rounds=None if options.no_timing else 15 if options.rounds is None else options.rounds,
        overrides=options.overrides,
    )
    path, checked = exported.path, exported.verification
    opset = ", opset 20" if options.format == "onnx" else ""
    print(
        f"Written: {printable(path)} ({path.stat().st_size / 1e6:.1f} MB){opset}, "
        f"{'any batch size' if exported.batch is None else f'batch size {exported.batch}'}, keep ratios "
        f"{', '.join(f'{ratio:g}' for ratio in exported.keep_ratios) or '1 (dense)'}."
    )
    print(
        f"Checked in {exported.runtime} on {checked.images} images at batch sizes "
        f"{', '.join(map(str, checked.batch_sizes))}: largest difference {checked.max_difference:.1e} (outputs have a "
        f"standard deviation of {checked.scale:.2g})" + (", same top-1." if exported.classifies else ".")
    )
    if checked.same_tokens:
        print(f"The same tokens are kept: {', '.join(f'{100 * share:.1f} %' for share in checked.same_tokens)}.")
    if checked.left_out:
        print(f"Left out: {checked.left_out} images on which rounding alone decides which tokens are kept or merged.")
    if exported.without_thresholds:
        print("The model's thresholds are left out: the file keeps the same number of tokens in every image.")
    if exported.search is not None:
        print(f"Searching with its embeddings: {exported.search}")
    for row in exported.speeds:
        speedup, low, high = row["speedup"]
        print(
            f"Speed in {exported.runtime}, batch {row['batch_size']}: {row['ms']:.3g} ms an image, dense "
            f"{row['dense_ms']:.3g} ms: {speedup:.2f}x [{low:.2f}, {high:.2f}]."
        )


def add_visualize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit visualize``."""
    parser = command(commands, "visualize", _visualize, "draw which tokens are kept on your own images")
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_HELP)
    parser.add_argument("--images", required=True, metavar="DIR", help="folder with images, or one image")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="(default: the one trained with)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where pictures go (default: RUN_DIR/kept_tokens)")
    add_device(parser)


def _visualize(options: argparse.Namespace) -> None:
    from dynavit.commands.models import visualize

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
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default: 32)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=".csv or .json; .npz for embeddings (default: the terminal)"
    )
    add_device(parser)


def _predict(options: argparse.Namespace) -> None:
    from dynavit.commands.models import embed, predict

    output: Path | None = options.output
    settings = {"keep_ratio": options.keep_ratio, "batch_size": options.batch_size, "device": options.device}
    if output is not None and output.suffix.lower() == ".npz":
        names, embeddings = embed(options.run_dir, options.images, output, report=report, **settings)
        print(f"{len(names)} embeddings of {embeddings.shape[1]} numbers in {printable(output)}")
        return
    rows = predict(options.run_dir, options.images, output, report=report, **settings)
    if output is None:
        print(csv_text(rows, terminal=True), end="")
    else:
        print(f"{len(rows)} images {'labelled' if 'label' in rows[0] else 'matched'} in {printable(output)}")
