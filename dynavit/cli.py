"""The command line: ``dynavit train|evaluate|...`` and, the same, ``python tools/train.py ...``."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from dynavit.errors import InputError

_RUN_HELP = "folder of a trained model, such as checkpoints/quickstart"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 2, with one line on standard error, for bad input."""
    parser = argparse.ArgumentParser(
        prog="dynavit", description="Make Vision Transformers cheaper by dropping tokens while they run."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_train, _add_evaluate, _add_export, _add_visualize, _add_predict, _add_selectors):
        add(commands)
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one run only; settings may stand on both sides of an option
    if rest and not (hasattr(options, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    threading.excepthook = _report_thread
    try:
        options.run(options)
    except InputError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; continue a training with --resume", file=sys.stderr)
        return 130
    return 0


def _one_line(error: Exception) -> str:
    """Return the message; torch wraps one from a data worker into that worker's traceback."""
    return str(error).strip().rpartition("\n")[2].removeprefix("dynavit.errors.InputError: ")


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """Say in one line what TensorBoard's writing thread could not write; training goes on without it."""
    if isinstance(failed.exc_value, OSError):
        # in one piece, since the main thread may be writing too
        sys.stderr.write(f"warning: the TensorBoard log could not be written: {failed.exc_value}\n")
    else:
        threading.__excepthook__(failed)


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "train", _train, "train a pruned (or, with model.stages=[], a dense) model")
    parser.add_argument("--config", required=True, metavar="YAML", help="settings of the run; see configs/")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in its folder, or start it if there is none"
    )
    _add_overrides(parser)


def _train(options: argparse.Namespace) -> None:
    from dynavit.config import load_config
    from dynavit.engine.monitor import Diverged
    from dynavit.engine.trainer import Trainer

    trainer = Trainer(load_config(options.config, options.overrides), resume=options.resume)
    try:
        trainer.fit()
    except Diverged as error:
        raise InputError(f"stopped, {error} The last good checkpoint is in {trainer.config.run_dir}.") from None


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        "accuracy against MACs against measured speed, at several keep ratios",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help=_RUN_HELP)
    parser.add_argument("--keep-ratios", type=_numbers(float), metavar="1.0,0.7,0.5", help="ratios to evaluate")
    parser.add_argument("--batch-sizes", type=_numbers(int), metavar="1,32", help="measure speed at these")
    parser.add_argument("--no-timing", action="store_true", help="do not measure speed")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where results go (default: RUN_DIR)")
    _add_overrides(parser)
    _add_device(parser)


def _evaluate(options: argparse.Namespace) -> None:
    from dynavit.engine.evaluator import evaluate_run
    from dynavit.engine.run import open_run
    from dynavit.report.table import format_table

    run = open_run(options.run_dir, device=options.device, overrides=options.overrides)
    if not run.model.stages:
        print(f"{run.path} holds a dense model: it has no pruning stages, so there is one row.")
    batch_sizes = [] if options.no_timing else options.batch_sizes
    rows = evaluate_run(run, options.keep_ratios, batch_sizes, options.output)
    print(format_table(rows))
    print(f"\nWritten to {options.output or run.path}: report.html, evaluation.json, evaluation.csv, pareto.png")


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "export", _export, "write a pruned model as ONNX, checked against the original")
    parser.add_argument("run_dir", metavar="RUN_DIR", help=_RUN_HELP)
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="(default: onnx)")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="(default: the one trained with)")
    parser.add_argument(
        "--images", metavar="DIR", help="check with these images (default: the validation data of the run)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="(default: RUN_DIR/model.onnx)")
    _add_overrides(parser)


def _export(options: argparse.Namespace) -> None:
    from dynavit.engine.exporter import export_run
    from dynavit.engine.run import open_run

    run = open_run(options.run_dir, options.keep_ratio, "cpu", options.overrides)
    output: Path = options.output or run.path / "model.onnx"
    print("Exporting; this takes from half a minute to a few minutes ...")
    checked = export_run(run, output, options.images)
    print(
        f"Written: {output} ({output.stat().st_size / 1e6:.1f} MB), opset 20, any batch size, keep ratios "
        f"{', '.join(f'{ratio:g}' for ratio in run.model.keep_ratios) or '1 (dense)'}."
    )
    print(
        f"Checked in onnxruntime on {checked.images} images at batch sizes {', '.join(map(str, checked.batch_sizes))}: "
        f"largest difference {checked.max_difference:.1e} (logits have a standard deviation of {checked.scale:.2g}), "
        f"same top-1."
    )


def _add_visualize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "visualize", _visualize, "draw which tokens are kept on your own images")
    parser.add_argument("run_dir", metavar="RUN_DIR", help=_RUN_HELP)
    parser.add_argument("--images", required=True, metavar="DIR", help="folder with images, or one image")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="(default: the one trained with)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where pictures go (default: RUN_DIR/kept_tokens)")
    _add_device(parser)


