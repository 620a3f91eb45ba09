"""Scorers on attention, keys and chance: their formulas, masks, cost, and scorers by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from stages import make_stage
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dynavit
from dynavit.errors import InputError, UnsupportedBackbone
from dynavit.models.attention_bias import attention_mask
from dynavit.scorers import (
    KeyNorm,
    RandomScorer,
    ScorePredictor,
    Scorer,
    StageView,
    base,
    create_scorer,
    list_scorers,
    register_scorer,
    scorer_config,
)
from dynavit.selectors import Random

Make = Callable[..., Any]

DIM, HEADS = 48, 3
ON_ATTENTION = [
    "attention",
    "attention_received",
    "class_attention",
    "distinctness, of keys",
    "key_norm",
    "latent_attention",
    "mean_attention",
    "value_attention",
]
GUIDED = ["guided", "guided, seps", "guided, laps"]
NAMES = [*ON_ATTENTION, *GUIDED, "anchored", "distinctness", "light", "linear", "mlp", "random"]
OPTIONS = {
    "distinctness, of keys": {"importance": "attention", "of": "keys"},
    "guided, seps": {"form": "seps", "base": "mlp"},
    "guided, laps": {"form": "laps"},
}
READ_CLASS_TOKEN = ("class_attention", "value_attention")
SOME_FAMILIES = ["vit", "dinov2_registers", "deit_distilled", "siglip", "dinov3", "rope_mixed", "beit"]
each_scorer = pytest.mark.parametrize("scorer_name", NAMES)
each_scorer_on_attention = pytest.mark.parametrize("scorer_name", ON_ATTENTION)
some_families = pytest.mark.parametrize("name", SOME_FAMILIES)


@pytest.fixture
def stage_of(backbone_of: Make, images_for: Make) -> Make:
    """Function: family, state and timm options to a stage."""
    return partial(make_stage, backbone_of, images_for)


def called(name: str) -> Scorer:
    return create_scorer(name.partition(",")[0], DIM, **OPTIONS.get(name, {}))


def scorer_for(name: str, stage: Any) -> Scorer:
    torch.manual_seed(0)
    scorer = called(name)
    if scorer.needs_class_token and not stage.adapter.has_class_token:
        pytest.skip("no class token")
    if scorer.needs_latent and stage.backbone.global_pool != "map":
        pytest.skip("no latent")
    return scorer


# The formulas


@torch.no_grad()
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", ["vit", "dinov3", "beit"])
def test_class_attention_and_values(name: str, hidden: bool, stage_of: Make) -> None:
    """EViT's and ATS's scores, token by token."""
    stage = stage_of(name, hidden=hidden)
    attention, values = stage.view().attention(), stage.view().values()
    plain = stage.score(create_scorer("class_attention", DIM)).exp()
    weighted = stage.score(create_scorer("value_attention", DIM)).exp()
    for image in range(2):
        for token in range(plain.shape[1]):
            column = stage.num_prefix + token
            if hidden and stage.mask[image, token] == 0:
                continue
            mean = sum(attention[image, head, 0, column] for head in range(HEADS)) / HEADS
            norm = sum(values[image, head, column].square().sum() for head in range(HEADS)).sqrt()
            torch.testing.assert_close(plain[image, token], mean, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(weighted[image, token], mean * norm, rtol=1e-4, atol=1e-7)
    assert not torch.equal(plain.argsort(dim=1), weighted.argsort(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", ["vit", "siglip", "dinov2_registers"])
def test_attention_received(name: str, hidden: bool, stage_of: Make) -> None:
    stage = stage_of(name, hidden=hidden)
    attention = stage.view().attention()
    received = stage.score(create_scorer("attention_received", DIM)).exp()
    for image in range(2):
        asking = [*range(stage.num_prefix)]
        asking += [stage.num_prefix + t for t in range(received.shape[1]) if not hidden or stage.mask[image, t] == 1]
        expected = attention[image, :, asking].mean(dim=(0, 1))[stage.num_prefix :]
        alive = slice(None) if not hidden else stage.mask[image] == 1
        torch.testing.assert_close(received[image, alive], expected[alive], rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_attention_received_weighs_those_that_ask_by_their_mask(stage_of: Make) -> None:
    stage = stage_of("vit")
    stage.mask = torch.rand(stage.positions.shape, generator=torch.Generator().manual_seed(0))
    weight = nn.functional.pad(stage.mask, (1, 0), value=1.0)
    attention = stage.view(training=True).attention().mean(dim=1)
    expected = (torch.einsum("bq,bqk->bk", weight, attention) / weight.sum(dim=1, keepdim=True))[:, 1:]
    received = stage.score(create_scorer("attention_received", DIM), training=True).exp()
    torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_short_keys_or_long_ones(stage_of: Make) -> None:
    stage = stage_of("vit")
    logits = stage.score(KeyNorm())
    norms = stage.view().keys().norm(dim=-1).mean(dim=1)[:, 1:]
    torch.testing.assert_close(logits, -norms)
    assert torch.equal(stage.score(KeyNorm(longest=True)), -logits)
    assert logits.std() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["vit", "siglip", "beit", "dinov2_registers", "dinov3"])
def test_mean_attention(name: str, training: bool, stage_of: Make) -> None:
    """Its query is the mean of the queries of the tokens not hidden; it stands at no place and is not rotated."""
    stage = stage_of(name, hidden=True)
    block, attn, heads = stage.backbone.blocks[1], stage.attn, HEADS
    tokens, alive = block.norm1(stage.x), stage.mask == 1
    view = stage.view()
    queries = torch.stack([view._queries(tokens)[i, :, stage.num_prefix :][:, alive[i]].mean(dim=1) for i in (0, 1)])
    products = torch.einsum("bhd,bhld->bhl", queries * attn.scale, view._rotated(view.keys()))
    if name == "beit":
        products = products + attn.relative_position_bias_table[stage.context[0]].T
    shown = nn.functional.pad(alive, (stage.num_prefix, 0), value=True)
    expected = products.masked_fill(~shown[:, None], -torch.inf).softmax(dim=2)
    assert expected.shape[1] == heads
    received = stage.score(create_scorer("mean_attention", DIM), training=training).exp()
    expected = expected.mean(dim=1)[:, stage.num_prefix :]
    torch.testing.assert_close(received[alive], expected[alive], rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_the_mean_does_not_see_what_hides_behind_the_identity_term(stage_of: Make) -> None:
    """In DynamicViT's form of the mask every token sees itself, but no token may ask on behalf of the hidden ones."""
    stage = stage_of("siglip", hidden=True)
    stage.mask[:, 0] = 0
    scorer = create_scorer("mean_attention", DIM)
    found = []
    for form in ("key", "identity"):
        attention = stage.adapter.view(1, stage.x, None, attention_mask(stage.mask, 0, True, form))
        found.append(scorer(stage.patches, stage.mask, StageView(0, stage.positions, attention)))
    torch.testing.assert_close(found[0], found[1])


