"""Lines in logs without a terminal."""

import re

from dynavit.training.steplines import StepLines


def make(every: int, total: int = 100) -> tuple[StepLines, list[str], list[float]]:
    now, said = [0.0], []
    return StepLines(said.append, total, every, images_per_step=8, clock=lambda: now[0]), said, now


def test_the_first_step_then_every_so_many_and_at_least_every_half_minute() -> None:
    lines, said, now = make(every=10)
    lines.begin(0)
    spoken = []
    for step in range(1, 31):
        now[0] += 5.0 if step > 20 else 0.1
        if lines.due(step):
            spoken.append(step)
            lines.step(step, "1/2", 0.5, 1e-3)
    assert spoken == [1, 10, 20, 26, 30]
    assert len(said) == 5


def test_what_a_line_says() -> None:
    lines, said, now = make(every=10)
    lines.begin(40)  # a resumed run
    for step in range(41, 51):
        now[0] += 2.0
        if lines.due(step):
            lines.step(step, "3/6", 1.25, 5e-4)
    first, last = said
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  epoch 3/6  step 50/100  loss 1.250  lr 0.0005  4.0 images/s  0:01:40 left", last
    )
    assert "step 41/100" in first
    lines.begin(50)  # of the next epoch: the clock goes on
    now[0] += 80.0  # a validation in between
    assert lines.due(51)
    lines.step(51, "4/6", 1.0, 5e-4)
    assert said[-1].endswith("0:07:25 left")  # 100 s for 11 steps, 49 steps to go
