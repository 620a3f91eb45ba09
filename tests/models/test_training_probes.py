"""Training by removal: over all draws of probes the mean gradient is that of mask execution."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dynavit
from dynavit import PrunedViT, Trace
from dynavit.functional import log_mask
from dynavit.losses import keep_ratio_loss
from dynavit.models.gathered import GatheredTokens
from dynavit.models.steps import SelectStep
from dynavit.models.training_probes import Probes, weigh_gradient
from dynavit.scorers import AttentionReceived, LinearScorer, StageView
from dynavit.selectors import Selector
from tests.conftest import randomise

COUNTS = [6, 4]
LABELS = torch.tensor([0, 3])


class Anchored(LinearScorer):
    """Reads the mask through the block's attention, and learns."""

    name = "anchored"
    needs_attention = True

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        return AttentionReceived()(tokens, mask, view) + super().forward(tokens)


@dataclass(frozen=True)
class Case:
    """What may matter to whether gradients are unbiased."""

    pool: str = "token"
    scorer: str = "mlp"
    placement: str = "before"
    form: str = "key"
    reducer: str = "drop"
    selector: str = "topk"
    probes: int = 1

    def model(self) -> PrunedViT:
        """Return a model of 9 patches that is exact to fp64."""
        backbone = timm.create_model(
            "vit_tiny_patch16_224", img_size=48, embed_dim=12, depth=4, num_heads=2, num_classes=5,
            global_pool=self.pool, class_token=self.pool == "token",
        )  # fmt: skip
        scorer = "mlp" if self.scorer == "anchored" else self.scorer
        model = dynavit.prune(
            backbone, stages=(1, 2), placement=self.placement, reducer=self.reducer, selector=self.selector, scorer=scorer
        )  # type: ignore[arg-type]
        if self.scorer == "anchored":
            model.predictors = nn.ModuleList(Anchored(12) for _ in range(2))
        randomise(model)
        for predictor in model.predictors:
            list(predictor.modules())[-1].bias.data.fill_(0.2)  # type: ignore[union-attr]
        model.mask_form, model.probes = self.form, self.probes
        return model.double().train()


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hidden tokens leak less than is measured, and draw one noise for every place, whoever else is there."""
    monkeypatch.setattr(log_mask, "__defaults__", (1e-12,))
    table = torch.randn(2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    place: list[Tensor] = []

    def at(self: Selector, stage: int, positions: Tensor) -> Selector:
        place[:] = [table[stage][positions]]  # the last one is that of made tokens
        return self

    monkeypatch.setattr(Selector, "at", at)
    monkeypatch.setattr("dynavit.selectors.topk.gumbel_noise", lambda like, generator: place[0])
    monkeypatch.setattr("dynavit.selectors.concrete.logistic_noise", lambda like, generator: place[0])


def images() -> Tensor:
    return torch.randn(2, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def gradients(
    model: PrunedViT, inputs: Tensor, labels: Tensor, weight: Tensor, budget: bool = False
) -> tuple[dict[str, Tensor], Trace]:
    """Return the gradients of predictors and backbone, each as one vector, for a weighted sum over images."""
    model.zero_grad(set_to_none=True)
    logits, trace = model(inputs, return_trace=True, keep_counts=COUNTS)
    loss = (F.cross_entropy(logits, labels, reduction="none") * weight).sum()
    if budget:
        for choice in trace.choices:
            loss = loss + ((choice.decided - 0.3).square() * weight).sum()
    loss.backward()
    parts = {"predictors": model.predictors, "backbone": model.backbone}
    return {
        name: torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None])
        for name, part in parts.items()
    }, trace


def relative_errors(
    case: Case, patch: pytest.MonkeyPatch, budget: bool = False, joint: bool = False
) -> dict[str, float]:
    """Compare mask execution with the mean over all draws of gather execution: one batch, a draw an image.

    Args:
        joint: draw once for both stages, which is wrong.
    """
    model, inputs = case.model(), images()
    model.execution = "mask"
    expected, trace = gradients(model, inputs, LABELS, torch.ones(2), budget)
    model.execution = "gather"
    draws: list[list[tuple[tuple[int, ...], ...]]] = []  # by image: ranks among its dropped tokens, by stage
    for image in range(2):
        options = []
        for choice in trace.choices:
            dropped = int(choice.candidates[image].sum() - choice.num_kept[image])
            count = int(choice.num_kept.max() - choice.num_kept[image]) + case.probes
            options.append(list(itertools.combinations(range(dropped), min(count, dropped))))
        assert len(options[0]) > 1
        draws.append(list(zip(*options, strict=True)) if joint else list(itertools.product(*options)))
    every = [draw for of_image in draws for draw in of_image]
    of = torch.tensor([image for image in range(2) for _ in draws[image]])
    stage = itertools.count()
    right, rand = Probes.draw, torch.rand

    def draw(self: Probes, keep: Tensor, dropped: Tensor, k: int) -> tuple[Tensor, Tensor]:
        number, rank = next(stage), dropped.cumsum(dim=1) - 1
        chosen = [[int(place) in draw[number] for place in row] for draw, row in zip(every, rank, strict=True)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *args, **kwargs: torch.where(torch.tensor(chosen), 0.25, 0.75))
            return right(self, keep, dropped, k)

    patch.setattr(Probes, "draw", draw)
    weight = 1 / torch.tensor([len(draws[image]) for image in of.tolist()], dtype=torch.float64)
    found, gathered = gradients(model, inputs[of], LABELS[of], weight, budget)
    assert gathered.features.shape[1] < trace.features.shape[1]  # tokens were removed
    return {name: float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected}


CASES = [
    Case(),
    Case(pool="avg", scorer="anchored", reducer="squeeze", probes=2),
    Case(pool="map", placement="inside", reducer="fuse", selector="gumbel_topk"),
    Case(pool="avg", scorer="anchored", placement="inside", form="identity", reducer="fuse", selector="ste"),
    Case(scorer="anchored", form="identity", selector="ste", probes=2),
    Case(pool="map", reducer="squeeze", selector="threshold_ste"),
]
GRID = [
    Case(*choices)
    for choices in itertools.product(
        ("token", "avg", "map"),
        ("mlp", "anchored"),
        ("before", "inside"),
        ("key", "identity"),
        ("drop", "squeeze", "fuse"),
        ("topk", "gumbel_topk", "ste"),
        (1, 2),
    )
]


def name_of(case: Case) -> str:
    return "-".join(map(str, vars(case).values()))


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in GRID)], ids=name_of)
def test_the_mean_gradient_over_all_draws_is_that_of_masking(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = relative_errors(case, monkeypatch)
    assert max(errors.values()) < 1e-9, errors
