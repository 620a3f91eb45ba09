"""Gathering with gradients: two processes (gloo, on the CPU) get the gradient of one with the joint batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dynavit.losses.gather import gather_with_gradient
from dynavit.losses.metric import create_metric_loss

WAYS = ("gathered", "own images only", "gathered without gradient")


def gradients(name: str, dtype: torch.dtype, way: str, rank: int, processes: int) -> dict[str, list[float]]:
    """Return the gradients of a small net and of the loss's own parameters, for 8 identities of 4 images."""
    torch.manual_seed(0)
    network: Any = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 6)).to(dtype)
    loss: Any = create_metric_loss(name, num_classes=8, embedding_size=6).to(dtype)
    learns = loss.has_parameters
    x, labels = torch.randn(32, 5, dtype=dtype), torch.arange(8).repeat_interleave(4)
    if processes > 1:
        network = DistributedDataParallel(network)
        loss = DistributedDataParallel(loss) if learns else loss
    size = 32 // processes
    own = slice(rank * size, (rank + 1) * size)
    features, labels = network(x[own]), labels[own]
    if way == "gathered":
        features, labels = gather_with_gradient(features), gather_with_gradient(labels)
    elif way == "gathered without gradient":
        detached = gather_with_gradient(features.detach())
        features = torch.cat([detached[: own.start], features, detached[own.stop :]])
        labels = gather_with_gradient(labels)
    loss(features, labels)[0].backward()
    named = [*network.named_parameters(), *loss.named_parameters()]
    return {name.removeprefix("module."): p.grad.flatten().tolist() for name, p in named}


def main() -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    x = torch.arange(6.0).reshape(2, 3).T + 10 * rank  # not contiguous
    gathered = gather_with_gradient(x)
    result = {
        "processes": processes,
        "order": gathered.tolist(),
        "cases": {
            f"{name} {dtype} {way}": gradients(name, dtype, way, rank, processes)
            for name in ("triplet", "arc_face")
            for dtype in (torch.float32, torch.float64)
            for way in WAYS
        },
    }
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(result))
    dist.barrier()  # gloo's threads abort a process that ends while the other one still talks to it
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes computed."""
    path = tmp_path_factory.mktemp("two") / "result.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, __file__, str(path)], env=environment, check=True, timeout=300)
    result = json.loads(path.read_text())
    assert result["processes"] == 2
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["triplet", "arc_face"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
def test_gradient_equals_that_of_one_process(
    name: str, dtype: torch.dtype, tolerance: float, two: dict[str, Any]
) -> None:
    expected = gradients(name, dtype, "gathered", rank=0, processes=1)
    found = {way: two["cases"][f"{name} {dtype} {way}"] for way in WAYS}
    assert found["gathered"].keys() == expected.keys()
    # relative to the largest of all: a triplet loss does not see the last bias, whose gradient is rounding
    largest = dict.fromkeys(WAYS, 0.0)
    scale = max(abs(value) for values in expected.values() for value in values)
    for parameter, values in expected.items():
        for way in WAYS:
            pairs = zip(found[way][parameter], values, strict=True)
            largest[way] = max(largest[way], max(abs(ours - theirs) for ours, theirs in pairs) / scale)
    assert largest.pop("gathered") < tolerance
    if name == "triplet":  # the others, which are plain mistakes here, are seen as such
        assert min(largest.values()) > 0.01
    else:  # which compares no images: their halves are averaged
        assert largest["own images only"] < tolerance * 10
        assert largest["gathered without gradient"] > 0.01


@pytest.mark.slow
def test_order_is_that_of_the_ranks(two: dict[str, Any]) -> None:
    first = torch.arange(6.0).reshape(2, 3).T
    assert two["order"] == torch.cat([first, first + 10]).tolist()


def test_one_process_is_left_alone(tmp_path: Path) -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(x) is x
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert gather_with_gradient(x) is x
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
