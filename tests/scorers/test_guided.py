"""Scores by similarity to features: the published equations, gradients, missing features, whole models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import dynavit
from dynavit import InputError
from dynavit.scorers import Scorer, StageView, create_scorer, scorer_config
from dynavit.selectors import create_selector, list_selectors

Make = Callable[..., Any]
DIM, N, B, G = 16, 9, 2, 2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TOKENS, CLASS, GUIDE = drawn(B, N, DIM), drawn(B, DIM, seed=1), drawn(B, G, DIM, seed=2)
MASK = torch.tensor([[1, 1, 0, 1, 1, 0, 1, 1, 1], [1, 0, 0, 1, 1, 1, 1, 1, 0]], dtype=torch.float64)


def guided(**options: Any) -> Scorer:
    torch.manual_seed(0)
    scorer = create_scorer("guided", DIM, guides=G, **options).double()
    if scorer.form == "logit":  # so that a mistake in the order of the weights shows
        with torch.no_grad():
            scorer.tenths.copy_(torch.tensor([0.2, 0.1, -0.05][: len(scorer.tenths)]))
    return scorer


def view_of(tokens: Tensor, **more: Any) -> StageView:
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape[:2])
    return StageView(0, positions, summary=CLASS, guide=more.pop("guide", GUIDE), **more)


def by_hand(scorer: Any, similarity: Callable[[Tensor, Tensor], Tensor], mask: Tensor | None = None) -> Tensor:
    """SEPS's score or ours, token by token; of one image's similarities those of its visible tokens count."""
    shown = torch.ones(B, N) if mask is None else mask
    base = scorer.scorer(TOKENS, mask, view_of(TOKENS))
    result = torch.zeros(B, N, dtype=torch.float64)
    for image in range(B):
        features = [CLASS[image], *GUIDE[image]]
        spread = []
        for feature in features:
            raw = [float(similarity(token, feature)) for token in TOKENS[image]]
            visible = [value for value, there in zip(raw, shown[image], strict=True) if there]
            spread.append([(value - min(visible)) / (max(visible) - min(visible)) for value in raw])
        for token in range(N):
            n = [values[token] for values in spread]
            p = float(base[image, token])
            if scorer.form == "logit":
                own, first, second = scorer.weights.tolist()
                result[image, token] = p + own * (n[0] - 0.5) + first * (n[1] - 0.5) + second * (n[2] - 0.5)
            else:
                result[image, token] = 0.5 / (1 + 2.718281828459045**-p) + 0.25 * (n[1] + n[2] + 2 * n[0])
    return result


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, MASK])
def test_our_form_adds_spread_cosines_to_a_logit(mask: Tensor | None) -> None:
    scorer = guided(base="mlp")
    expected = by_hand(scorer, lambda token, feature: F.cosine_similarity(token, feature, dim=0), mask)
    shown = slice(None) if mask is None else mask > 0
    torch.testing.assert_close(scorer(TOKENS, mask, view_of(TOKENS))[shown], expected[shown], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, MASK])
def test_the_published_form_is_equation_3(mask: Tensor | None) -> None:
    """Up to what makes a logit of a score: its order is the same, and its probability nearly the share of the most."""
    scorer = guided(form="seps")
    score = by_hand(scorer, lambda token, feature: token @ feature / DIM, mask)
    logits = scorer(TOKENS, mask, view_of(TOKENS))
    shown = torch.ones(B, N, dtype=torch.bool) if mask is None else mask > 0
    most = 0.5 + 0.25 * 4
    torch.testing.assert_close(logits.sigmoid()[shown], (score / most * 0.98 + 0.01)[shown], rtol=1e-9, atol=1e-9)
    for image in range(B):
        kept = shown[image]
        assert torch.equal(logits[image, kept].argsort(), score[image, kept].argsort())


@torch.no_grad()
def test_laps_adds_cosines_and_learns_nothing() -> None:
    scorer = guided(form="laps")
    assert not scorer.learned
    assert not list(scorer.parameters())
    mean = TOKENS.mean(dim=1)
    expected = sum(F.cosine_similarity(TOKENS, f.unsqueeze(1), dim=2) for f in (mean, GUIDE[:, 0], GUIDE[:, 1]))
    torch.testing.assert_close(scorer(TOKENS, None, view_of(TOKENS)), expected, rtol=1e-9, atol=1e-9)
    tokens, guide = TOKENS.clone().requires_grad_(), GUIDE.clone().requires_grad_()
    with torch.enable_grad():
        assert not scorer(tokens, None, view_of(tokens, guide=guide)).requires_grad


@pytest.mark.parametrize("form", ["logit", "seps"])
def test_gradients_are_exact_for_tokens_features_and_weights(form: str) -> None:
    scorer = guided(form=form, base="mlp")
    tokens, guide = TOKENS.clone().requires_grad_(), GUIDE.clone().requires_grad_()
    parameters = list(scorer.parameters())

    def score(tokens: Tensor, guide: Tensor, *_: Tensor) -> Tensor:
        return scorer(tokens, MASK, view_of(tokens, guide=guide))[MASK > 0]

    assert torch.autograd.gradcheck(score, (tokens, guide, *parameters), fast_mode=True)
    score(tokens, guide).sum().backward()
    assert all((parameter.grad != 0).any() for parameter in (guide, *parameters))


def test_it_starts_as_its_base_and_learns_which_way_a_feature_points() -> None:
    scorer = create_scorer("guided", DIM, guides=G).double()
    assert torch.equal(scorer(TOKENS, None, view_of(TOKENS)), scorer.scorer(TOKENS))
    optimizer = torch.optim.Adam(scorer.parameters(), lr=1e-3)
    alike = F.cosine_similarity(TOKENS, GUIDE[:, :1], dim=2)
    for _ in range(100):  # as many steps as move a single number by 0.1
        optimizer.zero_grad()
        (scorer(TOKENS, None, view_of(TOKENS)) * alike).mean().backward()
        optimizer.step()
    assert scorer.weights[1] < -0.5


def test_gradients_of_similarities_can_be_left_out() -> None:
    """The tokens then learn through the base scorer alone, the features not at all; weights always do."""
    open_one, closed = guided(), guided(gradient=False)
    found = []
    for scorer in (open_one, closed, open_one.scorer):
        tokens, guide = TOKENS.clone().requires_grad_(), GUIDE.clone().requires_grad_()
        scorer(tokens, None, view_of(tokens, guide=guide)).square().sum().backward()
        found.append((tokens.grad, guide.grad))
    assert (found[0][1] != 0).any()
    assert found[1][1] is None
    assert closed.tenths.grad is not None
    assert not torch.equal(found[0][0], found[1][0])
    # the square's factor is the whole logit in one and the base's in the other; both are sums over the base's paths
    assert torch.equal(guided().scorer(TOKENS), closed.scorer(TOKENS))


@pytest.mark.parametrize("form", ["logit", "seps"])
def test_tokens_nearly_alike_get_no_large_gradients(form: str) -> None:
    scorer = guided(form=form)
    tokens = (TOKENS[:, :1] + 1e-7 * TOKENS).requires_grad_()
    logits = scorer(tokens, None, view_of(tokens))
    assert logits.isfinite().all()
    logits.sum().backward()
    assert tokens.grad.norm() < 1e4


@torch.no_grad()
@pytest.mark.parametrize("form", ["logit", "seps", "laps"])
def test_a_feature_that_is_missing_is_as_good_as_none(form: str) -> None:
    scorer, present = guided(form=form), torch.tensor([[True, False], [True, False]])
    alone = create_scorer("guided", DIM, form=form, guides=1).double()
    alone.load_state_dict(
        {name: value[:2] if name == "tenths" else value for name, value in scorer.state_dict().items()}
    )
    missing = scorer(TOKENS, None, view_of(TOKENS, guide_present=present))
    torch.testing.assert_close(missing, alone(TOKENS, None, view_of(TOKENS, guide=GUIDE[:, :1])))
    other = torch.cat([GUIDE[:, :1], 7 * GUIDE[:, :1] + 1], dim=1)
    assert torch.equal(scorer(TOKENS, None, view_of(TOKENS, guide=other, guide_present=present)), missing)
    none = torch.zeros(B, G, dtype=torch.bool)
    assert scorer(TOKENS, None, view_of(TOKENS, guide_present=none)).isfinite().all()


@torch.no_grad()
def test_without_a_class_token_the_mean_of_visible_tokens_guides() -> None:
    scorer = create_scorer("guided", DIM, weight=1.0).double()
    positions = torch.arange(N).expand(B, N)
    mean = (TOKENS * MASK.unsqueeze(2)).sum(dim=1) / MASK.sum(dim=1, keepdim=True)
    without = scorer(TOKENS, MASK, StageView(0, positions))
    torch.testing.assert_close(without, scorer(TOKENS, MASK, StageView(0, positions, summary=mean)))
    assert not torch.equal(without, scorer(TOKENS, MASK, StageView(0, positions, summary=CLASS)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "cosine"}, r"form='cosine'; choose 'logit', 'seps' or 'laps'"),
        ({"own": False}, r"own=False, guides=0: nothing would guide"),
        ({"guides": -1}, r"guides=-1: a whole number, at least 0"),
        ({"form": "laps", "base": "mlp"}, r"form='laps' adds plain cosines; leave out base and weight"),
        ({"form": "laps", "weight": 1.0}, r"leave out base and weight"),
        ({"form": "seps", "weight": 0.5}, r"form='seps', weight=0.5; a number above 0 and below 0.5"),
        ({"form": "seps", "weight": 0.0}, r"weight=0.0; a number above 0 and below 0.5"),
        ({"weight": float("nan")}, r"weight=nan"),
        ({"base": "guided"}, r"base='guided' is guided itself"),
        ({"base": {"name": "anchored", "anchor": {"name": "guided", "form": "laps", "guides": 2}}}, r"guided itself"),
        ({"base": {"name": "mlp", "dim": 3}}, r"leave out dim"),
        ({"base": "mpl"}, r"unknown scorer 'mpl'. Did you mean 'mlp'"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_scorer("guided", DIM, **options)


@pytest.mark.parametrize("guide", [None, GUIDE[:, :1], GUIDE[:1], GUIDE[..., :4]])
def test_features_missing_or_misshapen(guide: Tensor | None) -> None:
    with pytest.raises(InputError, match=r"^guide: .*2 features an image; .* shape \(2, 2, 16\), got"):
        guided()(TOKENS, None, view_of(TOKENS, guide=guide))


def test_it_can_be_saved() -> None:
    options = {"form": "seps", "base": {"name": "mlp", "initial_logit": 1.0}, "guides": 3, "own": False, "weight": 0.1}
    config = scorer_config(create_scorer("guided", DIM, **options))
    assert {key: config[key] for key in options} == options
    again = create_scorer(dim=DIM, **config)
    assert scorer_config(again) == config


# In a model


def test_it_keeps_what_the_guide_points_at(model_of: Make, images_for: Make) -> None:
    scorer = {"name": "guided", "base": "linear", "guides": 1, "own": False, "weight": 1e4, "learned_weights": False}
    model = model_of("vit", stages=(0,), keep_ratio=0.25, scorer=scorer)
    images = images_for(model)
    with torch.no_grad():
        patches = model.adapter.embed(images)[0][:, 1:]
        for wanted in (0, 7, 23):
            _, trace = model(images, guide=patches[:, wanted : wanted + 1], return_trace=True)
            assert (trace.kept[0] == wanted).any(dim=1).all()
            nearest = F.cosine_similarity(patches, patches[:, wanted : wanted + 1], dim=2).topk(6, dim=1).indices
            assert torch.equal(trace.kept[0], nearest.sort(dim=1).values)


@torch.no_grad()
def test_masking_equals_gathering_with_a_guide(family: str, model_of: Make, images_for: Make) -> None:
    model = model_of(family, scorer={"name": "guided", "guides": 2, "weight": 9.0, "learned_weights": False})
    images = images_for(model)
    guide = torch.randn(3, 2, 48, generator=torch.Generator().manual_seed(0))
    logits, trace = model(images, guide=guide, return_trace=True)
    assert torch.equal(model(images, guide=guide), logits)
    model.execution = "mask"
    masked, other = model(images, guide=guide, return_trace=True)
    assert all(torch.equal(a, b) for a, b in zip(trace.kept, other.kept, strict=True))
    torch.testing.assert_close(masked, logits, rtol=1e-4, atol=1e-4)
    _, unguided = model(images, guide=guide.flip(0), return_trace=True)
    assert any(not torch.equal(a, b) for a, b in zip(trace.kept, unguided.kept, strict=True))


@pytest.mark.parametrize("reducer", ["drop", "fuse", "squeeze", "merge_nearest", "aggregate"])
@pytest.mark.parametrize(
    "selector", [name for name in list_selectors() if name != "fixed" and create_selector(name).trains_scorer]
)
def test_every_selector_and_reducer_teaches_it_and_its_guide(
    selector: str, reducer: str, model_of: Make, images_for: Make
) -> None:
    soft = create_selector(selector).soft
    if soft and reducer != "drop":
        pytest.skip("it drops nothing while training")
    model = model_of("vit", stages=(2,), scorer={"name": "guided", "guides": 1}, selector=selector, reducer=reducer)
    model.train()
    guide = torch.randn(3, 1, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model(images_for(model), guide=guide, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(logits, torch.tensor([0, 3, 5])).backward()
    assert (guide.grad != 0).any()
    assert (model.scorers[0].tenths.grad != 0).all()


def test_a_guide_that_nobody_reads_or_that_is_missing(model_of: Make, images_for: Make) -> None:
    plain, model = model_of("vit"), model_of("vit", scorer={"name": "guided", "guides": 1})
    images = images_for(plain)
    with pytest.raises(InputError, match=r"^guide: no scorer of this model .*'guides': G"):
        plain(images, guide=torch.zeros(3, 1, 48))
    for call in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(InputError, match=r"^guide: .* shape \(3, 1, 48\), got nothing"):
            call(images)
        call(images, guide=torch.ones(3, 1, 48))


def test_calibrated_with_a_guide(model_of: Make, images_for: Make) -> None:
    model = model_of("vit", scorer={"name": "guided", "guides": 1})
    images, guide = images_for(model, batch=16), torch.randn(16, 1, 48)
    dynavit.calibrate(model, [(images, {"guide": guide})])
    _, trace = model(images, guide=guide, return_trace=True)
    wanted = model.stage_counts(24)[-1]
    assert abs(float(trace.choices[-1].num_kept.float().mean()) - wanted) <= 1


def test_saved_and_loaded(model_of: Make, images_for: Make, tmp_path: Any) -> None:
    model = dynavit.create_model("test_vit", num_classes=3, scorer={"name": "guided", "guides": 1}).eval()
    with torch.no_grad():
        model.scorers[0].tenths.fill_(0.3)
    model.save_pretrained(tmp_path / "model")
    again = dynavit.load(tmp_path / "model").eval()
    images, guide = torch.randn(2, 3, 160, 160), torch.randn(2, 1, 64)
    assert torch.equal(again(images, guide=guide), model(images, guide=guide))