def pooled(pool: Any, tokens: Tensor, shown: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weights ``(B, H, L)`` of a pooling head written out, and what it makes of the tokens by them."""
    queries = pool.q(pool.latent).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
    keys, values = pool.kv(tokens).unflatten(2, (2, pool.num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = queries * pool.scale @ keys.transpose(2, 3)
    if shown is not None:
        scores = scores.masked_fill(~shown[:, None, None], -torch.inf)
    weights = scores.softmax(dim=3)
    x = pool.proj((weights @ values).transpose(1, 2).flatten(2))
    return weights[:, :, 0], (x + pool.mlp(pool.norm(x)))[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("siglip", {}),
        ("perception", {"attn_pool_num_heads": 6}),
        ("vit", {"global_pool": "map", "pool_include_prefix": False}),
    ],
)
def test_latent_attention(name: str, options: dict[str, Any], hidden: bool, stage_of: Make) -> None:
    """By the weights with which the model's own head pools, here the tokens after the last block."""
    stage = stage_of(name, hidden=hidden, **options)
    adapter, pool = stage.adapter, stage.backbone.attn_pool
    stage.x = adapter.block(1, stage.x, stage.context, stage.attention_mask())
    tokens, num_prefix = adapter.norm(stage.x), stage.num_prefix
    shown = None if stage.mask is None else nn.functional.pad(stage.mask == 1, (num_prefix, 0), value=True)
    if not adapter.pools_prefix:
        tokens, shown = tokens[:, num_prefix:], None if shown is None else shown[:, num_prefix:]
    weights, made = pooled(pool, tokens, shown)
    # which are those of the head
    torch.testing.assert_close(made, pool(tokens, attn_mask=None if shown is None else shown[:, None, None]))
    attention = stage.view().latent_attention()
    torch.testing.assert_close(attention[..., attention.shape[2] - tokens.shape[1] :], weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(attention.shape[:2]))
    expected = attention.mean(dim=1)[:, num_prefix:]
    found = stage.score(create_scorer("latent_attention", DIM)).exp()
    torch.testing.assert_close(found, expected.clamp(min=torch.finfo(torch.float32).tiny))
    anchored = create_scorer("anchored", DIM, anchor="latent_attention")
    assert anchored.needs_latent
    assert torch.equal(stage.score(anchored).exp(), found)


def test_latent_attention_passes_gradients_to_tokens_and_latent(stage_of: Make) -> None:
    stage = stage_of("siglip", hidden=True)
    stage.x.requires_grad_()
    stage.score(create_scorer("latent_attention", DIM), training=True).square().sum().backward()
    for grad in (stage.x.grad, stage.backbone.attn_pool.latent.grad):
        assert grad.isfinite().all()
        assert grad.norm() > 0


@pytest.mark.parametrize(("name", "pool"), [("vit", "token"), ("gap", "avg")])
def test_without_a_latent_there_is_nothing_to_read(name: str, pool: str, stage_of: Make) -> None:
    stage, message = stage_of(name), rf"global_pool='{pool}'\) has no pooling head with a latent"
    for scorer in ({"name": "latent_attention"}, {"name": "anchored", "anchor": "latent_attention"}):
        with pytest.raises(UnsupportedBackbone, match=rf"scorer '{scorer['name']}': .*{message}"):
            dynavit.prune(stage.backbone, stages=(1,), scorer=scorer)
    with pytest.raises(UnsupportedBackbone, match=message):
        stage.score(create_scorer("latent_attention", DIM))


def test_a_latent_of_another_kind_is_refused(backbone_of: Make) -> None:
    backbone = backbone_of("siglip", depth=2)
    backbone.attn_pool.k_norm = nn.LayerNorm(16)
    with pytest.raises(UnsupportedBackbone, match=r"attn_pool cannot be read: .* without QK-norm"):
        dynavit.prune(backbone, stages=(1,), scorer="latent_attention")


# Likeness


@torch.no_grad()
@pytest.mark.parametrize("of", ["tokens", "keys"])
@pytest.mark.parametrize("importance", [None, "class_attention", "key_norm"])
@pytest.mark.parametrize("hidden", [False, True])
def test_distinctness(importance: str | None, of: str, hidden: bool, stage_of: Make) -> None:
    """One by one: the smallest distance of a token, or its key, to that of a more important one still there."""
    stage = stage_of("vit", hidden=hidden)
    compared = stage.patches if of == "tokens" else stage.view().keys().mean(dim=1)[:, 1:]
    logits = -torch.arange(24.0).expand(2, 24) if importance is None else stage.score(create_scorer(importance, DIM))
    found = stage.score(create_scorer("distinctness", DIM, importance=importance, of=of)).exp()
    for image in range(2):
        alive = [token for token in range(24) if not hidden or stage.mask[image, token] == 1]
        for token in alive:
            above = [other for other in alive if logits[image, other] > logits[image, token]]
            cosines = [
                torch.cosine_similarity(compared[image, token], compared[image, other], dim=0) for other in above
            ]
            torch.testing.assert_close(found[image, token], 1 - max(cosines, default=torch.tensor(-1.0)))


@torch.no_grad()
def test_of_copies_all_but_one_are_told_apart_last(stage_of: Make) -> None:
    """Copies are about equally important; one of each survives, whichever."""
    stage = stage_of("vit")
    stage.x[:, 1:] = stage.x[:, 1:5].repeat_interleave(6, dim=1)
    for options in ({}, {"importance": "attention"}):
        best = stage.score(create_scorer("distinctness", DIM, **options)).topk(4, dim=1).indices
        assert (best // 6).sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 2


def test_distinctness_compares_nothing_else() -> None:
    with pytest.raises(InputError, match=r"of='values'; choose 'tokens' or 'keys'"):
        create_scorer("distinctness", DIM, of="values")


@pytest.mark.parametrize("importance", ["random", "mlp", "anchored", "distinctness", "latent_attention"])
def test_importance_is_read_off_attention(importance: str) -> None:
    with pytest.raises(InputError, match=f"importance='{importance}' is no score of the block's attention"):
        create_scorer("distinctness", DIM, importance=importance)


# Masks


@torch.no_grad()
@each_scorer
def test_hidden_tokens_do_not_matter(scorer_name: str, family: str, stage_of: Make) -> None:
    stage = stage_of(family, hidden=True)
    scorer = scorer_for(scorer_name, stage)
    kept = stage.mask == 1
    logits = stage.score(scorer)
    assert logits.shape == stage.mask.shape
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    before = stage.x
    stage.x = before.clone()
    stage.patches[~kept] = 3 * before.flip(0)[:, stage.num_prefix :][~kept]
    torch.testing.assert_close(stage.score(scorer)[kept], logits[kept], rtol=1e-4, atol=1e-5)
    if scorer_name not in ("key_norm", "linear", "random"):  # shown, they do
        stage.mask = None
        assert (stage.score(scorer)[kept] - logits[kept]).abs().max() > 1e-4


@torch.no_grad()
@each_scorer
def test_masking_equals_gathering(scorer_name: str, family: str, stage_of: Make) -> None:
    """With the context of the tokens kept; the negative control is another context."""
    stage = stage_of(family)
    scorer = scorer_for(scorer_name, stage)
    n = stage.positions.shape[1]
    drawn = [torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: n - 5] for seed in (0, 1)]
    index = torch.stack(drawn).sort(dim=1).values
    stage.mask = torch.zeros(2, n).scatter(1, index, 1.0)
    masked = stage.score(scorer).gather(1, index)
    stage.mask, whole = None, stage.context
    stage.gather(index)
    torch.testing.assert_close(stage.score(scorer), masked, rtol=1e-4, atol=1e-5)
    if (
        whole is not None
        and family != "naflex"
        and scorer_name in ("attention_received", "class_attention", "value_attention")
    ):
        stage.context = stage.adapter.gather(whole, index.flip(0))
        if family in ("eva02", "dinov3", "perception", "rope_mixed") or scorer_name == "attention_received":
            assert (stage.score(scorer) - masked).abs().max() > 1e-3


@each_scorer_on_attention
def test_gradients_stay_finite_with_hidden_tokens(scorer_name: str, stage_of: Make) -> None:
    """Also where a token's weight is 0 or its mask a training step's; those that compare tokens pass none on."""
    for training in (False, True):
        stage = stage_of("vit", hidden=True)
        stage.x.requires_grad_()
        if training:
            stage.mask.requires_grad_()
        logits = stage.score(scorer_for(scorer_name, stage), training=training)
        assert logits.requires_grad == (scorer_name != "distinctness, of keys")
        if not logits.requires_grad:
            continue
        logits.sum().backward()
        assert stage.x.grad.isfinite().all()
        assert (stage.x.grad != 0).any()
        assert not training or stage.mask.grad is None or stage.mask.grad.isfinite().all()


# What scorers ask for


@each_scorer_on_attention
def test_without_attention_it_is_asked_for(scorer_name: str) -> None:
    scorer = called(scorer_name)
    assert scorer.needs_attention
    assert not scorer.learned
    assert not list(scorer.parameters())
    for view in (None, StageView(0, torch.arange(4).expand(1, 4))):
        with pytest.raises(InputError, match=r"^scorer '\w+' reads the attention"):
            scorer(torch.zeros(1, 4, DIM), None, view)


@pytest.mark.parametrize("name", ["siglip", "gap", "gap_registers"])
@each_scorer
def test_models_without_a_class_token(name: str, scorer_name: str, stage_of: Make) -> None:
    stage = stage_of(name)
    scorer = called(scorer_name)
    assert scorer.needs_class_token == (scorer_name in READ_CLASS_TOKEN)
    assert scorer.needs_latent == (scorer_name == "latent_attention")
    if scorer.needs_class_token:
        with pytest.raises(UnsupportedBackbone, match=r"no class token.*'mean_attention'"):
            stage.score(scorer)
    elif not scorer.needs_latent or name == "siglip":
        assert stage.score(scorer).isfinite().all()


def test_the_learned_ones_get_a_gradient() -> None:
    tokens = torch.randn(2, 9, DIM, generator=torch.Generator().manual_seed(0))
    for name in ("mlp", "light", "linear"):
        scorer = create_scorer(name, DIM, initial_logit=1.5)
        assert scorer.learned
        assert not scorer.needs_attention
        logits = scorer(tokens)
        assert abs(float(logits.detach().mean()) - 1.5) < 0.5
        logits.square().sum().backward()
        assert all((p.grad != 0).any() for p in scorer.parameters())


# A free score to start from


@torch.no_grad()
@pytest.mark.parametrize("anchor", ["class_attention", "mean_attention", "attention_received", "key_norm"])
@pytest.mark.parametrize("hidden", [False, True])
def test_anchored_starts_as_its_anchor(anchor: str, hidden: bool, stage_of: Make) -> None:
    stage = stage_of("vit", hidden=hidden)
    scorer, free = create_scorer("anchored", DIM, anchor=anchor), create_scorer(anchor, DIM)
    assert torch.equal(stage.score(scorer), stage.score(free))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stage.score(scorer), stage.score(free))


