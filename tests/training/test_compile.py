"""torch.compile takes the whole model as one graph, gives the same numbers, and compiles once a schedule."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import dynavit
from dynavit.training.schedules import KeepCounts

SCHEDULE = [(1.0, (16, 16)), (0.9, (13, 11)), (0.5, (8, 4)), (0.5, (1, 1))]  # of 16 patches
Step = tuple[Tensor, list[Tensor], list[Tensor]]


def tiny(selector: str, stages: tuple[int, ...] = (0, 1)) -> dynavit.PrunedViT:
    """Two blocks and 16 patches: nearly all that takes time here is compiling."""
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 5}
    return dynavit.create_model("vit_tiny_patch16_224", stages=stages, keep_ratio=0.5, selector=selector, **size)


def images_of() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def train_step(run: Any, model: dynavit.PrunedViT, images: Tensor, number: int) -> Step:
    """One step of a schedule that hands temperature and counts over as tensors: output, masks and gradients."""
    temperature, counts = SCHEDULE[number]
    torch.manual_seed(number)  # the noise
    model.zero_grad()
    tensors = [torch.tensor(k) for k in counts[: len(model.stages)]]
    output, trace = run(images, return_trace=True, temperature=torch.tensor(temperature), keep_counts=tensors)
    loss = output.square().sum() + torch.stack([choice.expected for choice in trace.choices]).square().sum()
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return output.detach(), [stage.kept for stage in trace.stages], gradients


def assert_same(found: Step, expected: Step, rtol: float, atol: float) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=rtol, atol=atol)
    assert all(torch.equal(one, other) for one, other in zip(found[1], expected[1], strict=True))
    for one, other in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol * max(1.0, float(other.abs().max())))


def check_training(
    model: dynavit.PrunedViT, images: Tensor, backend: str, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Compile once, then follow the schedule: the numbers of eager, and nothing compiled again."""
    model.execution = "mask"
    compiled = torch.compile(model.train(), fullgraph=True, backend=backend)
    train_step(compiled, model, images, 0)
    for number in range(len(SCHEDULE)):
        expected = train_step(model, model, images, number)
        with torch.compiler.set_stance("fail_on_recompile"):
            found = train_step(compiled, model, images, number)
        assert_same(found, expected, rtol, atol)
        if number in (1, 2):  # not only zeros are equal
            assert all(bool((p.grad != 0).any()) for p in model.scorers.parameters() if p.ndim == 2)


@pytest.mark.parametrize(
    ("selector", "stages"),
    [
        pytest.param("topk", (1,), marks=pytest.mark.slow),
        pytest.param("topk", (0, 1), marks=pytest.mark.slow),
        pytest.param("gumbel_sigmoid", (0, 1), marks=pytest.mark.slow),
        pytest.param("ste", (0, 1), marks=pytest.mark.slow),
    ],
)
def test_a_schedule_of_training_steps_is_compiled_once(selector: str, stages: tuple[int, ...]) -> None:
    check_training(tiny(selector, stages), images_of(), "aot_eager")


def test_numbers_in_place_of_tensors_would_compile_again() -> None:
    """The control: why schedules hand over tensors."""
    compiled = torch.compile(tiny("ste").train(), fullgraph=True, backend="eager")
    images = images_of()
    compiled(images, temperature=0.9)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(images, temperature=0.9)
        with pytest.raises(RuntimeError, match="recompile"):
            compiled(images, temperature=0.8)


@pytest.mark.slow
@pytest.mark.parametrize("reducer", ["drop", "squeeze"])
def test_removing_tokens_is_one_graph_for_each_count(reducer: str) -> None:
    """Its shapes are those of k + m tokens, so counts are numbers, and few."""
    model, images = tiny("topk").train(), images_of()
    model.reducer, model.probes = dynavit.reducers.create_reducer(reducer, 16), 2
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    schedule = KeepCounts(16, model.keep_ratios, warmup_steps=40, moves=2)

    def step(run: Any, number: int) -> Step:
        torch.manual_seed(number)  # the draw of probes
        model.zero_grad()
        output, trace = run(images, return_trace=True, temperature=torch.tensor(0.9), keep_counts=schedule(number))
        output.square().sum().backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
        assert trace.execution == "gather"
        return output.detach(), [stage.kept for stage in trace.stages], gradients

    for number in (0, 20, 40):
        step(compiled, number)
        with torch.compiler.set_stance("fail_on_recompile"):
            for later in (number, min(number + 19, 40)):
                assert_same(step(compiled, later), step(model, later), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "selector", ["topk", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gumbel_sigmoid", "ste"))]
)
def test_eval_is_one_graph(selector: str) -> None:
    model, images = tiny(selector).eval(), images_of()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        found, expected = (run(images, return_trace=True) for run in (compiled, model))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert [counts.tolist() for counts in found[1].counts] == [[8] * 3, [4] * 3]
    assert all(
        torch.equal(one.kept, other.kept) for one, other in zip(found[1].stages, expected[1].stages, strict=True)
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_trains_and_evaluates() -> None:
    """Kernels are fused, so rounding differs; the choices are those of eager."""
    model, images = tiny("topk", stages=(1,)), images_of()
    check_training(model, images, "inductor", rtol=1e-3, atol=1e-4)
    compiled = torch.compile(model.eval(), fullgraph=True, backend="inductor")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-3, atol=1e-4)
