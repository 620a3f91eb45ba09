"""Commands about one model: train, evaluate, export, visualize, predict."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dynavit.cli.arguments import RUN_HELP, add_device, add_overrides, command, numbers, report
from dynavit.errors import InputError


def add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit train``."""
    parser = command(commands, "train", _train, "train a pruned (or, with model.stages=[], a dense) model")
    parser.add_argument("--config", required=True, metavar="YAML", help="settings of the run; see configs/")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in its folder, or start it if there is none"
    )
    add_overrides(parser)


def _train(options: argparse.Namespace) -> None:
    from dynavit.config import load_config
    from dynavit.engine.monitor import Diverged
    from dynavit.engine.trainer import Trainer

    trainer = Trainer(load_config(options.config, options.overrides), resume=options.resume)
    try:
        trainer.fit()
    except Diverged as error:
        run_dir = trainer.config.run_dir
        saved = (run_dir / "model.safetensors").exists()
        kept = f"The last good checkpoint is in {run_dir}." if saved else f"Nothing was saved in {run_dir} yet."
        raise InputError(f"stopped, {error} {kept}") from None


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
    from dynavit.engine.evaluator import evaluate_run
    from dynavit.engine.run import open_run
    from dynavit.report.table import format_table

    run = open_run(options.run_dir, device=options.device, overrides=options.overrides)
    if not run.model.stages:
        print(f"{run.path} holds a dense model: it has no pruning stages, so there is one row.")
    batch_sizes = [] if options.no_timing else options.batch_sizes
    rows = evaluate_run(run, options.keep_ratios, batch_sizes, options.output, options.adaptive or None)
    print(format_table(rows, "map" if run.is_reid else "top1"))
    print(f"\nWritten to {options.output or run.path}: report.html, evaluation.json, evaluation.csv, pareto.png")


def add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit export``."""
    parser = command(commands, "export", _export, "write a pruned model as ONNX, checked against the original")
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_HELP)
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="(default: onnx)")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="(default: the one trained with)")
    parser.add_argument(
        "--images", metavar="DIR", help="check with these images (default: the validation data of the run)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="(default: RUN_DIR/model.onnx)")
    add_overrides(parser)


def _export(options: argparse.Namespace) -> None:
    from dynavit.engine.exporter import export_run
    from dynavit.engine.run import open_run

    run = open_run(options.run_dir, options.keep_ratio, "cpu", options.overrides)
    output: Path = options.output or run.path / "model.onnx"
    print("Exporting; this takes from half a minute to a few minutes ...")
    checked, retrieval = export_run(run, output, options.images)
    print(
        f"Written: {output} ({output.stat().st_size / 1e6:.1f} MB), opset 20, any batch size, keep ratios "
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
    from dynavit.engine.results import draw_kept_tokens
    from dynavit.engine.run import list_images, open_run, read_images

    run = open_run(options.run_dir, options.keep_ratio, options.device)
    if not run.model.stages:
        raise InputError(f"{run.path} holds a dense model: every token is kept, so there is nothing to draw.")
    output: Path = options.output or run.path / "kept_tokens"
    output.mkdir(parents=True, exist_ok=True)
    page = 0
    for paths, images, problems in read_images(run, list_images(options.images), batch_size=8):
        report(problems)
        if paths:
            page += 1
            picture = draw_kept_tokens(run, images, [path.name for path in paths])
            picture.save(output / f"kept_tokens_{page:03}.png")
    print(f"{page} picture(s) of up to 8 images each written to {output}")


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
    from dynavit.engine.predictor import embed_images, label_images, nearest_images, write_embeddings, write_rows
    from dynavit.engine.run import open_run

    run = open_run(options.run_dir, options.keep_ratio, options.device)
    output, suffixes = options.output, (".csv", ".json", ".npz") if run.is_reid else (".csv", ".json")
    if output is not None and output.suffix not in suffixes:
        raise InputError(f"--output {output}: the name must end in {', '.join(suffixes[:-1])} or {suffixes[-1]}.")
    batch_size = max(options.batch_size, 1)
    if run.is_reid:
        names, embeddings = embed_images(run, options.images, batch_size, report)
        rows = nearest_images(names, embeddings) if output is None or output.suffix != ".npz" else []
    else:
        rows = label_images(run, options.images, batch_size, report)
        names = [row["image"] for row in rows]
    if output is None:
        write_rows(sys.stdout, rows, ".csv")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".npz":
        write_embeddings(output, names, embeddings)
        print(f"{len(names)} embeddings of {embeddings.shape[1]} numbers in {output}")
        return
    with output.open("w", newline="") as file:
        write_rows(file, rows, output.suffix)
    print(f"{len(rows)} images {'matched' if run.is_reid else 'labelled'} in {output}")