def test_anchored_learns_its_scale_and_every_layer(stage_of: Make) -> None:
    stage = stage_of("vit")
    torch.manual_seed(0)
    scorer = create_scorer("anchored", DIM)
    optimizer = torch.optim.SGD(scorer.parameters(), lr=0.1)
    start = [parameter.clone() for parameter in scorer.parameters()]
    for _ in range(2):  # the layers before the last one, which starts at zero, follow a step later
        optimizer.zero_grad()
        (stage.score(scorer) - torch.linspace(-4, 0, 24)).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(before, after) for before, after in zip(start, scorer.parameters(), strict=True))


@torch.no_grad()
def test_anchored_may_start_with_other_logits_in_the_same_order(stage_of: Make) -> None:
    stage, free = stage_of("vit"), create_scorer("class_attention", DIM)
    logits = stage.score(create_scorer("anchored", DIM, initial_logit=5.0))
    torch.testing.assert_close(logits, stage.score(free) + 5.0)


@pytest.mark.parametrize("anchor", ["mlp", "anchored"])
def test_an_anchor_learns_nothing(anchor: str) -> None:
    with pytest.raises(InputError, match=f"'anchored': anchor='{anchor}' learns itself"):
        create_scorer("anchored", DIM, anchor=anchor)


@pytest.mark.parametrize(
    "anchor", [3, None, {}, {"name": 3}, {"name": "key_norm", "dim": 7}, {1: 2, "name": "key_norm"}, ["key_norm"]]
)
def test_an_anchor_has_a_name(anchor: Any) -> None:
    with pytest.raises(InputError, match=r"anchor=.*(give a name, or a mapping with 'name'|leave out dim)"):
        create_scorer("anchored", DIM, anchor=anchor)


