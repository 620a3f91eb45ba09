"""What pruning saves on this machine, and what selectors cost: random weights, random images, no data.

Everything that is compared is timed interleaved, and ratios are medians of ratios within a round
(:func:`dynavit.cost.measure`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dynavit.cost.images import random_images
from dynavit.cost.macs import checked_size, closed_form_macs, tokens_per_stage
from dynavit.cost.memory import StepMemory, peak_memory, step_memory
from dynavit.cost.oracle import oracle
from dynavit.cost.timing import measure, median_interval, median_ratio
from dynavit.errors import InputError
from dynavit.evaluation.methods import Method
from dynavit.evaluation.rivals import AUTO, all_smaller_images, nearest, untrained_rivals
from dynavit.evaluation.stage_split import PARTS, split, stage_calls
from dynavit.evaluation.training_steps import WITH_TEACHER, training_steps
from dynavit.evaluation.variants import Variant
from dynavit.functional import num_keep
from dynavit.models import PrunedViT, create_model, prune
from dynavit.models.guides import check_unguided
from dynavit.selectors import Selector, create_selector, list_selectors
from dynavit.tables import Row

Calls = dict[str, Callable[[], object]]
"""What is timed, by name."""

_MODES = {"eager": None, "compile": "default", "graphs": "reduce-overhead"}  # of torch.compile
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_RUNS = ("inference", "training, mask", "training, gather")
_SELECTOR_KEEPS = 0.7


def benchmark_models(
    backbone: str,
    keep_ratios: Sequence[float] = (0.7,),
    batch_sizes: Sequence[int] = (1, 8, 32),
    dtypes: Sequence[str] = ("float32",),
    *,
    selector: str | None = None,
    methods: Sequence[Method] = (),
    training: bool = False,
    teacher: bool = False,
    rivals: Sequence[str] = (),
    modes: Sequence[str] = ("eager",),
    parts: bool = False,
    device: torch.device | str = "cpu",
    rounds: int = 7,
    model_kwargs: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Time pruned models against the dense timm model, against the oracle, and against what one would do instead.

    The oracle is what pruning could save at best: the same blocks on a sequence that is cut to the same
    lengths before each stage's block, without scoring or gathering. Inference has weights and images in the given
    precision; a training step is a forward and a backward (see
    :func:`~dynavit.evaluation.training_steps.training_steps`), under autocast where the precision is not float32, whose
    memory is measured after all times.

    Args:
        backbone: timm model name.
        keep_ratios: r keeps r, r^2, r^3 ... over the default stages; of a method, by its own rule.
        batch_sizes: images in a batch.
        dtypes: of "float32", "bfloat16" and "float16".
        selector: a registered name, with the scorer and the reducer that suit it; None: the default method.
        methods: published ones, in place of that.
        training: time training steps instead, in mask and, where the selector allows it, gather execution.
        teacher: time these a second time with distillation from a dense teacher, which the dense model and the oracle
            they are compared with then have, too.
        rivals: heights in pixels, at which the dense model is timed on smaller images, ``"auto"`` for those nearest
            in time to each pruned model, and names of other timm models.
        modes: ways to run in inference: "eager"; "compile", by torch.compile; and "graphs", compiled with CUDA graphs.
        parts: in eager inference also time what stages are made of.
        device: where to run.
        rounds: how often each is timed.
        model_kwargs: further arguments of ``timm.create_model``.

    Returns:
        One row for each precision, batch size, mode, method, ratio and way to run: ``ms`` an image of the dense model,
        the pruned one and the oracle, each in that mode; ``seconds``, what these are the medians of, a batch in each
        round; ``speedup`` over dense and ``oracle_speedup``, each as [median, least, largest] over rounds, and in
        other modes than eager ``over_eager``, likewise over the dense model in eager mode; ``share``, the oracle's time
        over the pruned model's, as [median, low, high] of a 95 % interval; ``macs_ratio``; and on CUDA, but not with
        graphs, ``peak_bytes`` of each, what a call allocates at most. In eager inference, unless methods are given,
        ``stages``: by block number, how many times faster the model is with that stage; with ``parts`` also these, in
        milliseconds an image (see :func:`~dynavit.evaluation.stage_split.split`). In training ``teacher``, whether
        there was one, and of a step of the three ``saved_bytes`` (see
        :class:`~dynavit.cost.memory.StepMemory`). Rows of rivals have no ``keep_ratio``, oracle or stages.

    Raises:
        InputError: an unknown name, an impossible value, a method that needs images, a teacher where nothing trains,
            rivals, modes or parts where something does, or graphs without CUDA.
    """
    if unknown := [mode for mode in modes if mode not in _MODES]:
        raise InputError(f"mode {unknown[0]}: choose from {', '.join(_MODES)}.")
    if "graphs" in modes and torch.device(device).type != "cuda":
        raise InputError(f"mode graphs: these are CUDA graphs, and the device is {device}: choose eager or compile.")
    if training and (parts or list(modes) != ["eager"]):
        raise InputError("modes (--modes) and parts (--parts) are of inference: leave them out of training=True.")
    unknown = [name for name in dtypes if name not in _DTYPES]
    if unknown:
        raise InputError(f"dtype {unknown[0]}: choose from {', '.join(_DTYPES)}.")
    if calibrated := [one.name for one in methods if one.adaptive]:
        raise InputError(
            f"{calibrated[0]} keeps tokens by thresholds, which are set on images; there are none here. Compare it "
            f"with `dynavit methods`, or leave it out."
        )
    if teacher and not training:
        raise InputError(
            "teacher=True (--teacher): training steps alone have one; time these, with training=True (--training)."
        )
    if rivals and training:
        raise InputError("rivals (--rivals): they are timed in inference alone; leave them out of training=True.")
    dense = create_model(backbone, stages=(), **(model_kwargs or {})).to(device).eval()
    others = untrained_rivals(dense, [name for name in rivals if name != AUTO])
    ladder = all_smaller_images(dense, {"image_size": checked_size(dense, None)}) if AUTO in rivals else []
    ladder = [rival for rival in ladder if str(rival.about["image_size"][0]) not in rivals]
    named = [(one.name, {**one.parts, "stages": one.stages_in(dense.adapter.depth)}) for one in methods]
    named = named or [("default" if selector is None else selector, {"selector": selector})]
    cases = [(name, parts, ratio) for name, parts in named for ratio in keep_ratios]
    models = [prune(dense.backbone, keep_ratio=ratio, **parts) for _, parts, ratio in cases]
    for model in models:
        check_unguided(model)
    taught = deepcopy(dense.backbone).eval().requires_grad_(False) if teacher else None
    rows: list[Row] = []
    runs = list(product(dtypes, batch_sizes, modes))
    for name, batch_size, mode in tqdm(runs, desc="timing", leave=False, disable=None):
        images = random_images(dense, batch_size)
        with torch.inference_mode(not training):
            dtype = _DTYPES[name]
            if training:
                calls = training_steps(dense, models, images, dtype)
                calls |= training_steps(dense, models, images, dtype, taught) if taught is not None else {}
            else:
                calls = _inference(dense, models, images, dtype, mode)
                if mode == "eager":
                    calls |= {} if methods else _without_each_stage(models, selector, images.to(dtype))
                    calls |= _parts(models, images.to(dtype)) if parts else {}
                calls |= _rivals([*ladder, *others], batch_size, dtype, mode)
            # all that is compiled shares PrunedViT.forward, and counts as its recompilations
            with torch._dynamo.config.patch(recompile_limit=len(calls) + 8):
                seconds = measure(calls, rounds=rounds)
                peaks = {} if training or mode == "graphs" else _peaks(calls, dense)  # graphs own their memory
            memory = {call: step_memory(step, [dense, *models]) for call, step in calls.items()} if training else {}
        for number, ending, run in product(range(len(models)), ("", WITH_TEACHER), _RUNS):
            compared = {
                "dense": f"dense{ending}",
                "pruned": f"{run} {number}{ending}",
                "oracle": f"oracle {number}{ending}",
            }
            if compared["pruned"] not in seconds:
                continue
            method, _, ratio = cases[number]
            row: Row = {"method": method, "dtype": name, "batch_size": batch_size, "keep_ratio": ratio, "run": run}
            row["mode"] = mode
            row["tokens"] = tokens_per_stage(models[number])
            row["macs_ratio"] = closed_form_macs(dense) / closed_form_macs(models[number])
            row |= _speed(compared, seconds, batch_size)
            if training:
                row |= {"teacher": bool(ending)} | _memory({what: memory[call] for what, call in compared.items()})
            else:
                row |= {"peak_bytes": {what: peaks[call] for what, call in compared.items()}} if peaks else {}
                if mode == "eager":
                    row["stages"] = _stage_gains(models[number], number, seconds)
                    row |= _split(number, seconds, batch_size) if parts else {}
            rows.append(row)
        for rival in [*_nearest(ladder, seconds), *others]:
            compared = {"dense": "dense", "pruned": str(rival.about["rival"])}
            row = {"method": compared["pruned"], "dtype": name, "batch_size": batch_size, "run": "inference"}
            row |= {"mode": mode, "tokens": [], "macs_ratio": closed_form_macs(dense) / rival.macs}
            rows.append(row | _speed(compared, seconds, batch_size))
    return rows


