"""The command line: ``dynavit train|evaluate|...`` and, the same, ``python tools/train.py ...``."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from dynavit.errors import InputError

_RUN_HELP = "folder of a trained model, such as checkpoints/quickstart"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 2, with one line on standard error, for bad input."""
    parser = argparse.ArgumentParser(
        prog="dynavit", description="Make Vision Transformers cheaper by dropping tokens while they run."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_train,
        _add_evaluate,
        _add_export,
        _add_benchmark,
        _add_visualize,
        _add_predict,
        _add_study,
        _add_selectors,
    ):
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
    print(format_table(rows, "map" if run.is_reid else "top1"))
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
    if retrieval is not None:
        print(f"Searching with its embeddings: {retrieval}")


def _add_benchmark(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "what pruning saves on this machine, and what selectors cost; needs no data and no trained model"
    parser = _command(commands, "benchmark", _benchmark, summary)
    parser.add_argument("--backbone", default="deit_small_patch16_224", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--keep-ratios", type=_numbers(float), default=[0.7], metavar="0.7,0.5", help="(default: 0.7)")
    parser.add_argument("--batch-sizes", type=_numbers(int), metavar="1,8,32", help="(default: 1,8,32; selectors: 256)")
    parser.add_argument(
        "--dtypes", default="float32", metavar="float32,bfloat16", help="float16, too (default: %(default)s)"
    )
    parser.add_argument("--selector", default="topk", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--training", action="store_true", help="time training steps, masked and gathered")
    parser.add_argument("--selectors", action="store_true", help="time every selector against one block instead")
    parser.add_argument("--model-kwargs", type=_mapping, metavar="JSON", help="for timm, as '{\"img_size\": 384}'")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="how often each is timed (default: 7)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the numbers")
    _add_device(parser)


def _benchmark(options: argparse.Namespace) -> None:
    from dynavit.engine.benchmark import (
        benchmark_models,
        benchmark_selectors,
        format_models,
        format_selectors,
        machine,
    )
    from dynavit.engine.run import _device

    if options.output is not None and options.output.suffix != ".json":
        raise InputError(f"--output {options.output}: the name must end in .json.")
    device = _device(options.device)
    common = {"device": device, "rounds": options.rounds, "model_kwargs": options.model_kwargs}
    print(f"{options.backbone}, random weights; {machine(device)}\n")
    if options.selectors:
        rows = benchmark_selectors(options.backbone, options.batch_sizes or [256], **common)
        print(format_selectors(rows))
    else:
        rows = benchmark_models(
            options.backbone,
            options.keep_ratios,
            options.batch_sizes or [1, 8, 32],
            [name.strip() for name in options.dtypes.split(",")],
            selector=options.selector,
            training=options.training,
            **common,
        )
        print(format_models(rows))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        measured = {"backbone": options.backbone, "machine": machine(device), "rows": rows}
        options.output.write_text(json.dumps(measured, indent=2) + "\n")
        print(f"\nWritten: {options.output}")


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
    parser = _command(commands, "predict", _predict, "label the images of a folder, or find for each the most alike")
    parser.add_argument("run_dir", metavar="RUN_DIR", help=_RUN_HELP)
    parser.add_argument("--images", required=True, metavar="DIR", help="folder with images, or one image")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="(default: the one trained with)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default: 32)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=".csv or .json; .npz for embeddings (default: the terminal)"
    )
    _add_device(parser)


def _predict(options: argparse.Namespace) -> None:
    from dynavit.engine.predictor import embed_images, label_images, nearest_images, write_embeddings, write_rows
    from dynavit.engine.run import open_run

    run = open_run(options.run_dir, options.keep_ratio, options.device)
    output, suffixes = options.output, (".csv", ".json", ".npz") if run.is_reid else (".csv", ".json")
    if output is not None and output.suffix not in suffixes:
        raise InputError(f"--output {output}: the name must end in {', '.join(suffixes[:-1])} or {suffixes[-1]}.")
    batch_size = max(options.batch_size, 1)
    if run.is_reid:
        names, embeddings = embed_images(run, options.images, batch_size, _report)
        rows = nearest_images(names, embeddings) if output is None or output.suffix != ".npz" else []
    else:
        rows = label_images(run, options.images, batch_size, _report)
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


def _add_study(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "compare ways of training through a selection, good and bad, on small made-up problems"
    parser = _command(commands, "study", _study, summary)
    parser.add_argument(
        "study", choices=["stability", "selection"], help="what makes training explode; how well each selector learns"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="(default: checkpoints/study-STUDY)")
    parser.add_argument("--seeds", default="0,1,2", metavar="0,1,2", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, metavar="N", help="of each run (default: 250; selection: 400)")
    parser.add_argument("--variants", metavar="NAME,NAME", help="run these only (default: all)")


def _study(options: argparse.Namespace) -> None:
    from dynavit.studies.report import report_selection, report_stability

    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise InputError(f"--seeds {options.seeds}: whole numbers with commas between them, such as 0,1,2.") from None
    variants = options.variants and [name.strip() for name in options.variants.split(",")]
    output: Path = options.output or Path("checkpoints") / f"study-{options.study}"
    report = report_stability if options.study == "stability" else report_selection
    print(report(output, seeds, options.steps, variants))
    print(f"\nWritten to {output}: {options.study}.md, {options.study}.json, {options.study}.csv, {options.study}.png")


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


def _mapping(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: a JSON object, such as '{{\"img_size\": 384}}'")
    return value


def _report(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
