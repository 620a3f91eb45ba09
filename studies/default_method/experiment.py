"""Which cells there are, and running those that are missing: one training a process, one thread each.

A cell is a candidate, or a smaller image, trained at one budget with one seed. Its answers on the images held out are
kept, so that every table is made from files.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from dynavit.cost.machine import machine
from dynavit.cost.macs import closed_form_macs
from dynavit.errors import InputError
from dynavit.evaluation.equal_macs import largest_keep_ratio, plain_dropping_macs
from dynavit.models import PrunedViT, prune
from studies.default_method.candidates import CANDIDATES
from studies.default_method.finetune import Recipe, Shrunk, answers, finetune, resized

DENSE = "dense"


@dataclass(frozen=True)
class Problem:
    """A dense model and images.

    Attributes:
        dense: prunes nowhere, in eval mode.
        pixels: ``(V, M, 3, S, S)`` uint8, views of the training images.
        labels: ``(M,)`` int64.
        seen: ``(E, 3, S, S)`` uint8, images to evaluate on.
        seen_labels: ``(E,)`` int64.
    """

    dense: PrunedViT
    pixels: Tensor
    labels: Tensor
    seen: Tensor
    seen_labels: Tensor

    def to(self, device: str) -> Problem:
        """Return it with the model and what it learns from on a device; the model is moved, not copied."""
        return replace(self, dense=self.dense.to(device), pixels=self.pixels.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, order=True)
class Cell:
    """One training.

    Attributes:
        name: of the candidate, or :data:`DENSE`.
        budget: keep ratio of plain dropping whose MACs it may cost; 1 for dense rows.
        size: pixels of the image; smaller than the problem's for a rival.
        seed: of everything drawn.
    """

    name: str
    budget: float
    size: int
    seed: int

    @property
    def file(self) -> str:
        """Name of the file of its answers."""
        words = "".join(letter if letter.isalnum() else "_" for letter in self.name)
        return f"{words}-{self.budget:g}-{self.size}-{self.seed}"


def run_cells(
    folder: Path,
    load: Callable[[], Problem],
    cells: Sequence[Cell],
    recipe: Recipe,
    evaluated: Sequence[float],
    workers: int,
    device: str = "cpu",
) -> None:
    """Run the cells that ``folder`` does not hold yet.

    Args:
        folder: gets ``rows.jsonl``, and answers.
        load: reads the problem, once in each process.
        cells: to run.
        recipe: the same for all.
        evaluated: budgets that each is evaluated at, beside its own.
        workers: processes.
        device: where all of them train.
    """
    done = {Cell(**row["cell"]) for row in read_rows(folder)}
    missing = [cell for cell in cells if cell not in done]
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_prepare, initargs=(load, device)) as pool:
        futures = [pool.submit(_run, folder, cell, recipe, evaluated) for cell in missing]
        for future in tqdm(as_completed(futures), total=len(futures), desc="trainings", disable=None):
            row = future.result()
            with (folder / "rows.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row["cell"], row["results"], flush=True)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return what was written so far."""
    path = folder / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


_problem: Problem


def _prepare(load: Callable[[], Problem], device: str) -> None:
    global _problem  # one a process, which reads it once
    torch.set_num_threads(1)  # sums in another order differ in their last bit, and training is chaotic
    _problem = load().to(device)


def _run(folder: Path, cell: Cell, recipe: Recipe, evaluated: Sequence[float]) -> dict[str, Any]:
    start = perf_counter()
    problem = _problem
    torch.manual_seed(cell.seed)
    model, loss = build(problem.dense, cell)
    runner: nn.Module = Shrunk(model) if cell.size < problem.pixels.shape[-1] else model
    recipe = replace(recipe, loss=replace(recipe.loss, **loss))
    finetune(model.train(), runner, problem.dense.backbone, problem.pixels, problem.labels, recipe, cell.seed)
    model.eval()
    results: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    budgets = sorted({cell.budget, *evaluated}, reverse=True) if model.stages else [1.0]
    for budget in budgets:
        if model.stages:
            try:
                ratio = largest_keep_ratio(model, plain_dropping_macs(problem.dense, budget))
            except InputError:
                continue
            model.set_keep_ratio(ratio)
        logits = answers(runner, problem.seen, recipe.bf16)
        loss_of = F.cross_entropy(logits, problem.seen_labels, reduction="none")
        hits = logits.argmax(dim=1) == problem.seen_labels
        results[f"{budget:g}"] = {
            "keep_ratio": model.keep_ratios[0] if model.stages else 1.0,
            "gmacs": closed_form_macs(model) / 1e9,
            "top1": 100 * hits.double().mean().item(),
            "cross_entropy": loss_of.mean().item(),
        }
        kept[f"hits-{budget:g}"], kept[f"loss-{budget:g}"] = hits.numpy(), loss_of.half().numpy()
    np.savez_compressed(folder / "answers" / f"{cell.file}.npz", **kept)
    device = machine(problem.pixels.device)
    return {"cell": asdict(cell), "results": results, "seconds": round(perf_counter() - start), "machine": device}


def build(dense: PrunedViT, cell: Cell) -> tuple[PrunedViT, dict[str, Any]]:
    """Return what a cell trains, at its budget, and the settings of the loss that are its own."""
    if cell.name == DENSE:
        return resized(dense, cell.size), {}
    candidate = next(one for one in CANDIDATES if one.name == cell.name)
    model = prune(deepcopy(dense.backbone), stages=candidate.stages(dense.adapter.depth), **candidate.options)
    for name, value in candidate.attributes.items():
        setattr(model, name, value)
    model.set_keep_ratio(next(_within(model, dense, cell.budget)))
    return model, candidate.loss


def _within(model: PrunedViT, dense: PrunedViT, budget: float) -> Iterator[float]:
    """Yield the largest keep ratio within a budget, or within the lowest above it that the method can meet."""
    for percent in range(round(100 * budget), 101):
        with suppress(InputError):
            yield largest_keep_ratio(model, plain_dropping_macs(dense, percent / 100))
