"""The guard stops what is beyond repair, and nothing else."""

import json
import math
from pathlib import Path

import pytest

from dynavit.training.monitor import Diverged, DivergenceGuard, MetricsFile

FINE = {"backbone": 1.0, "fast": 0.1}


def feed(guard: DivergenceGuard, losses: list[float], gradients: dict[str, float] = FINE) -> None:
    for loss in losses:
        guard.check(loss, gradients, lr=1e-3)


def test_noisy_but_healthy_runs_go_on() -> None:
    guard = DivergenceGuard(math.log(10))
    feed(guard, [2.3 * 0.99**step * (1.5 if step % 7 == 0 else 1) for step in range(300)])
    # a fine-tune that starts very low may rise far above its start, as long as it stays below guessing
    feed(DivergenceGuard(math.log(10)), [0.01] * 30 + [1.0] * 100)


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_what_was_never_sound_is_not_blamed_on_the_learning_rate(loss: float, gradient: float) -> None:
    gradients = {"backbone": gradient, "fast": 1.0}
    with pytest.raises(Diverged, match=r"the learning rate is not the cause.*data.mean"):
        feed(DivergenceGuard(1.0), [loss] * 3, gradients)
    with pytest.raises(Diverged, match=r"lower optimizer.lr"):
        feed(DivergenceGuard(1.0), [1.0] * 3 + [math.nan])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_at_once(loss: float) -> None:
    with pytest.raises(Diverged, match="learning rate"):
        feed(DivergenceGuard(1.0), [1.0, loss])


def test_a_loss_far_above_guessing_stops() -> None:
    guard = DivergenceGuard(math.log(10))
    feed(guard, [2.3] * 30)
    with pytest.raises(Diverged, match=r"rose from 2.3 to"):
        feed(guard, [28.0] * 30)


def test_fp16_may_overflow_now_and_then_but_not_forever() -> None:
    infinite = {"backbone": math.inf, "fast": 1.0}
    with pytest.raises(Diverged, match="3 times in a row"):
        feed(DivergenceGuard(1.0), [1.0] * 3, infinite)
    half = DivergenceGuard(1.0, half_precision=True)
    for _ in range(10):
        feed(half, [1.0] * 20, infinite)
        feed(half, [1.0])
    with pytest.raises(Diverged, match="bf16"):
        feed(half, [1.0] * 50, infinite)


def test_huge_gradients_are_blamed_on_the_mask() -> None:
    with pytest.raises(Diverged, match=r"1e10"):
        feed(DivergenceGuard(1.0), [1.0], {"backbone": 5.6e9, "fast": 1.0})


def test_a_restored_guard_judges_alike() -> None:
    one, two = DivergenceGuard(1.0), DivergenceGuard(1.0)
    feed(one, [1.0] * 25)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for guard in (one, two):
        with pytest.raises(Diverged) as caught:
            feed(guard, [9.0] * 50)
        assert guard.steps == one.steps, caught


def test_metrics_are_cut_back_and_broken_lines_dropped(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.cut_back(3)
    for step in (1, 2, 3, 4):
        metrics.append({"step": step})
    with metrics.path.open("a") as file:
        file.write('{"step": 5, "los')  # killed while writing
    assert [row["step"] for row in metrics.rows()] == [1, 2, 3, 4]
    metrics.cut_back(2)
    metrics.append({"step": 3, "again": True})
    assert metrics.rows() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