def _inference(dense: PrunedViT, models: Sequence[PrunedViT], images: Tensor, dtype: torch.dtype, mode: str) -> Calls:
    images = images.to(dtype)
    alone = dense.to(dtype).eval().backbone
    calls: Calls = {"dense": partial(_in_mode(alone, mode), images)}
    if mode != "eager":
        torch.compiler.reset()
        calls["eager"] = partial(alone, images)
    for number, model in enumerate(models):
        calls[f"inference {number}"] = partial(_in_mode(model.to(dtype).eval(), mode), images)
        calls[f"oracle {number}"] = partial(_in_mode(partial(oracle, model), mode), images)
    return calls


def _in_mode(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    # a whole graph or an error: else what is too much to compile would be timed in eager mode
    return function if mode == "eager" else torch.compile(function, mode=_MODES[mode], fullgraph=True)


def _rivals(rivals: Sequence[Variant], batch_size: int, dtype: torch.dtype, mode: str) -> Calls:
    calls: Calls = {}
    for rival in rivals:
        model = rival.model.to(dtype)
        images = random_images(model, batch_size, rival.image_size)
        calls[rival.about["rival"]] = partial(_in_mode(model, mode), images)
    return calls


def _parts(models: Sequence[PrunedViT], images: Tensor) -> Calls:
    return {
        f"{part} {stage} of {number}": call
        for number, model in enumerate(models)
        for (part, stage), call in stage_calls(model, images).items()
    }


def _split(number: int, seconds: Mapping[str, list[float]], batch_size: int) -> Row:
    times = {
        part: [
            timed for call, timed in seconds.items() if call.startswith(f"{part} ") and call.endswith(f" of {number}")
        ]
        for part in PARTS
    }
    return {"parts": split(times, seconds[f"inference {number}"], batch_size)}


def _peaks(calls: Calls, dense: PrunedViT) -> dict[str, int]:
    peaks = {name: peak_memory(call, list(dense.parameters())) for name, call in calls.items()}
    return {name: peak for name, peak in peaks.items() if peak is not None}


def _without_each_stage(models: Sequence[PrunedViT], selector: str | None, images: Tensor) -> Calls:
    calls: Calls = {}
    for number, model in enumerate(models):
        for stage in _pruning_stages(model):
            fewer = prune(
                model.backbone,
                stages=_without(model.stages, stage),
                keep_ratios=_without(model.keep_ratios, stage),
                selector=selector,
            )
            calls[f"without {stage} {number}"] = partial(fewer.to(images).eval(), images)
    return calls


def _speed(compared: Mapping[str, str], seconds: Mapping[str, list[float]], batch_size: int) -> Row:
    times = {what: seconds[call] for what, call in compared.items()}
    row = {
        "ms": {what: 1e3 * median(per_call) / batch_size for what, per_call in times.items()},
        "seconds": times,
        "speedup": median_ratio(times["dense"], times["pruned"]),
    }
    if "eager" in seconds:
        row["over_eager"] = median_ratio(seconds["eager"], times["pruned"])
    if "oracle" in times:
        row["oracle_speedup"] = median_ratio(times["dense"], times["oracle"])
        row["share"] = median_interval(base=times["oracle"], other=times["pruned"])
    return row


def _nearest(rivals: Sequence[Variant], seconds: Mapping[str, list[float]]) -> list[Variant]:
    """Return of smaller images those nearest in time to a pruned model."""
    pruned = [median(times) for call, times in seconds.items() if call.startswith("inference ")]
    places = nearest(pruned, [median(seconds[rival.about["rival"]]) for rival in rivals]) if rivals else []
    return [rivals[place] for place in places]


def _memory(memory: Mapping[str, StepMemory]) -> Row:
    row: Row = {"saved_bytes": {what: step.saved for what, step in memory.items()}}
    peaks = {what: step.peak for what, step in memory.items() if step.peak is not None}
    return row | ({"peak_bytes": peaks} if peaks else {})


def _stage_gains(model: PrunedViT, number: int, seconds: Mapping[str, list[float]]) -> dict[int, Any]:
    """Return by block how many times faster the model is with its stage, where that was timed."""
    return {
        model.stages[stage]: median_ratio(base=seconds[name], other=seconds[f"inference {number}"])
        for stage in _pruning_stages(model)
        if (name := f"without {stage} {number}") in seconds
    }


def _pruning_stages(model: PrunedViT) -> list[int]:
    return [stage for stage, ratio in enumerate(model.keep_ratios) if ratio < 1]


def _without(values: Sequence[Any], place: int) -> list[Any]:
    return [value for number, value in enumerate(values) if number != place]


def benchmark_selectors(
    backbone: str,
    batch_sizes: Sequence[int] = (256,),
    *,
    device: torch.device | str = "cpu",
    rounds: int = 7,
    model_kwargs: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Time every registered selector's forward and backward against those of one block of the backbone.

    All with their default options, in training mode and float32, keeping 0.7 of the tokens. Those that
    read no scores (random, fixed) are left out.

    Args:
        backbone: timm model name; the block is the one in the middle.
        batch_sizes, device, rounds, model_kwargs: as for :func:`benchmark_models`.

    Returns:
        One row for each batch size and selector: ``ms`` a batch of the selector and of the block, and
        ``percent`` of the block's time as [median, least, largest] over rounds.
    """
    model = create_model(backbone, stages=(), **(model_kwargs or {})).to(device).train()
    selectors = {name: create_selector(name).train() for name in list_selectors()}
    rows: list[Row] = []
    for batch_size in tqdm(batch_sizes, desc="timing", leave=False, disable=None):
        images = random_images(model, batch_size)
        with torch.no_grad():
            x, context = model.adapter.embed(images)
        calls: Calls = {"block": partial(_block_step, model, x.requires_grad_(), context, torch.randn_like(x))}
        logits = torch.randn(batch_size, x.shape[1] - model.num_prefix_tokens, device=device, requires_grad=True)
        for name, selector in selectors.items():
            if selector.needs_scores:
                calls[name] = partial(_selector_step, selector, logits, torch.randn_like(logits))
        seconds = measure(calls, rounds=rounds)
        block = seconds.pop("block")
        for name, times in seconds.items():
            rows.append(
                {
                    "selector": name,
                    "batch_size": batch_size,
                    "tokens": logits.shape[1],
                    "ms": {"selector": 1e3 * median(times), "block": 1e3 * median(block)},
                    "percent": [100 * ratio for ratio in median_ratio(base=times, other=block)],
                }
            )
    return rows


def _block_step(model: PrunedViT, x: Tensor, context: Any, gradient: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    x.grad = None
    model.adapter.block(model.adapter.depth // 2, x, context, None).backward(gradient)


def _selector_step(selector: Selector, logits: Tensor, gradient: Tensor) -> None:
    """Select, and take the gradient of all that training may learn from."""
    logits.grad = None
    alive = torch.ones_like(logits, dtype=torch.bool)
    selection = selector(logits, alive, num_keep(logits.shape[1], _SELECTOR_KEEPS))
    learned = {"mask": selection.mask, "log_prob": selection.log_prob}
    if not selector.fixed_k:
        learned["probs"] = selection.probs
    outputs = [output for output in learned.values() if output is not None and output.requires_grad]
    torch.autograd.backward(outputs, [gradient[:, 0] if output.ndim == 1 else gradient for output in outputs])
