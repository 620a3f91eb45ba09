"""Pruned models on a GPU give what they give on a CPU, compiled and captured as well; run with `pytest -m gpu`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dynavit
from dynavit import PrunedViT
from dynavit.cost.memory import peak_memory

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
Make = Callable[..., PrunedViT]
REDUCERS = ("drop", "fuse", "squeeze", "merge_nearest", "aggregate")
FREE = {"name": "topk", "gradient": "none"}
METHODS: dict[str, dict[str, Any]] = {
    "default": {"stages": (0, 2), "selector": None, "scorer": None, "reducer": None},
    "light, drop": {"scorer": "light"},
    "class attention, fused inside": {
        "selector": FREE,
        "scorer": "class_attention",
        "reducer": "fuse",
        "placement": "inside",
    },
    "ToMe": {"reducer": "merge", "scorer": None, "selector": None, "placement": "inside", "count_rule": "linear"},
}


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def close(on_gpu: Tensor, on_cpu: Tensor, tolerance: float) -> None:
    expected = on_cpu.to(on_gpu)
    torch.testing.assert_close(on_gpu, expected, rtol=tolerance, atol=tolerance * float(expected.std()))


@pytest.mark.parametrize("reducer", REDUCERS)
def test_answers_and_kept_tokens_are_those_of_the_cpu(
    model_of: Make, images_for: Callable[..., Tensor], reducer: str
) -> None:
    model = model_of("vit", reducer=reducer)
    images = images_for(model)
    with torch.no_grad():
        logits, trace = model(images, return_trace=True)
        found, its_trace = model.to(DEVICE)(images.to(DEVICE), return_trace=True)
    assert found.device.type == DEVICE
    close(found, logits, 1e-4)
    for stage, its_stage in zip(trace.stages, its_trace.stages, strict=True):
        assert torch.equal(its_stage.kept.cpu(), stage.kept)


def test_what_pruning_adds_is_where_the_model_is_but_for_parts_that_are_given(
    backbone_of: Callable[..., nn.Module],
) -> None:
    given = dynavit.prune(backbone_of("vit"), scorer="mlp", reducer="aggregate").reducer
    model = dynavit.prune(backbone_of("vit").to(DEVICE), selector="topk", scorer="mlp", reducer="aggregate")
    assert {value.device.type for value in [*model.parameters(), *model.buffers()]} == {DEVICE}
    dynavit.prune(backbone_of("vit").to(DEVICE), scorer="mlp", reducer=given)
    assert {value.device.type for value in given.parameters()} == {"cpu"}


def test_gradients_of_probes_are_those_of_the_cpu(model_of: Make, images_for: Callable[..., Tensor]) -> None:
    """With as many probes as there are dropped tokens nothing is drawn."""
    gradients = []
    for device in ("cpu", DEVICE):
        model = model_of("vit", scorer="light").to(device).train()
        model.execution, model.probes = "gather", 24
        F.cross_entropy(model(images_for(model).to(device)), torch.arange(3, device=device)).backward()
        gradients.append(torch.cat([p.grad.cpu().flatten() for p in model.parameters() if p.grad is not None]))
    close(gradients[1], gradients[0], 1e-3)


def test_spectra_that_are_missing_are_missing_on_a_gpu() -> None:
    torch.manual_seed(0)
    small = {"img_size": (64, 32), "embed_dim": 48, "depth": 4, "num_heads": 3}
    model = dynavit.create_model(
        "vit_tiny_patch16_224",
        num_identities=5,
        spectra=3,
        stages=(1, 2),
        selector="topk",
        scorer={"name": "guided", "guides": 2},
        reducer="drop",
        **small,
    ).eval()
    samples, present = torch.randn(2, 3, 3, 64, 32), torch.tensor([[True, False, True], [True, True, True]])
    with torch.no_grad():
        expected = model(samples, present=present)
        found = model.to(DEVICE)(samples.to(DEVICE), present=present.to(DEVICE))
    close(found, expected, 1e-4)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("method", METHODS)
def test_compiled_and_captured_models_answer_as_plain_ones(model_of: Make, method: str, mode: str) -> None:
    model = model_of("vit", **METHODS[method]).to(DEVICE)
    torch.compiler.reset()
    compiled = torch.compile(model, mode=mode, fullgraph=True)
    with torch.inference_mode():
        for seed in range(3):  # the first calls compile and record, the third replays
            images = torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
            close(compiled(images).clone(), model(images), 1e-3)


def test_removal_takes_less_memory_than_masks(model_of: Make) -> None:
    model = model_of("vit", img_size=(256, 384), scorer="light", keep_ratio=0.5).to(DEVICE).train()
    images = torch.randn(16, 3, 256, 384, device=DEVICE)
    peaks = {}
    model(images).sum().backward()  # libraries take their memory at the first call
    for execution in ("mask", "gather"):
        model.execution = execution  # type: ignore[assignment]
        peaks[execution] = peak_memory(lambda: model(images).sum().backward(), list(model.parameters()))
    assert peaks["gather"] is not None
    assert peaks["mask"] is not None
    assert peaks["gather"] < 0.9 * peaks["mask"]