def _visualize(options: argparse.Namespace) -> None:
    from dynavit.engine.evaluator import draw_kept_tokens
    from dynavit.engine.run import list_images, open_run, read_images

    run = open_run(options.run_dir, options.keep_ratio, options.device)
    if not run.model.stages:
        raise InputError(f"{run.path} holds a dense model: every token is kept, so there is nothing to draw.")
    output: Path = options.output or run.path / "kept_tokens"
    output.mkdir(parents=True, exist_ok=True)
    page = 0
    for paths, images, problems in read_images(run, list_images(options.images), batch_size=8):
        _report(problems)
        if paths:
            page += 1
            picture = draw_kept_tokens(run, images, [path.name for path in paths])
            picture.save(output / f"kept_tokens_{page:03}.png")
    print(f"{page} picture(s) of up to 8 images each written to {output}")


def _add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "predict", _predict, "label the images of a folder")
    parser.add_argument("run_dir", metavar="RUN_DIR", help=_RUN_HELP)
    parser.add_argument("--images", required=True, metavar="DIR", help="folder with images, or one image")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="(default: the one trained with)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default: 32)")
    parser.add_argument("--output", type=Path, metavar="FILE", help=".csv or .json (default: the terminal)")
    _add_device(parser)


def _predict(options: argparse.Namespace) -> None:
    import torch

    from dynavit.engine.run import list_images, open_run, read_images

    if options.output is not None and options.output.suffix not in (".csv", ".json"):
        raise InputError(f"--output {options.output}: the name must end in .csv or .json.")
    run = open_run(options.run_dir, options.keep_ratio, options.device)
    rows: list[dict[str, str | float]] = []
    for paths, images, problems in read_images(run, list_images(options.images), max(options.batch_size, 1)):
        _report(problems)
        if not paths:
            continue
        with torch.inference_mode():
            probabilities, labels = run.model(images).float().softmax(dim=1).max(dim=1)
        for path, probability, label in zip(paths, probabilities.tolist(), labels.tolist(), strict=True):
            name = run.class_names[label]
            rows.append({"image": str(path), "label": name, "probability": round(probability, 4)})
    if options.output is None:
        _write_csv(sys.stdout, rows)
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        if options.output.suffix == ".json":
            json.dump(rows, file, indent=2)
        else:
            _write_csv(file, rows)
    print(f"{len(rows)} images labelled in {options.output}")


def _write_csv(file: TextIO, rows: list[dict[str, str | float]]) -> None:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


def _add_selectors(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _command(commands, "selectors", _selectors, "list the selectors, those of other packages included")


def _selectors(options: argparse.Namespace) -> None:
    from dynavit.selectors import list_selectors

    for name, summary in list_selectors().items():
        print(f"{name:<16}{summary}")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="cpu|cuda", help="(default: cuda if there is one)")


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="key.subkey=value", help="replace settings, e.g. data.root=my_images"
    )


def _numbers(kind: Callable[[str], float]) -> Callable[[str], list[float]]:
    def parse(text: str) -> list[float]:
        try:
            numbers = [kind(part) for part in text.split(",") if part.strip()]
        except ValueError:
            numbers = []
        if not numbers or min(numbers) <= 0:
            raise argparse.ArgumentTypeError(f"{text!r}: numbers above 0 with commas between them, such as 1,8")
        return numbers

    return parse


def _report(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
