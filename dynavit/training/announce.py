"""What a training says before it starts, and what it warns of."""

from __future__ import annotations

import warnings
from pathlib import Path

from accelerate import Accelerator

from dynavit.config import Config
from dynavit.models import PrunedViT, Trace
from dynavit.models.execution import gathers_in_training, learns_by_mask
from dynavit.selectors.registry import selector_config
from dynavit.training.setup import Setup


def announce(config: Config, setup: Setup, accelerator: Accelerator, state: Path | None, step: int) -> None:
    """Print model, data and plan; ``state`` is what the run resumes from."""
    log = accelerator.print
    model: PrunedViT = accelerator.unwrap_model(setup.model)
    keep_counts = setup.schedules.keep_counts
    counts = " -> ".join(str(count) for count in keep_counts(keep_counts.warmup_steps))
    pruning = f"{counts} {model.placement} blocks {list(model.stages)}; {_choice(model)}" if counts else "no pruning"
    log(
        f"{model.architecture}: {keep_counts.num_patches} patches, {pruning}; {len(setup.classes)} {setup.task.classes}"
    )
    summary = getattr(setup.data, "summary", None)
    if summary is not None:
        log(summary())
    wanted, size = config.data.batch_size, setup.batches.batch_size
    if size < wanted:
        log(
            f"data.batch_size={wanted} is lowered to {size}: the most that {len(setup.data.train):,} images of "
            f"{len(setup.classes):,} {setup.task.classes} give {accelerator.num_processes} process(es) for a step of "
            f"{config.train.accumulation_steps} batch(es)."
        )
    log(
        f"{config.train.epochs} epochs of {setup.batches.length} batches x {size} images x "
        f"{accelerator.num_processes} process(es) on {accelerator.device}; writing {config.run_dir}"
    )
    if model.scorers:
        log(_execution(model))
    if model.stages and config.loss.keep_ratio_weight and (not model.scorers or model.selector.fixed_k):
        log("The number of tokens is fixed: the keep-ratio loss would have nothing to do and is left out.")
    if setup.objective.reward is not None:
        log(
            f"The selector learns from a reward: {config.loss.reward}, compared over {setup.objective.samples} "
            f"selections of every image, so a step costs as many forwards."
        )
    if config.train.compile:
        log("The model is compiled (train.compile): until the first steps are done nothing is said for minutes.")
    if state is not None:
        log(f"Resuming from {state} at step {step} of {setup.schedules.total_steps}.")


def _execution(model: PrunedViT) -> str:
    """Say what training does with dropped tokens."""
    if not gathers_in_training(model):
        return "Training hides the dropped tokens (model.execution=mask)."
    if not learns_by_mask(model):
        return "Training removes the dropped tokens (model.execution=gather)."
    return (
        f"Training removes the dropped tokens (model.execution=gather), all but model.probes={model.probes} that each "
        f"image and stage hides to learn from."
    )


def _choice(model: PrunedViT) -> str:
    """Name what chooses tokens, and what becomes of the others."""
    if not model.scorers:
        return f"reducer {model.reducer.name}"
    selector = selector_config(model.selector)["name"]
    scorer = f"scorer {model.scorers[0].name}, " if model.selector.needs_scores else ""
    return f"{scorer}selector {selector}, reducer {model.reducer.name}"


def warn_of_normalised_logits(trace: Trace) -> None:
    """Warn where gates were fed log-probabilities over the tokens instead of raw logits.

    Then ``sum(exp(logit)) = 1`` in every image, so gates keep less than one token on average and none at
    all in more than a third of the images: it looks like an unstable selector.
    """
    if not trace.choices:
        return
    probs = trace.choices[0].probs.detach()
    odds = (probs / (1 - probs).clamp(min=1e-12)).sum(dim=1)
    if bool(((odds - 1).abs() < 1e-3).all()):
        warnings.warn(
            "the scores of the first stage are log-probabilities over the tokens (their exponentials sum to 1), so "
            "independent gates keep less than one token of each image: give selectors raw logits, without softmax.",
            stacklevel=2,
        )
