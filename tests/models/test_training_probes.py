"""Training by removal: over all draws of probes the mean gradient is that of mask execution."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dynavit
from dynavit import PrunedViT, Trace
from dynavit.functional import log_mask
from dynavit.models.gathered import GatheredTokens
from dynavit.models.steps import SelectStep
from dynavit.models.training_probes import Probes, weigh_gradient
from dynavit.scorers import AttentionReceived, LinearScorer, StageView
from dynavit.selectors import Selector
from tests.conftest import randomise

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
    counts: tuple[int, int] = (6, 4)

    def model(self) -> PrunedViT:
        """Return a model of 9 patches that is exact to fp64."""
        backbone = timm.create_model(
            "vit_tiny_patch16_224", img_size=48, embed_dim=12, depth=4, num_heads=2, num_classes=5,
            global_pool=self.pool, class_token=self.pool == "token",
        )  # fmt: skip
        scorer = "mlp" if self.scorer == "anchored" else self.scorer
        parts: dict[str, Any] = {"scorer": scorer, "selector": self.selector, "reducer": self.reducer}
        model = dynavit.prune(backbone, stages=(1, 2), placement=self.placement, **parts)  # type: ignore[arg-type]
        if self.scorer == "anchored":
            model.predictors = nn.ModuleList(Anchored(12) for _ in range(2))
        randomise(model)
        model.mask_form, model.probes = self.form, self.probes
        model.double().train()
        for stage, predictor in enumerate(model.predictors):  # gates are to keep about half of the tokens
            choice = model(images(), return_trace=True, keep_counts=self.counts)[1].choices[stage]
            list(predictor.modules())[-1].bias.data -= choice.logits[choice.candidates].median() - 0.05  # type: ignore[operator]
        return model


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hidden tokens leak less than is measured, and draw one noise for every place, whoever else is there."""
    monkeypatch.setattr(log_mask, "__defaults__", (1e-13,))
    table = 0.5 * torch.randn(2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    place: list[Tensor] = []

    def at(self: Selector, stage: int, positions: Tensor) -> Selector:
        place[:] = [table[stage][positions]]  # the last one is that of made tokens
        return self

    monkeypatch.setattr(Selector, "at", at)
    monkeypatch.setattr("dynavit.selectors.topk.gumbel_noise", lambda like, generator: place[0])
    monkeypatch.setattr("dynavit.selectors.concrete.logistic_noise", lambda like, generator: place[0])


def images() -> Tensor:
    return torch.randn(2, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def gradients(
    model: PrunedViT, inputs: Tensor, labels: Tensor, weight: Tensor, case: Case, budget: bool
) -> tuple[dict[str, Tensor], Trace]:
    """Return the gradients of predictors and backbone, each as one vector, for a weighted sum over images."""
    model.zero_grad(set_to_none=True)
    logits, trace = model(inputs, return_trace=True, keep_counts=case.counts)
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


def relative_errors(case: Case, budget: bool = False, joint: bool = False) -> dict[str, float]:
    """Compare mask execution with the mean over all draws of gather execution: one batch, a draw an image.

    Args:
        joint: draw once for both stages, which is wrong.
    """
    model, inputs = case.model(), images()
    model.execution = "mask"
    expected, trace = gradients(model, inputs, LABELS, torch.ones(2), case, budget)
    model.execution = "gather"
    draws: list[list[tuple[tuple[int, ...], ...]]] = []  # by image: ranks among its dropped tokens, by stage
    for image in range(2):
        options = []
        for choice in trace.choices:
            dropped = int(choice.candidates[image].sum() - choice.num_kept[image])
            count = int(choice.num_kept.max() - choice.num_kept[image]) + case.probes
            options.append(list(itertools.combinations(range(dropped), min(count, dropped))))
        draws.append(list(zip(*options, strict=True)) if joint else list(itertools.product(*options)))
    assert sum(map(len, draws)) > 3  # something is drawn
    every = [draw for of_image in draws for draw in of_image]
    of = torch.tensor([image for image in range(2) for _ in draws[image]])
    stage = itertools.count()
    right = Probes.draw

    def draw(self: Probes, mask: Tensor, keep: Tensor, dropped: Tensor, k: int) -> tuple[Tensor, Tensor]:
        number, rank = next(stage), dropped.cumsum(dim=1) - 1
        chosen = [[int(place) in draw[number] for place in row] for draw, row in zip(every, rank, strict=True)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *args, **kwargs: torch.where(torch.tensor(chosen), 0.25, 0.75))
            return right(self, mask, keep, dropped, k)

    weight = 1 / torch.tensor([len(draws[image]) for image in of.tolist()], dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probes, "draw", draw)
        found, gathered = gradients(model, inputs[of], LABELS[of], weight, case, budget)
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
def test_the_mean_gradient_over_all_draws_is_that_of_masking(case: Case) -> None:
    errors = relative_errors(case)
    assert max(errors.values()) < 1e-9, errors


# What would be wrong, and is told by the same comparison


def unweighted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("dynavit.models.training_probes.weigh_gradient", lambda mask, weight: mask)


def weighted_for_all(patch: pytest.MonkeyPatch) -> None:
    """Weigh the selector's own mask, which the budget reads too."""
    unweighted(patch)
    right = GatheredTokens.select

    def select(self: GatheredTokens, selection: Any, logits: Tensor, reducer: Any, k: Any, *args: Any) -> None:
        *_, probes = args
        keep, dropped = selection.keep, self.candidates & ~selection.keep
        index, _ = probes.draw(selection.mask, keep, dropped, int(keep.sum(dim=1).max()))
        drawn = torch.zeros_like(keep).scatter(1, index, True) & dropped
        weight = torch.where(drawn, dropped.sum(dim=1, keepdim=True) / drawn.sum(dim=1, keepdim=True), 1.0)
        object.__setattr__(selection, "mask", weigh_gradient(selection.mask, weight))
        with pytest.MonkeyPatch.context() as same:
            same.setattr(Probes, "draw", lambda _, mask, *__: (index, mask.gather(1, index)))
            right(self, selection, logits, reducer, k, *args)

    patch.setattr(GatheredTokens, "select", select)


def pooled_over_the_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GatheredTokens, "weight", property(lambda self: self.mask * self.candidates))


def gone_before_the_next_score(patch: pytest.MonkeyPatch) -> None:
    right = SelectStep._logits

    def logits(self: SelectStep, tokens: Any) -> Tensor:
        if isinstance(tokens, GatheredTokens) and tokens.mask is not None:
            tokens.set_mask(tokens.mask * tokens.candidates)
        return right(self, tokens)

    patch.setattr(SelectStep, "_logits", logits)


WRONG = {
    "no weight": (unweighted, CASES[0]),
    "weight on the selector's mask": (weighted_for_all, CASES[4]),
    "average pooling over the kept": (pooled_over_the_kept, CASES[1]),
    "attention pooling over the kept": (pooled_over_the_kept, CASES[2]),
    "gone before the next score": (gone_before_the_next_score, CASES[0]),
    "gone before the next attention view": (gone_before_the_next_score, replace(CASES[4], form="key")),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_comparison_would_tell_a_mistake(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, case = WRONG[mistake]
    budget = patch is weighted_for_all
    if budget:
        assert max(relative_errors(case, budget=True).values()) < 1e-9
    patch(monkeypatch)
    assert relative_errors(case, budget=budget)["predictors"] > 1e-3


def test_one_draw_for_both_stages_is_biased() -> None:
    """Each draw by itself is uniform here: three tokens dropped at either stage."""
    case = replace(CASES[0], counts=(6, 3))
    assert max(relative_errors(case).values()) < 1e-9
    assert relative_errors(case, joint=True)["predictors"] > 1e-3