@torch.no_grad()
def test_an_anchor_may_have_options(stage_of: Make) -> None:
    stage, options = stage_of("vit"), {"name": "key_norm", "longest": True}
    anchored = create_scorer("anchored", DIM, anchor=options)
    assert torch.equal(stage.score(anchored), stage.score(create_scorer(dim=DIM, **options)))
    assert scorer_config(anchored)["anchor"] == options
    with pytest.raises(InputError, match="has no option 'shortest'"):
        create_scorer("anchored", DIM, anchor={"name": "key_norm", "shortest": True})


@pytest.mark.parametrize("reduction", [0, DIM + 1, True])
def test_reduction_leaves_a_layer(reduction: int) -> None:
    for name in ("light", "anchored"):
        with pytest.raises(InputError, match=r"reduction=.*number"):
            create_scorer(name, DIM, reduction=reduction)


def test_light_ones_cost_an_eighth_of_a_square() -> None:
    n, dim = 196, 384
    light = create_scorer("light", dim).macs(n, 1, 6, dim)
    assert light < 1.01 * n * dim * dim / 8
    assert create_scorer("mlp", dim).macs(n, 1, 6, dim) > 10 * light
    free = create_scorer("mean_attention", dim).macs(n, 1, 6, dim)
    assert free == create_scorer("class_attention", dim).macs(n, 1, 6, dim) < light / 4
    assert create_scorer("anchored", dim).macs(n, 1, 6, dim) == light + free


