"""Runs many small trainings, one a process and one thread each, so that results do not depend on how many."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from tqdm import tqdm

from dynavit.errors import InputError, did_you_mean

_MIN_STEPS = 10
_R = TypeVar("_R")


def run_all(
    train: Callable[[str, int], _R], names: Sequence[str], seeds: Sequence[int], workers: int | None
) -> dict[str, list[_R]]:
    """Train every variant with every seed.

    Args:
        train: called with name and seed; a function of a module, so that processes can find it.
        names: variants.
        seeds: of data, weights and noise.
        workers: processes; None starts one a CPU core. 1 starts none.

    Returns:
        For each variant its results in the order of the seeds.
    """
    jobs = [(name, seed) for name in names for seed in seeds]
    workers = min(workers or _cores(), len(jobs))
    done: dict[tuple[str, int], _R] = {}
    with tqdm(total=len(jobs), unit="run", disable=None) as bar:
        if workers == 1:
            for name, seed in jobs:
                bar.set_description(name)
                done[name, seed] = _single_threaded(train, name, seed)
                bar.update()
        else:
            # forked processes would inherit torch's thread pool in an unusable state
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                futures = {pool.submit(_single_threaded, train, name, seed): (name, seed) for name, seed in jobs}
                for future in as_completed(futures):
                    done[futures[future]] = future.result()
                    bar.set_description(futures[future][0])
                    bar.update()
    return {name: [done[name, seed] for seed in seeds] for name in names}


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that a command line names.

    Raises:
        InputError: something that is no whole number.
    """
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds {text}: whole numbers with commas between them, such as 0,1,2.") from None


def check(names: Sequence[str] | None, known: Sequence[str], seeds: Sequence[int], steps: int) -> list[str]:
    """Return the variants to run, in their usual order; all of them if ``names`` is None.

    Raises:
        InputError: an unknown variant; no seed, one twice, or one below 0; too few steps.
    """
    for name in names or ():
        if name not in known:
            raise InputError(f"unknown variant {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds {list(seeds)}: give one or more different whole numbers from 0 on, such as 0,1,2.")
    if steps < _MIN_STEPS:
        raise InputError(f"steps {steps}: a run has {_MIN_STEPS} steps or more.")
    return [name for name in known if names is None or name in names]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Return the norm of the gradients, summed in fp64: fp32 squares of 1e20 are infinite."""
    squares = [parameter.grad.double().square().sum() for parameter in parameters if parameter.grad is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _single_threaded(train: Callable[[str, int], _R], name: str, seed: int) -> _R:
    with _one_thread(), torch.random.fork_rng(devices=[]):
        return train(name, seed)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in another order differ in their last bit, and these trainings are chaotic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
