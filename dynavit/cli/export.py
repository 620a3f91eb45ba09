"""Writing a trained model as files for deployment."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dynavit.cli.arguments import RUN_HELP, add_overrides, command, refuse, words
from dynavit.text import printable

if TYPE_CHECKING:
    from dynavit.deployment.export import Exported


def add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit export``."""
    summary = "write a pruned model as a file for deployment, checked against the original"
    parser = command(commands, "export", _export, summary)
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_HELP)
    parser.add_argument(
        "--format",
        type=words,
        default=["onnx"],
        metavar="onnx|openvino|pt2|all",
        help="pt2: an ExportedProgram of torch; several with commas are compared (default: onnx)",
    )
    parser.add_argument(
        "--precision",
        type=words,
        default=["fp32"],
        metavar="fp32|fp16|bf16|int8|all",
        help="of the blocks; several with commas are compared (default: fp32)",
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
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="(default: RUN_DIR/model.onnx, .xml or .pt2); of several the folder (default: RUN_DIR/exports)",
    )
    add_overrides(parser)


def _export(options: argparse.Namespace) -> None:
    from dynavit.commands.models import export, export_all
    from dynavit.deployment.matrix import LEGEND, format_matrix

    if options.no_timing:
        refuse(options, "with --no-timing speed is not measured", "rounds")
    settings = {
        "keep_ratio": options.keep_ratio,
        "batch": options.batch,
        "with_tokens": options.with_tokens,
        "images": options.images,
        "rounds": None if options.no_timing else 15 if options.rounds is None else options.rounds,
        "overrides": options.overrides,
    }
    formats, precisions = options.format, options.precision
    if len(formats) == len(precisions) == 1 and "all" not in (*formats, *precisions):
        print("Exporting; this takes from half a minute to a few minutes ...")
        exported = export(options.run_dir, options.output, format=formats[0], precision=precisions[0], **settings)
        for line in _describe(exported):
            print(line)
        return
    print("Exporting; this takes some minutes ...")
    rows = export_all(
        options.run_dir,
        options.output,
        formats=None if formats == ["all"] else formats,
        precisions=None if precisions == ["all"] else precisions,
        **settings,
    )
    print(f"{format_matrix(rows)}\n\n{LEGEND}")
    folder = options.output or Path(options.run_dir) / "exports"
    print(f"Written to {printable(folder)}, with exports.json and exports.md")


def _describe(exported: Exported) -> Iterator[str]:
    """Yield what was written, checked and measured."""
    from dynavit.deployment.onnx import OPSET

    target, checked = exported.target, exported.verification
    opset = f", opset {OPSET}" if target.format == "onnx" else ""
    low = "" if target.precision == "fp32" else f", {target.precision}"
    yield (
        f"Written: {printable(exported.path)} ({exported.megabytes:.1f} MB){opset}{low}, "
        f"{'any batch size' if target.batch is None else f'batch size {target.batch}'}, keep ratios "
        f"{', '.join(f'{ratio:g}' for ratio in exported.keep_ratios) or '1 (dense)'}."
    )
    same = "same top-1" if exported.classifies else "same nearest neighbours"
    if checked.same_answers < 1:
        same = f"{same} for {100 * checked.same_answers:.1f} %"
    yield (
        f"Checked in {exported.runtime} on {checked.images} images at batch sizes "
        f"{', '.join(map(str, checked.batch_sizes))}: largest difference {checked.max_difference:.1e} (outputs have a "
        f"standard deviation of {checked.scale:.2g}), {same}."
    )
    if checked.same_tokens:
        yield f"The same tokens are kept: {', '.join(f'{100 * share:.1f} %' for share in checked.same_tokens)}."
    if checked.left_out:
        yield f"Left out: {checked.left_out} images on which rounding alone decides which tokens are kept or merged."
    if exported.without_thresholds:
        yield "The model's thresholds are left out: the file keeps the same number of tokens in every image."
    if checked.judgement is not None:
        yield checked.judgement.text()
    for row in checked.speeds:
        speedup, low_end, high_end = row["speedup"]
        yield (
            f"Speed in {exported.runtime}, batch {row['batch_size']}: {row['ms']:.3g} ms an image, dense "
            f"{row['dense_ms']:.3g} ms: {speedup:.2f}x [{low_end:.2f}, {high_end:.2f}]; dense in torch "
            f"{row['torch_ms']:.3g} ms: {row['over_torch'][0]:.2f}x."
        )