# The random order


def ranks(scorer: RandomScorer, positions: Tensor, stage: int = 0) -> Tensor:
    return scorer(torch.zeros(*positions.shape, DIM), None, StageView(stage, positions))


def test_random_is_one_order_a_seed_and_stage() -> None:
    positions = torch.arange(50).expand(3, 50)
    logits = ranks(RandomScorer(3), positions)
    assert (logits == logits[0]).all()
    assert len(logits[0].unique()) == 50
    assert logits.abs().max() <= 1
    others = [ranks(RandomScorer(4), positions), ranks(RandomScorer(3), positions, stage=1)]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([logits[0], other[0]]))[0, 1])) < 0.5
        assert not torch.equal(other.argsort(dim=1), logits.argsort(dim=1))


def test_random_goes_by_original_position() -> None:
    """Not by who else is there, nor by the order in which they come; and made tokens have a place in it."""
    logits = ranks(RandomScorer(0), torch.arange(50).expand(1, 50))
    some = torch.randperm(50, generator=torch.Generator().manual_seed(0))[None, :20]
    assert torch.equal(ranks(RandomScorer(0), some), logits.gather(1, some))
    assert ranks(RandomScorer(0), torch.tensor([[-1, -1]])).isfinite().all()
    with pytest.raises(InputError, match=r"'random' needs view=StageView"):
        RandomScorer()(torch.zeros(1, 4, DIM))


