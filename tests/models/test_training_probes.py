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
from dynavit import InputError, PrunedViT, Trace
from dynavit.functional import log_mask
from dynavit.models.gathered import GatheredTokens
from dynavit.models.steps import SelectStep
from dynavit.models.training_probes import Probes, weigh_gradient
from dynavit.scorers import AttentionReceived, LinearScorer, StageView
from dynavit.selectors import Selector
from tests.conftest import make_backbone, randomise

LABELS = torch.tensor([0, 3])
WEIGHTED = {"name": "merge_nearest", "weighted": True}


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
    reducer: Any = "drop"
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
            model.scorers = nn.ModuleList(Anchored(12) for _ in range(2))
        randomise(model)
        model.mask_form, model.probes = self.form, self.probes
        model.double().train()
        for stage, predictor in enumerate(model.scorers):  # gates are to keep about half of the tokens
            choice = model(images(), return_trace=True, keep_counts=self.counts)[1].choices[stage]
            list(predictor.modules())[-1].bias.data -= choice.logits[choice.candidates].median() - 0.05  # type: ignore[operator]
        return model


@pytest.fixture
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
    """Return the gradients of scorers and backbone, each as one vector, for a weighted sum over images."""
    model.zero_grad(set_to_none=True)
    logits, trace = model(inputs, return_trace=True, keep_counts=case.counts)
    loss = (F.cross_entropy(logits, labels, reduction="none") * weight).sum()
    if budget:
        for choice in trace.choices:
            loss = loss + ((choice.decided - 0.3).square() * weight).sum()
    loss.backward()
    parts = {"scorers": model.scorers, "backbone": model.backbone}
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
            chance = torch.where(torch.tensor(chosen), 0.25, 0.75)
            patch.setattr("dynavit.models.training_probes.uniform", lambda like, generator: chance)
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
    Case(reducer="merge_nearest"),
    Case(reducer="merge_nearest", counts=(3, 1)),  # nobody else to merge into
    Case(pool="avg", scorer="anchored", placement="inside", reducer="merge_nearest", selector="ste", probes=2),
    Case(reducer=WEIGHTED),
]
GRID = [
    Case(*choices)
    for choices in itertools.product(
        ("token", "avg", "map"),
        ("mlp", "anchored"),
        ("before", "inside"),
        ("key", "identity"),
        ("drop", "squeeze", "fuse", "merge_nearest"),
        ("topk", "gumbel_topk", "ste"),
        (1, 2),
    )
]


def name_of(case: Case) -> str:
    return "-".join(map(str, vars(case).values()))


@pytest.mark.usefixtures("exact")
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
            same.setattr(Probes, "draw", lambda _, mask, *__: (index, mask))
            right(self, selection, logits, reducer, k, *args)

    patch.setattr(GatheredTokens, "select", select)


def pooled_over_the_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GatheredTokens, "weight", property(lambda self: self.mask * self.candidates))


def gone_before_the_next_score(patch: pytest.MonkeyPatch) -> None:
    right = SelectStep.score

    def logits(self: SelectStep, tokens: Any, request: Any) -> Tensor:
        if isinstance(tokens, GatheredTokens) and tokens.mask is not None:
            tokens.set_mask(tokens.mask * tokens.candidates)
        return right(self, tokens, request)

    patch.setattr(SelectStep, "score", logits)


WRONG = {
    "no weight": (unweighted, CASES[0]),
    "weight on the selector's mask": (weighted_for_all, CASES[4]),
    "average pooling over the kept": (pooled_over_the_kept, CASES[1]),
    "attention pooling over the kept": (pooled_over_the_kept, CASES[2]),
    "gone before the next score": (gone_before_the_next_score, CASES[0]),
    "gone before the next attention view": (gone_before_the_next_score, replace(CASES[4], form="key")),
}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("mistake", WRONG)
def test_the_comparison_would_tell_a_mistake(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, case = WRONG[mistake]
    budget = patch is weighted_for_all
    if budget:
        assert max(relative_errors(case, budget=True).values()) < 1e-9
    patch(monkeypatch)
    assert relative_errors(case, budget=budget)["scorers"] > 1e-3


@pytest.mark.usefixtures("exact")
def test_one_draw_for_both_stages_is_biased() -> None:
    """Each draw by itself is uniform here: three tokens dropped at either stage."""
    case = replace(CASES[0], counts=(6, 3))
    assert max(relative_errors(case).values()) < 1e-9
    assert relative_errors(case, joint=True)["scorers"] > 1e-3


# In practice


def practical(**options: Any) -> PrunedViT:
    """Return a model of 24 patches in fp32."""
    torch.manual_seed(2)
    settings = {"stages": (1, 3), "scorer": "mlp", "reducer": "drop", **options}
    return dynavit.prune(make_backbone("vit"), **settings).train()  # type: ignore[return-value]


def photographs() -> Tensor:
    return torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(7))


def drawn(model: PrunedViT, seed: int) -> tuple[Tensor, Trace]:
    logits, trace = model(photographs(), return_trace=True, generator=torch.Generator().manual_seed(seed))
    return logits, trace


