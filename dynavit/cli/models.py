"""Commands about a trained model: evaluate, export, visualize, predict."""

from __future__ import annotations

import argparse
from pathlib import Path

from dynavit.cli.arguments import (
    RUN_HELP,
    add_device,
    add_overrides,
    check_suffix,
    command,
    numbers,
    refuse,
    report,
)
from dynavit.cli.overrides import TO_EVALUATE, TO_EXPORT, TO_READ_IMAGES, honour
from dynavit.errors import InputError
from dynavit.files import replacing, require_folder, require_writable
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
    parser.add_argument("--output", type=Path, metavar="DIR", help="where results go (default: RUN_DIR)")
    add_overrides(parser)
    add_device(parser)


def _evaluate(options: argparse.Namespace) -> None:
    from dynavit.evaluation.sweep import evaluate_run
    from dynavit.report.summary import explain
    from dynavit.report.table import format_table
    from dynavit.runs.open import open_run
    from dynavit.runs.processes import is_main_process

    idle: dict[str, str] = {}
    if options.no_timing:
        refuse(options, untimed := "with --no-timing speed is not measured", "batch_sizes")
        idle |= {"evaluate.rounds": untimed, "evaluate.batch_sizes": untimed}
    if options.keep_ratios is not None:
        idle["evaluate.keep_ratios"] = "--keep-ratios says it already"
    if options.batch_sizes is not None:
        idle["evaluate.batch_sizes"] = "--batch-sizes says it already"
    honour(options.overrides, TO_EVALUATE, idle)
    if options.output is not None or Path(options.run_dir).is_dir():
        require_folder(options.output or options.run_dir)
    run = open_run(options.run_dir, device=options.device, overrides=options.overrides)
    if not run.model.stages:
        refuse(options, why := "a dense model has no stages to prune at", "keep_ratios", "adaptive")
        honour(options.overrides, TO_EVALUATE, {"evaluate.keep_ratios": why, "evaluate.adaptive": why})
        if is_main_process():
            print(f"{printable(run.path)} holds a dense model: it has no pruning stages, so there is one row.")
    if not (options.adaptive or (run.config is not None and run.config.evaluate.adaptive)):
        unread = "training images are read with --adaptive only"
        honour(options.overrides, TO_EVALUATE, {"evaluate.calibration_images": unread, "data.train_split": unread})
    batch_sizes = [] if options.no_timing else options.batch_sizes
    rows = evaluate_run(run, options.keep_ratios, batch_sizes, options.output, options.adaptive or None)
    if not is_main_process():
        return
    metric = "map" if run.is_reid else "top1"
    print(f"{format_table(rows, metric)}\n\n{explain(rows, metric)}")
    written = printable(options.output or run.path)
    print(f"\nWritten to {written}: report.html, evaluation.json, evaluation.csv, pareto.png")


def add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit export``."""
    parser = command(commands, "export", _export, "write a pruned model as ONNX, checked against the original")
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_HELP)
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="(default: onnx)")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="(default: the one trained with)")
    parser.add_argument(
        "--images", metavar="DIR", help="check with these images (default: the validation data of the run)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.onnx", help="(default: RUN_DIR/model.onnx)")
    add_overrides(parser)


def _export(options: argparse.Namespace) -> None:
    from dynavit.deployment.export import export_run
    from dynavit.runs.open import open_run

    honour(options.overrides, TO_EXPORT if options.images is None else TO_READ_IMAGES)
    output: Path = options.output or Path(options.run_dir) / "model.onnx"
    check_suffix(output, ".onnx")
    if options.output is not None or Path(options.run_dir).is_dir():
        require_writable(output)
    run = open_run(options.run_dir, options.keep_ratio, "cpu", options.overrides)
    print("Exporting; this takes from half a minute to a few minutes ...")
    checked, retrieval = export_run(run, output, options.images)
    print(
        f"Written: {printable(output)} ({output.stat().st_size / 1e6:.1f} MB), opset 20, any batch size, keep ratios "
        f"{', '.join(f'{ratio:g}' for ratio in run.model.keep_ratios) or '1 (dense)'}."
    )
    print(
        f"Checked in onnxruntime on {checked.images} images at batch sizes {', '.join(map(str, checked.batch_sizes))}: "
        f"largest difference {checked.max_difference:.1e} (outputs have a standard deviation of {checked.scale:.2g})"
        + ("." if run.is_reid else ", same top-1.")
    )
    if checked.left_out:
        print(f"Left out: {checked.left_out} images on which rounding alone decides which tokens are kept or merged.")
    if run.model.thresholds is not None:
        print("The model's thresholds are left out: the file keeps the same number of tokens in every image.")
    if retrieval is not None:
        print(f"Searching with its embeddings: {retrieval}")


def add_visualize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit visualize``."""
    parser = command(commands, "visualize", _visualize, "draw which tokens are kept on your own images")
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_HELP)
    parser.add_argument("--images", required=True, metavar="DIR", help="folder with images, or one image")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="(default: the one trained with)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where pictures go (default: RUN_DIR/kept_tokens)")
    add_device(parser)


def _visualize(options: argparse.Namespace) -> None:
    from dynavit.evaluation.drawings import draw_kept_tokens
    from dynavit.runs.open import list_images, open_run, read_images

    output: Path = options.output or Path(options.run_dir) / "kept_tokens"
    if options.output is not None or Path(options.run_dir).is_dir():
        require_folder(output)
    run = open_run(options.run_dir, options.keep_ratio, options.device)
    if not run.model.stages:
        raise InputError(f"{run.path} holds a dense model: every token is kept, so there is nothing to draw.")
    page = 0
    for paths, images, problems in read_images(run, list_images(options.images), batch_size=8):
        report(problems)
        if paths:
            page += 1
            picture = draw_kept_tokens(run, images, [printable(path.name) for path in paths])
            with replacing(output / f"kept_tokens_{page:03}.png") as partial:
                picture.save(partial)
    print(f"{page} picture(s) of up to 8 images each written to {printable(output)}")


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
    from dynavit.deployment.predict import embed_images, label_images, nearest_images, write_embeddings, write_rows
    from dynavit.runs.open import open_run

    output: Path | None = options.output
    if output is not None:
        if output.suffix.lower() not in (".csv", ".json", ".npz"):
            raise InputError(f"--output {output}: the name must end in .csv or .json, or in .npz for embeddings.")
        require_writable(output)
    run = open_run(options.run_dir, options.keep_ratio, options.device)
    embeddings_only = output is not None and output.suffix.lower() == ".npz"
    if embeddings_only and not run.is_reid:
        raise InputError(f"--output {output}: a classifier gives no embeddings; the name must end in .csv or .json.")
    if run.is_reid:
        names, embeddings = embed_images(run, options.images, options.batch_size, report)
        rows = [] if embeddings_only else nearest_images(names, embeddings)
    else:
        rows = label_images(run, options.images, options.batch_size, report)
    if output is None:
        print(csv_text(rows, terminal=True), end="")
    elif embeddings_only:
        write_embeddings(output, names, embeddings)
        print(f"{len(names)} embeddings of {embeddings.shape[1]} numbers in {printable(output)}")
    else:
        write_rows(output, rows)
        print(f"{len(rows)} images {'matched' if run.is_reid else 'labelled'} in {printable(output)}")
