"""What pruning saves on this machine, and what selectors cost, as functions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from dynavit.commands.settings import require_counts, require_lists, require_suffix
from dynavit.errors import InputError
from dynavit.files import require_folder, require_writable, write_text, write_together
from dynavit.tables import Row

BACKBONE, ROUNDS = "deit_small_patch16_224", 7
"""What is timed how often unless told otherwise."""


def benchmark(
    backbone: str = BACKBONE,
    keep_ratios: Sequence[float] = (0.7,),
    batch_sizes: Sequence[int] = (1, 8, 32),
    dtypes: Sequence[str] = ("float32",),
    *,
    selector: str | None = None,
    methods: Sequence[str | Path] = (),
    training: bool = False,
    teacher: bool = False,
    rivals: Sequence[int | str] = (),
    modes: Sequence[str] = ("eager",),
    parts: bool = False,
    image_sizes: Sequence[int] = (),
    threads: Sequence[int] = (),
    rounds: int = ROUNDS,
    model_kwargs: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    device: str | None = None,
) -> list[Row]:
    """Time pruned models on this machine against the dense one and what pruning could save at best, without data.

    Args:
        backbone: timm model name.
        keep_ratios: r keeps r, r^2, r^3 ... over the default stages; of a method, by its own rule.
        batch_sizes: images in a batch.
        dtypes: of "float32", "bfloat16" and "float16".
        selector: a registered name, with the scorer and the reducer that suit it; None: the default method.
        methods: configurations, as files or names such as ``"methods/evit"``, in place of that.
        training: time training steps instead, and measure their memory.
        teacher: time these with distillation from a dense teacher, too.
        rivals: also time the dense model on smaller images, by their height in pixels or ``"auto"`` for those as fast
            as the pruned models, and other timm models, by name.
        modes: of "eager", "compile" and, on CUDA, "graphs".
        parts: also time what the stages are made of, in eager mode.
        image_sizes: sides in pixels; the backbone's own if there are none.
        threads: numbers that torch uses on a CPU; its own if there are none.
        rounds: how often each is timed.
        model_kwargs: further arguments of ``timm.create_model``.
        output: file that ends in ``.json``, to which the numbers are written, those of every round, and with
            ``.png`` instead a figure of the speedups.
        device: name for torch; CUDA if there is one and None is given.

    Returns:
        The rows of :func:`dynavit.evaluation.benchmark.benchmark_models`; with ``image_size`` and ``threads`` where
        these are given.

    Raises:
        InputError: an unknown name or impossible value, a teacher where nothing trains, or a file that cannot be
            written.
    """
    from dynavit.evaluation.benchmark import benchmark_models
    from dynavit.evaluation.methods import read_methods
    from dynavit.report.benchmark import plot_speedups
    from dynavit.runs.open import choose_device

    require_lists(keep_ratios=keep_ratios, dtypes=dtypes, methods=methods, rivals=rivals, modes=modes)
    require_lists(image_sizes=image_sizes, threads=threads)
    require_counts(image_sizes=image_sizes, threads=threads)
    if image_sizes and "img_size" in (model_kwargs or {}):
        raise InputError("img_size in model_kwargs (--model-kwargs): image_sizes (--image-sizes) are given; drop one.")
    _check_common(output, rounds, batch_sizes)
    compared = read_methods(methods) if methods else ()
    rows: list[Row] = []
    sizes: Sequence[int | None] = image_sizes or [None]
    counts: Sequence[int | None] = threads or [None]
    for size, count in product(sizes, counts):
        with _threads(count):
            measured = benchmark_models(
                backbone,
                keep_ratios,
                batch_sizes,
                dtypes,
                selector=selector,
                methods=compared,
                training=training,
                teacher=teacher,
                rivals=[str(rival) for rival in rivals],
                modes=modes,
                parts=parts,
                device=choose_device(device),
                rounds=rounds,
                model_kwargs={**(model_kwargs or {}), **({} if size is None else {"img_size": size})},
            )
        told = {"image_size": size, "threads": count}
        rows += [row | {name: value for name, value in told.items() if value is not None} for row in measured]
    _write_json(output, backbone, device, rows)
    if output is not None:
        plot_speedups(rows, Path(output).with_suffix(".png"))
    return rows


def benchmark_suite(
    suite: str | Path,
    output: str | Path = "benchmarks",
    *,
    minutes: float | None = None,
    device: str | None = None,
    log: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> list[Row]:
    """Run several benchmarks in the order in which a file has them, and write what they found after each.

    Args:
        suite: YAML file, a list of mappings: arguments of :func:`benchmark`.
        output: folder for ``DEVICE.json``, which holds machine, versions and every round, ``DEVICE.md``, tables, and
            ``DEVICE.png``.
        minutes: none is begun after so many; None: all are run.
        device: name for torch; CUDA if there is one and None is given.
        log: receives the table of each, and lines about what is left out.
        clock: returns seconds.

    Returns:
        The rows of all of them, each with its ``backbone``.

    Raises:
        InputError: a file that is no such list, or what :func:`benchmark` raises of one of them; what was measured
            before is written. What a device cannot do is noted, and the next one is begun.
    """
    import torch

    from dynavit.cost.machine import machine
    from dynavit.evaluation.benchmark_tables import format_models
    from dynavit.report.benchmark import plot_speedups
    from dynavit.report.figures import png
    from dynavit.runs.open import choose_device

    if minutes is not None and not minutes > 0:
        raise InputError(f"--minutes={minutes:g}: give a number above 0.")
    cases = _read_suite(Path(suite))
    require_folder(Path(output))
    place = choose_device(device)
    name = torch.cuda.get_device_name(place).replace(" ", "-") if place.type == "cuda" else place.type
    begun, rows, tables = clock(), list[Row](), list[str]()
    for number, case in enumerate(cases):
        late = minutes is not None and clock() - begun > 60 * minutes
        if late:
            tables.append(f"Left out, after {minutes:g} minutes: {len(cases) - number} of {len(cases)} benchmarks.")
        else:
            title = ", ".join(f"{key}={value}" for key, value in case.items())
            try:
                found = benchmark(**case, device=device)
            except RuntimeError as error:  # too little memory, or what cannot be compiled
                tables.append(f"## {title}\n\nNot measured: {str(error).splitlines()[0]}")
            else:
                rows += [{"backbone": case.get("backbone", BACKBONE)} | row for row in found]
                tables.append(f"## {title}\n\n```text\n{format_models(found)}\n```")
        log(f"{tables[-1]}\n")
        about = {"machine": machine(place), "suite": cases, "rows": rows}
        text = "\n\n".join([f"# {machine(place)}", *tables])
        files: dict[str, str | bytes] = {f"{name}.json": f"{json.dumps(about, indent=2)}\n", f"{name}.md": f"{text}\n"}
        if rows:
            files[f"{name}.png"] = png(partial(plot_speedups, rows))
        write_together(output, files)
        if late:
            break
    return rows


def benchmark_selectors(
    backbone: str = BACKBONE,
    batch_sizes: Sequence[int] = (256,),
    *,
    rounds: int = ROUNDS,
    model_kwargs: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    device: str | None = None,
) -> list[Row]:
    """Time every registered selector's forward and backward against those of one block of a backbone.

    Args:
        backbone: timm model name; the block is the one in the middle.
        batch_sizes, rounds, model_kwargs, output, device: as for :func:`benchmark`.

    Returns:
        The rows of :func:`dynavit.evaluation.benchmark.benchmark_selectors`.

    Raises:
        InputError: an unknown name or impossible value, or a file that cannot be written.
    """
    from dynavit.evaluation import benchmark
    from dynavit.runs.open import choose_device

    _check_common(output, rounds, batch_sizes)
    place = choose_device(device)
    rows = benchmark.benchmark_selectors(backbone, batch_sizes, device=place, rounds=rounds, model_kwargs=model_kwargs)
    _write_json(output, backbone, device, rows)
    return rows


def _read_suite(path: Path) -> list[dict[str, Any]]:
    """Return the cases of a suite.

    Raises:
        InputError: it does not exist, is no list of mappings, or names what is no argument of a benchmark.
    """
    import inspect

    import yaml

    try:
        cases = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}.") from None
    if not isinstance(cases, list) or not cases or not all(isinstance(case, dict) for case in cases):
        raise InputError(f"{path}: a suite is a list of mappings, arguments of a benchmark such as backbone: NAME.")
    known = set(inspect.signature(benchmark).parameters) - {"output", "device"}
    for case in cases:
        for key in case:
            if key not in known:
                raise InputError(f"{path}: {key}: choose from {', '.join(sorted(known))}.")
    return cases


def _check_common(output: str | Path | None, rounds: int, batch_sizes: Sequence[int]) -> None:
    """Refuse what neither benchmark can do."""
    require_lists(batch_sizes=batch_sizes)
    require_counts(rounds=rounds, batch_sizes=batch_sizes)
    if output is not None:
        require_suffix(Path(output), ".json")
        require_writable(Path(output))


def _write_json(output: str | Path | None, backbone: str, device: str | None, rows: Sequence[Row]) -> None:
    from dynavit.cost.machine import machine
    from dynavit.runs.open import choose_device

    if output is not None:
        measured = {"backbone": backbone, "machine": machine(choose_device(device)), "rows": rows}
        write_text(Path(output), json.dumps(measured, indent=2) + "\n")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads; None: as many as before."""
    import torch

    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