def test_random_scorer_and_random_selector_agree() -> None:
    positions, alive = torch.arange(40).expand(2, 40), torch.ones(2, 40, dtype=torch.bool)
    for seed, stage in ((0, 0), (7, 2), (-1, 1)):
        chosen = Random(seed).at(stage, positions)(torch.zeros(2, 40), alive, 12).keep
        top = ranks(RandomScorer(seed), positions, stage).topk(12, dim=1).indices
        assert torch.equal(torch.zeros_like(alive).scatter(1, top, True), chosen)


# What they cost


@torch.no_grad()
@some_families
@each_scorer
def test_macs_are_those_counted(name: str, scorer_name: str, stage_of: Make) -> None:
    stage = stage_of(name)
    scorer = scorer_for(scorer_name, stage)
    n = stage.positions.shape[1]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stage.score(scorer)
    counted = counter.get_total_flops() // 2
    if scorer.needs_latent:
        counted += 2 * DIM * DIM  # the query, which both images share
    assert counted == 2 * scorer.macs(n, stage.num_prefix, HEADS, DIM, stage.view().folds)  # two images
    if scorer_name == "class_attention" and not stage.view().folds:
        assert counted != 2 * scorer.macs(n, stage.num_prefix, HEADS, DIM)


@torch.no_grad()
def test_attention_received_costs_what_the_attention_does(stage_of: Make) -> None:
    """All but the values, their product and the projection; folding saves most of that."""
    stage = stage_of("vit")
    n = stage.positions.shape[1]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stage.attended()
    block = counter.get_total_flops() // 4
    received = create_scorer("attention_received", DIM).macs(n, 1, HEADS, DIM)
    assert block == 2 * received
    assert create_scorer("class_attention", DIM).macs(n, 1, HEADS, DIM) < received / 5


