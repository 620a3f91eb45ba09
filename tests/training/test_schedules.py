"""What moves with the optimiser steps, and nothing else that moves it (T14)."""

from collections.abc import Callable

import pytest
import torch

from dynavit.config import Config
from dynavit.training.schedules import KeepCounts, LearningRate, anneal
from dynavit.training.trainer import Trainer


@pytest.mark.parametrize("kind", ["exponential", "cosine", "linear"])
def test_annealing_goes_from_start_to_end_and_stays_there(kind: str) -> None:
    values = [anneal(kind, 2.0, 0.5, step / 10) for step in range(-2, 13)]
    assert values[0] == values[2] == pytest.approx(2.0)
    assert values[12] == values[-1] == pytest.approx(0.5)
    assert values[2:13] == sorted(values[2:13], reverse=True)


def test_middle_values() -> None:
    assert anneal("exponential", 4.0, 1.0, 0.5) == pytest.approx(2.0)
    assert anneal("linear", 4.0, 1.0, 0.5) == pytest.approx(2.5)
    assert anneal("cosine", 4.0, 1.0, 0.25) == pytest.approx(1 + 1.5 * (1 + 2**-0.5))


def test_learning_rate_warms_up_then_falls_to_its_end() -> None:
    schedule = LearningRate(warmup_steps=4, total_steps=14, final=0.1)
    values = [schedule(step) for step in range(15)]
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[9] == pytest.approx(0.55)
    assert values[14] == pytest.approx(0.1)


def test_keep_counts_fall_from_all_to_the_target() -> None:
    counts = KeepCounts(196, (0.7, 0.49), warmup_steps=10)
    assert counts(0) == [196, 196]
    assert counts(5) == [166, 146]
    assert counts(10) == counts(1000) == [137, 96]
    assert KeepCounts(196, (0.7, 0.49))(0) == [137, 96]
    coarse = KeepCounts(196, (0.7, 0.49), warmup_steps=1000, moves=4)
    assert [coarse(step) for step in (0, 249, 250, 999, 1000)] == [[196, 196]] * 2 + [[181, 170], [151, 120], [137, 96]]
    assert len({tuple(coarse(step)) for step in range(1001)}) == 5


def test_only_optimiser_steps_move_schedules(tiny: Callable[..., Config]) -> None:
    config = tiny(
        "schedule.temperature_start=2", "schedule.temperature_end=0.5", "train.accumulation_steps=3",
        "train.grad_checkpointing=true", "train.epochs=4",
    )  # fmt: skip
    trainer = Trainer(config)
    seen: list[tuple[int, float]] = []
    original = trainer._step

    def watched(images: torch.Tensor, *others: torch.Tensor) -> object:
        before = trainer.temperature
        with torch.no_grad():
            trainer.model(images)  # another forward in training mode
            trainer.model.eval()(images)
            trainer.model.train()
        assert trainer.temperature == before
        seen.append((trainer.progress.step, before))
        return original(images, *others)

    trainer._step = watched
    trainer.fit()
    # an epoch has three batches: one accumulated step
    assert [step for step, _ in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert sorted({value for _, value in seen}, reverse=True) == pytest.approx([2.0, 2 ** (1 / 3), 2 ** (-1 / 3), 0.5])
