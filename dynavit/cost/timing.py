"""Comparing the speed of several things on a machine that is not quiet."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch

from dynavit.errors import InputError


def measure(
    variants: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    min_seconds: float = 0.2,
    synchronize: Callable[[], object] | None = None,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time several variants so that they can be compared.

    Other work on the machine slows everything down for seconds at a time. So all variants run in one
    process, and each round times every one of them once, in a new random order: what disturbs a round
    disturbs all, and :func:`median_ratio` compares within rounds. Before the first round each variant
    is called untimed until it is warm (and compiled, and its caches filled), and the number of calls
    that fill ``min_seconds`` is settled; it then stays the same in every round.

    Set the number of threads, ``torch.inference_mode`` and autocast in the caller or the variants.

    Args:
        variants: what to time, by name; each is called without arguments.
        rounds: how often each variant is timed.
        min_seconds: least duration of one timing, which repeats the call as often as that takes.
        synchronize: waits for work that the device still does, before the clock is read; CUDA's own
            if None, once CUDA is in use.
        seed: of the order of variants.
        clock: returns seconds.

    Returns:
        Seconds per call of each variant, one number a round.

    Raises:
        InputError: nothing to time, or fewer than one round.
    """
    if not variants or rounds < 1:
        raise InputError(f"measure: {len(variants)} variants, rounds={rounds}: at least one of each.")
    wait = synchronize or _synchronize_cuda

    def timed(name: str, calls: int) -> float:
        function = variants[name]
        wait()
        start = clock()
        for _ in range(calls):
            function()
        wait()
        return clock() - start

    calls = dict.fromkeys(variants, 1)
    for name, function in variants.items():
        function()
        while timed(name, calls[name]) < min_seconds:
            calls[name] *= 2

    order = list(variants)
    shuffle = random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            seconds[name].append(timed(name, calls[name]) / calls[name])
    return seconds


def median_ratio(base: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Return how many times faster ``other`` is than ``base``: median, least and largest over rounds.

    Args:
        base: seconds per call, one number a round, from :func:`measure`.
        other: likewise, of the same rounds.

    Raises:
        InputError: different or no rounds.

    Example:
        >>> median_ratio(base=[2.0, 3.0, 2.0], other=[1.0, 1.0, 1.0])
        (2.0, 2.0, 3.0)
    """
    if len(base) != len(other) or not base:
        raise InputError(f"median_ratio compares round by round, but got {len(base)} and {len(other)} rounds.")
    ratios = [one / two for one, two in zip(base, other, strict=True)]
    return median(ratios), min(ratios), max(ratios)


def median_interval(base: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Return the median ratio as :func:`median_ratio` does, and a 95 % confidence interval of it.

    The interval is between two order statistics, by the binomial distribution of how many rounds lie below the true
    median: it assumes nothing of how times are distributed. With fewer than 6 rounds there is none at this level, and
    the least and the largest ratio stand in.

    Example:
        >>> median_interval(base=[9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], other=[1.0] * 7)
        (4.0, 1.0, 9.0)
    """
    middle, _, _ = median_ratio(base, other)
    ratios, below, outside = sorted(one / two for one, two in zip(base, other, strict=True)), 0.0, 0
    for rank in range(len(ratios) // 2):
        below += math.comb(len(ratios), rank) / 2 ** len(ratios)
        if below > 0.025:
            break
        outside = rank
    return middle, ratios[outside], ratios[-1 - outside]


def _synchronize_cuda() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