@pytest.mark.parametrize("reducer", ["drop", "fuse", "squeeze"])
def test_the_loss_does_not_depend_on_the_draw(reducer: str) -> None:
    model = practical(reducer=reducer)
    model.execution, model.probes = "gather", 3
    (one, first), (other, second) = drawn(model, 0), drawn(model, 1)
    assert first.execution == "gather"
    assert not torch.equal(first.positions, second.positions)
    losses = [F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])) for logits in (one, other)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    assert torch.equal(one, drawn(model, 0)[0])  # the generator decides


def predictor_gradient(model: PrunedViT, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor]:
    """Return the gradient of the scorers, and that of the masks of all probes."""
    masks: list[tuple[Tensor, Tensor]] = []

    def spy(mask: Tensor, weight: Tensor) -> Tensor:
        mask.retain_grad()
        masks.append((mask, (mask == 0) & (weight > 0)))
        return weigh_gradient(mask, weight)

    model.zero_grad()
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        patch.setattr("dynavit.models.training_probes.weigh_gradient", spy)
        logits, _ = drawn(model, 0)
        loss = F.cross_entropy(logits.float(), torch.tensor([0, 1, 2, 3]))
    (scale * loss).backward()
    found = torch.cat([p.grad.flatten() / scale for p in model.scorers.parameters() if p.grad is not None])
    return found, torch.cat([mask.grad[probes] for mask, probes in masks if mask.grad is not None])


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 2.0**16)])
def test_half_precision_keeps_the_gradient_of_probes(dtype: torch.dtype, scale: float) -> None:
    """The derivative by a probe's mask is a million times that by its bias, which may be too small for fp16."""
    model = practical()
    model.execution = "gather"
    expected, _ = predictor_gradient(model, torch.float32, 1.0)
    found, probes = predictor_gradient(model, dtype, scale)
    assert F.cosine_similarity(found, expected, dim=0) > 0.99
    assert (probes == 0).float().mean() < 0.01


def test_recomputed_blocks_see_the_same_probes() -> None:
    model = practical(placement="inside")
    model.execution = "gather"
    expected, _ = predictor_gradient(model, torch.float32, 1.0)
    model.set_grad_checkpointing(True)
    found, _ = predictor_gradient(model, torch.float32, 1.0)
    assert torch.equal(found, expected)


def test_probes_are_drawn_uniformly_and_weigh_for_all_dropped() -> None:
    keep = torch.zeros(3000, 8, dtype=torch.bool)
    keep[:, [1, 6]] = True
    dropped = ~keep
    dropped[:, 0] = False  # gone since an earlier stage
    dropped[-1, 2:] = False
    mask = keep.double().requires_grad_()
    index, found = Probes(2, torch.Generator().manual_seed(0)).draw(mask, keep, dropped, 2)
    assert torch.equal(index[:, :2], torch.tensor([[1, 6]]).expand(3000, 2))
    assert torch.equal(found, mask)
    shares = torch.zeros(3000, 8).scatter(1, index, 1.0)[:-1].mean(dim=0)
    torch.testing.assert_close(shares[[2, 3, 4, 5, 7]], torch.full((5,), 0.4), atol=0.05, rtol=0)
    assert shares[0] == 0
    found.sum().backward()
    assert mask.grad is not None
    assert torch.equal(mask.grad[0].gather(0, index[0]), torch.tensor([1, 1, 2.5, 2.5], dtype=torch.float64))
    assert torch.equal(mask.grad[-1], keep[-1].double())  # nothing was dropped there: dead tokens fill up


@pytest.mark.parametrize(
    "options",
    [
        {"scorer": "class_attention"},
        {"selector": {"name": "topk", "gradient": "none"}},
        {"selector": {"name": "topk", "gradient": "none"}, "reducer": WEIGHTED},
        {"selector": "score_function"},
        {"selector": {"name": "score_function", "distribution": "bernoulli"}},
        {"selector": "random", "reducer": "fuse"},
    ],
    ids=str,
)
def test_where_masks_teach_nobody_there_are_no_probes(options: dict[str, Any]) -> None:
    model = practical(**options)
    model.execution = "gather"
    logits, trace = drawn(model, 0)
    made = model.reducer.makes * 2
    assert trace.features.shape[1] == int(trace.choices[-1].num_kept.max()) + (made if made == 0 else 1)
    assert trace.weight is None or not trace.weight.requires_grad
    model.probes = 0
    assert torch.equal(drawn(model, 0)[0], logits)
    (logits.square().sum() + (0 if trace.log_prob is None else trace.log_prob.sum())).backward()
    assert all(p.grad is not None for p in model.backbone.blocks.parameters())


def test_a_frozen_scorer_needs_none() -> None:
    model = practical()
    model.execution, model.probes = "gather", 0
    with pytest.raises(InputError, match=r"execution='gather', probes=0: scorer 'mlp' learns by the masks"):
        drawn(model, 0)
    drawn(model.eval(), 0)
    model.train().scorers.requires_grad_(False)
    assert drawn(model, 0)[1].weight is None
    model.execution = "auto"
    drawn(model, 0)


def test_a_scorer_that_the_reducer_teaches_needs_none() -> None:
    model = practical(reducer=WEIGHTED)
    model.execution, model.probes = "gather", 0
    drawn(model, 0)[0].square().sum().backward()
    assert all(p.grad is not None for p in model.scorers.parameters())


@pytest.mark.parametrize("probes", [-1, 2.5, True, "all"])
def test_probes_are_a_number(probes: Any) -> None:
    with pytest.raises(InputError, match=r"probes=.*give a whole number"):
        practical().probes = probes
