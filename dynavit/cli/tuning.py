"""The commands that say how a model would get faster."""

from __future__ import annotations

import argparse
from pathlib import Path

from dynavit.cli.arguments import add_device, command
from dynavit.text import printable


def add_tune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit tune``."""
    summary = "find what makes your model this much faster and changes its answers least; no labels, no training"
    parser = command(commands, "tune", _tune, summary)
    parser.add_argument(
        "model", metavar="MODEL", help="folder of a model, state dict (.safetensors, .pth), or a timm name"
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="folder with images, of any layout")
    parser.add_argument("--speedup", type=float, metavar="1.5", help="how many times faster than the dense model")
    parser.add_argument("--target-ms", type=float, metavar="20", help="milliseconds an image, in place of that")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument(
        "--configs", nargs="+", type=Path, metavar="YAML", help="methods to try (default: all of configs/methods)"
    )
    parser.add_argument("--architecture", metavar="NAME", help="timm name; needed for a state dict")
    parser.add_argument("--img-size", type=int, metavar="PIXELS", help="(default: the architecture's)")
    parser.add_argument("--limit", type=int, default=256, metavar="N", help="images to use (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=9, metavar="N", help="how often each is timed in the end (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("checkpoints/tuned"), metavar="DIR", help="(default: %(default)s)"
    )
    add_device(parser)


def _tune(options: argparse.Namespace) -> None:
    from dynavit.commands.tuning import tune
    from dynavit.evaluation.tuning_results import CONFIG, MODEL, format_tuning

    tuned = tune(
        options.model,
        options.images,
        speedup=options.speedup,
        target_ms=options.target_ms,
        batch_size=options.batch_size,
        methods=options.configs,
        architecture=options.architecture,
        img_size=options.img_size,
        limit=options.limit,
        rounds=options.rounds,
        output=options.output,
        device=options.device,
        log=lambda line: print(printable(line)),
    )
    best, about = tuned.best, tuned.about
    print(f"\n{printable(about['model'])}; {printable(about['images'])}; {about['measured_on']}\n")
    print(format_tuning(tuned.rows))
    ratio = "" if best["keep_ratio"] is None else f" at keep ratio {best['keep_ratio']:.3f}"
    agrees = f"{best['same_top1']:.1f} % of the images get the same class" if "same_top1" in best else ""
    print(
        f"\nBest: {best['setting']}{ratio}, {best['speedup'][0]:.2f}x; "
        f"{agrees or 'the embeddings have a cosine of ' + format(best['cosine'], '.4f')}."
    )
    if best["keep_ratio"] is None:
        print("So do not prune: smaller images are the better way to this speed.")
    where = printable(options.output)
    print(
        f"Written to {where}: tune.md, tune.json, tune.csv, tune.png, and the model. Go on with\n"
        f"  dynavit evaluate {where}/{MODEL} data.root=IMAGES\n"
        f"  dynavit export {where}/{MODEL} --images {printable(options.images)}\n"
        f"  dynavit train --config {where}/{CONFIG} data.root=IMAGES"
    )


def add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dynavit plan``."""
    summary = "say which keep ratios reach a speed on this machine, before any training, or that pruning does not pay"
    parser = command(commands, "plan", _plan, summary)
    parser.add_argument("model", metavar="MODEL", help="timm name, folder of a model, or state dict")
    parser.add_argument("--speedup", type=float, metavar="1.5", help="how many times faster than the dense model")
    parser.add_argument("--target-ms", type=float, metavar="20", help="milliseconds an image, in place of that")
    parser.add_argument("--keep-ratio", type=float, metavar="0.7", help="or the ratio whose time is asked for")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument(
        "--method", default="methods/default", metavar="YAML", help="configuration (default: %(default)s)"
    )
    parser.add_argument("--architecture", metavar="NAME", help="timm name; needed for a state dict")
    parser.add_argument("--img-size", type=int, metavar="PIXELS", help="(default: the architecture's)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="of the last timing (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="measure blocks again, though this machine is known")
    add_device(parser)


def _plan(options: argparse.Namespace) -> None:
    import yaml

    from dynavit.commands.tuning import plan
    from dynavit.evaluation.tuning_results import format_plan

    given = {name: getattr(options, name) for name in ("speedup", "target_ms", "keep_ratio", "batch_size", "method")}
    more = {name: getattr(options, name) for name in ("architecture", "img_size", "rounds", "fresh", "device")}
    found = plan(options.model, **given, **more)
    print(f"{printable(options.model)}, batch size {options.batch_size}; {found.about['measured_on']}\n")
    print(format_plan(found.rows))
    if found.why_not is not None:
        print(f"\n{found.why_not[0].upper()}{found.why_not[1:]}")
        return
    print("\nAccuracy is not asked here: `dynavit tune` compares answers. To train this:\n")
    print(yaml.safe_dump(found.settings, sort_keys=False, default_flow_style=None).rstrip())