# By name


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(base._SCORERS, "classes", dict(base._SCORERS.classes))


class Mine(Scorer):
    """Scores by the first feature.

    More text that the list leaves out.
    """

    name = "mine"

    def __init__(self, dim: int, sign: float = 1.0, label: str | None = None) -> None:
        super().__init__()
        self.dim, self.sign, self.label = dim, sign, label

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        return self.sign * tokens[..., 0]

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        return 0


def test_list_names_and_describes() -> None:
    found = list_scorers()
    assert list(found) == sorted({*NAMES, "distinctness"} - OPTIONS.keys())
    for line in found.values():
        assert line.endswith(".")
        assert "\n" not in line


def test_register_create_and_configure() -> None:
    assert register_scorer(Mine) is Mine
    assert register_scorer(Mine) is Mine  # the same again is no conflict
    assert list_scorers()["mine"] == "Scores by the first feature."
    scorer = create_scorer("mine", 8, sign=-1.0)
    assert isinstance(scorer, Mine)
    assert scorer.dim == 8
    assert scorer_config(scorer) == {"name": "mine", "sign": -1.0, "label": None}
    with_options = (
        create_scorer("mlp", DIM, initial_logit=0.5),
        create_scorer("anchored", DIM, anchor="key_norm", reduction=6, initial_logit=1.0),
        create_scorer("random", DIM, seed=7),
        KeyNorm(),
    )
    for scorer in with_options:
        config = scorer_config(scorer)
        again = create_scorer(**config, dim=DIM)
        assert type(again) is type(scorer)
        assert scorer_config(again) == config
    assert scorer_config(RandomScorer(7)) == {"name": "random", "seed": 7}
    assert scorer_config(ScorePredictor(DIM)) == {"name": "mlp", "initial_logit": 2.0}


def test_what_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown scorer 'class_atention'\. Did you mean 'class_attention'\?.*mlp"):
        create_scorer("class_atention", DIM)
    with pytest.raises(InputError, match=r"'random' has no option 'seeds'\. Did you mean 'seed'"):
        create_scorer("random", DIM, seeds=1)
    with pytest.raises(InputError, match=r"'key_norm' has no option 'dims'.*Its options: longest"):
        create_scorer("key_norm", DIM, dims=1)


def test_what_cannot_be_registered_or_saved_is_refused() -> None:
    for thing in (nn.Linear, Mine(8), lambda: None):
        with pytest.raises(InputError, match="not a subclass of dynavit"):
            register_scorer(thing)  # type: ignore[type-var]
    with pytest.raises(InputError, match=r"Mine is not a registered scorer.*register_scorer"):
        scorer_config(Mine(8))

    class Other(Mine):
        name = "mlp"

    with pytest.raises(InputError, match=r"'mlp' is already registered by dynavit\.scorers\.predictor"):
        register_scorer(Other)
    register_scorer(Mine)
    scorer = Mine(8)
    scorer.sign = torch.ones(1)  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"'sign' of scorer 'mine' cannot be saved.*self\.sign"):
        scorer_config(scorer)
