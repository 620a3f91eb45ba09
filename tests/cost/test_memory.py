"""Memory of a training step, against what arithmetic says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynavit.cost.memory import step_memory


def test_each_storage_is_counted_once_and_parameters_are_not() -> None:
    first, second = nn.Linear(8, 16), nn.Linear(16, 2)
    images = torch.randn(4, 8)

    def step() -> None:
        hidden = first(images)  # for which the images are saved: 4 * 8 floats
        product = hidden[:, :8] * hidden[:, 8:]  # two views of one storage of 4 * 16
        wide = torch.cat([product, product], dim=1).sigmoid()  # its own result: 4 * 16
        second(wide).sum().backward()  # the same again, and a weight

    memory = step_memory(step, [first, second])
    assert memory == (4 * (4 * 8 + 4 * 16 + 4 * 16), None)
    assert first.weight.grad is not None  # a step as it is otherwise


def test_storages_that_are_freed_in_between_count_all_the_same() -> None:
    layer = nn.Linear(64, 64)

    def step() -> None:
        for _ in range(3):
            layer(torch.randn(32, 64)).sum().backward()

    assert step_memory(step, [layer]).saved == 3 * 4 * 32 * 64


@pytest.mark.gpu
def test_the_peak_holds_what_is_saved_and_the_gradients() -> None:
    layers = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256)).cuda()
    images = torch.randn(64, 256, device="cuda")
    memory = step_memory(lambda: layers(images).sum().backward(), [layers])
    assert memory.peak is not None
    assert memory.peak >= 4 * (64 * 256 + 2 * 256 * 256)
