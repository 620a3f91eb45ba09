"""Joining the batches of all processes, with gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_with_gradient(x: Tensor) -> Tensor:
    """Return the tensors ``(B, ...)`` of all W processes, ``(W B, ...)``, in the order of their ranks.

    Gradients find their way back: each process receives, for its own part, the sum over processes of
    what their losses say about it. So where every process computes the full loss of the joint batch,
    that sum is W times the gradient of one such loss; DistributedDataParallel then takes the mean over
    processes, which divides by W. What arrives in the parameters is exactly the gradient of one
    process with the joint batch, and the loss must not be scaled. Parameters of the loss itself get
    the same gradient on every process, which the mean leaves as it is.

    Args:
        x: of the same shape on every process (not checked: that would cost a message), of any type;
            integers, such as labels, have no gradient.

    Returns:
        The joint tensor; ``x`` itself where there is only one process.

    Example:
        >>> gather_with_gradient(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """All-gather forward, sum over processes backward.

    ``all_gather`` and ``all_reduce`` exist in gloo and nccl and in every torch; the newer single-tensor
    collectives, which would move 1/W of the gradient, do not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        ctx.batch = len(x)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.batch
        return total[start : start + ctx.batch]
