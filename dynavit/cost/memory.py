"""Memory that a training step needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn


class StepMemory(NamedTuple):
    """Memory of one training step, in bytes.

    Attributes:
        saved: what the forward keeps for the backward: each storage counted once, parameters left out.
        peak: the most that was allocated at once, above what was there before the step; None but on CUDA.
    """

    saved: int
    peak: int | None


def step_memory(step: Callable[[], object], modules: Iterable[nn.Module]) -> StepMemory:
    """Run a training step, on CUDA twice, and measure what it keeps and what it allocates.

    Under autocast the copies of parameters in lower precision are kept as well, and count.

    Args:
        step: a forward and a backward.
        modules: whose parameters the step reads.
    """
    parameters = list(chain.from_iterable(module.parameters() for module in modules))
    return StepMemory(_saved_bytes(step, parameters), peak_memory(step, parameters))


def peak_memory(call: Callable[[], object], parameters: Sequence[nn.Parameter]) -> int | None:
    """Return the bytes that a call allocates at most, above what was there before it; None but on CUDA.

    Args:
        call: is run once.
        parameters: of what it runs; their gradients are cleared first, so that new ones count.
    """
    device = parameters[0].device
    if device.type != "cuda":
        return None
    for parameter in parameters:
        parameter.grad = None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _saved_bytes(step: Callable[[], object], parameters: Iterable[nn.Parameter]) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(storage.nbytes() for storage in storages.values())
