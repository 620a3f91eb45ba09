"""What inference computes at a stage: nothing that nobody asked for, and nothing that breaks a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dynavit
from dynavit.models.merging import MergeStep
from dynavit.models.steps import SelectStep

VIEWS = {
    *("_unsafe_view", "alias", "as_strided", "chunk", "detach", "expand", "expand_as", "permute", "select", "slice"),
    *("split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view"),
}
SIZE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 5}
PARTS = {"stages": (0, 1), "keep_ratio": 0.5, "selector": "topk", "scorer": "mlp", "reducer": "drop"}
KINDS: dict[str, dict[str, Any]] = {
    "drop": {},
    "random": {"selector": "random"},
    "class attention": {"scorer": "class_attention"},
    "fuse": {"reducer": "fuse"},
    "squeeze": {"reducer": "squeeze"},
    "merge nearest": {"reducer": "merge_nearest", "scorer": "distinctness"},
    "anchored": {"scorer": "anchored"},
    "aggregate": {"reducer": {"name": "aggregate", "tokens": 3}, "stages": (1,)},
    "merge": {"reducer": "merge"},
    "inside": {"reducer": "fuse", "placement": "inside", "stages": (0,)},
}
NOTHING_DROPPED: dict[str, dict[str, Any]] = {
    "aggregate all": {**KINDS["aggregate"], "stages": (0, 1), "keep_ratio": None, "keep_ratios": (0.5, 0.5)},
    "fuse none": {"reducer": "fuse", "count_rule": "current", "keep_ratio": 0.999},
}
MOST = {"drop": 10, "class attention": 10}


class Counts(TorchDispatchMode):
    """Counts calls of operators that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.partition("::")[2]
        if name not in VIEWS:
            self.calls[name] += 1
        return function(*args, **(kwargs or {}))


def small(**options: Any) -> dynavit.PrunedViT:
    torch.manual_seed(0)
    return dynavit.create_model("vit_tiny_patch16_224", **{**PARTS, **SIZE, **options})


def images_of(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def calls(function: Any, *inputs: Any) -> int:
    with torch.no_grad(), Counts() as counts:
        function(*inputs)
    return counts.calls.total()


@pytest.mark.parametrize("kind", MOST)
def test_a_stage_computes_little_beside_scorer_and_block(kind: str) -> None:
    model, dense = small(**KINDS[kind], stages=(1,)).eval(), small(stages=()).eval()
    images = images_of()
    x, context = model.adapter.embed(images)
    x = model.adapter.block(0, x, context, None)
    scoring = 0
    if model.selector.needs_scores:
        scorer, prefix = model.scorers[0], model.num_prefix_tokens
        attention = model.adapter.view(1, x, context, None) if scorer.needs_attention else None
        positions = torch.arange(x.shape[1] - prefix).expand(len(x), -1)
        view = dynavit.scorers.StageView(0, positions, attention)
        scoring = calls(scorer, x[:, prefix:], None, view)
    extra = calls(model, images) - calls(dense, images) - scoring
    assert 0 < extra <= MOST[kind]


@pytest.mark.parametrize("kind", KINDS | NOTHING_DROPPED)
def test_inference_answers_what_evaluation_records(kind: str) -> None:
    """Without a trace other code runs; the answer is bit for bit the same."""
    model, images = small(**(KINDS | NOTHING_DROPPED)[kind]).eval(), images_of(3)
    with torch.no_grad():
        assert torch.equal(model(images), model(images, return_trace=True)[0])


@pytest.mark.parametrize("kind", ["drop", "fuse"])
def test_no_images_give_no_answers(kind: str) -> None:
    with torch.no_grad():
        assert small(**KINDS[kind]).eval()(images_of()[:0]).shape == (0, 5)


@pytest.fixture
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("kind", "training"),
    [
        *(pytest.param(kind, False, marks=[] if kind == "drop" else pytest.mark.slow) for kind in KINDS),
        *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_every_kind_of_stage_is_one_graph(kind: str, training: bool) -> None:
    """At a fixed ratio nothing depends on the data: no item(), no nonzero, no break."""
    model, images = small(**KINDS[kind]).train(training), images_of()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, expected = compiled(images), model(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if training:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        mine = torch.autograd.grad(found.square().sum(), parameters, allow_unused=True)
        theirs = torch.autograd.grad(expected.square().sum(), parameters, allow_unused=True)
        for one, other in zip(mine, theirs, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_steps_are_compared_by_identity() -> None:
    """torch.compile, until torch 2.12, hashes one whose fields are not there yet."""
    assert SelectStep.__hash__ is MergeStep.__hash__ is object.__hash__
