"""The timing protocol, on a clock that only the variants move."""

from collections.abc import Callable

import numpy as np
import pytest

from dynavit import InputError
from dynavit.cost import measure, median_ratio
from dynavit.cost.timing import median_interval


class Machine:
    """A clock in seconds, and work that takes a known time on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pending = 0.0
        self.done: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: float, first: float = 0.0) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds if name in self.done else seconds + first
            self.done.append(name)

        return run

    def launch(self, seconds: float) -> None:
        """Return at once and leave the work to be waited for."""
        self.pending += seconds

    def wait(self) -> None:
        self.now += self.pending
        self.pending = 0.0


def test_seconds_per_call_and_ratio() -> None:
    machine = Machine()
    variants = {"slow": machine.work("slow", 0.25), "fast": machine.work("fast", 0.025)}
    seconds = measure(variants, rounds=5, min_seconds=0.2, clock=machine.clock)
    assert list(seconds) == ["slow", "fast"]
    assert seconds["slow"] == pytest.approx([0.25] * 5)
    assert seconds["fast"] == pytest.approx([0.025] * 5)
    assert median_ratio(base=seconds["slow"], other=seconds["fast"]) == pytest.approx((10, 10, 10))


def test_warm_up_is_not_timed() -> None:
    machine = Machine()
    seconds = measure({"a": machine.work("a", 1.0, first=100.0)}, rounds=3, clock=machine.clock)
    assert seconds["a"] == pytest.approx([1.0] * 3)


def test_short_calls_are_repeated_until_they_can_be_timed() -> None:
    machine = Machine()
    spans: list[int] = []

    def clock() -> float:
        spans.append(len(machine.done))
        return machine.now

    measure({"a": machine.work("a", 2.0**-7, first=100.0)}, rounds=2, min_seconds=0.25, clock=clock)
    calls = [stop - start for start, stop in zip(spans[::2], spans[1::2], strict=True)]
    assert calls[-2:] == [32, 32]  # 32 / 128 s


def test_each_round_times_every_variant_once_in_a_new_order() -> None:
    machine = Machine()
    names = list("abcd")
    variants = {name: machine.work(name, 1.0) for name in names}
    measure(variants, rounds=20, min_seconds=1.0, clock=machine.clock, seed=3)
    timed = machine.done[-20 * 4 :]
    rounds = [tuple(timed[start : start + 4]) for start in range(0, 80, 4)]
    assert all(sorted(one) == names for one in rounds)
    assert len(set(rounds)) > 5
    assert {one[0] for one in rounds} == set(names)

    again, other = Machine(), Machine()
    measure({n: again.work(n, 1.0) for n in names}, rounds=20, min_seconds=1.0, clock=again.clock, seed=3)
    measure({n: other.work(n, 1.0) for n in names}, rounds=20, min_seconds=1.0, clock=other.clock, seed=4)
    assert again.done == machine.done != other.done


def test_a_disturbance_that_lasts_a_round_does_not_touch_the_ratio() -> None:
    machine = Machine()
    slow_round = iter([1.0] * 4 + [1.0] * 4 + [5.0, 5.0] + [1.0] * 2)  # warm-up, two rounds, slow, quiet
    factor: list[float] = []

    def work(seconds: float) -> Callable[[], None]:
        def run() -> None:
            factor.append(next(slow_round))
            machine.now += seconds * factor[-1]

        return run

    seconds = measure({"a": work(2.0), "b": work(1.0)}, rounds=4, min_seconds=0.5, clock=machine.clock)
    assert max(seconds["a"]) == 10.0
    assert median_ratio(seconds["a"], seconds["b"]) == (2.0, 2.0, 2.0)


def test_work_on_the_device_is_waited_for() -> None:
    machine = Machine()
    variants = {"a": lambda: machine.launch(0.5), "b": lambda: machine.launch(2.0)}
    seconds = measure(variants, rounds=3, min_seconds=0.4, synchronize=machine.wait, clock=machine.clock)
    assert seconds == {"a": [0.5] * 3, "b": [2.0] * 3}

    launched = []
    variants = {"a": lambda: (launched.append("a"), machine.launch(0.5))}
    measure(variants, rounds=1, min_seconds=0.75, synchronize=machine.wait, clock=machine.clock)
    assert len(launched) == 1 + 1 + 2 + 2  # the first call was over before the second was timed


def test_ratio_is_taken_within_rounds() -> None:
    assert median_ratio([1.0, 10.0, 4.0], [1.0, 2.0, 2.0]) == (2.0, 1.0, 5.0)


@pytest.mark.parametrize(("base", "other"), [([1.0], [1.0, 2.0]), ([], [])])
def test_ratio_of_different_rounds_is_refused(base: list[float], other: list[float]) -> None:
    with pytest.raises(InputError, match="round by round"):
        median_ratio(base, other)


@pytest.mark.parametrize(("variants", "rounds"), [({}, 3), ({"a": list}, 0)])
def test_nothing_to_time_is_refused(variants: dict[str, Callable[[], object]], rounds: int) -> None:
    with pytest.raises(InputError, match="at least one"):
        measure(variants, rounds=rounds)


def test_the_interval_of_a_median_covers_it() -> None:
    """Of 400 samples of a skewed distribution about 95 % have the true median inside."""
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        times = random.lognormal(size=31)
        middle, low, high = median_interval(times.tolist(), [1.0] * 31)
        assert low <= middle <= high
        inside += low <= 1 <= high
    assert 0.93 <= inside / 400 <= 0.99
    assert median_interval([1.0, 2.0, 3.0], [1.0] * 3) == (2.0, 1.0, 3.0)  # too few for any interval
