"""Scorers, placement and reducers inside the model: what holds for every published way to shorten a sequence.

The promises of test_invariants.py, for methods other than dropping by a predictor, on every family that they concern.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dynavit
from dynavit import PrunedViT, Trace
from dynavit.cost.macs import closed_form_macs, count_macs
from dynavit.errors import InputError, UnsupportedBackbone
from dynavit.functional import log_mask
from dynavit.models.counts import stage_counts
from dynavit.models.ratios import checked_ratios

Model = Callable[..., PrunedViT]
Images = Callable[..., Tensor]

METHODS: dict[str, dict[str, Any]] = {
    "evit": {"scorer": "class_attention", "placement": "inside", "count_rule": "current"},
    "evit_fuse": {
        "scorer": "class_attention",
        "placement": "inside",
        "count_rule": "current",
        "reducer": {"name": "fuse", "normalize": False},
    },
    "fuse": {"reducer": "fuse"},
    "squeeze": {"reducer": "squeeze"},
    "squeeze_inside": {"reducer": "squeeze", "scorer": "attention_received", "placement": "inside"},
    "merge_nearest": {"reducer": "merge_nearest", "scorer": "light"},
    "merge_nearest_inside": {
        "reducer": "merge_nearest",
        "placement": "inside",
        "count_rule": "linear",
        "stages": (0, 1, 2, 3),
        "keep_ratio": 0.4,
        "scorer": "distinctness",
    },
    "value_attention": {"scorer": "value_attention"},
    "anchored": {"scorer": {"name": "anchored", "anchor": "mean_attention"}},
    "key_norm": {"scorer": "key_norm"},
    "random": {"scorer": "random"},
    "linear": {"scorer": "linear", "placement": "inside", "stages": (0, 1, 2)},
    "aggregate": {"reducer": {"name": "aggregate", "tokens": 5}},
    "tome": {
        "reducer": "merge",
        "placement": "inside",
        "count_rule": "linear",
        "stages": (0, 1, 2, 3),
        "keep_ratio": 0.4,
    },
    "merge_before": {"reducer": {"name": "merge", "proportional": False}},
}
MASKING = [name for name in METHODS if name not in ("aggregate", "tome", "merge_before")]
READS_CLASS_TOKEN = ("evit", "evit_fuse", "merge_nearest_inside", "value_attention")
WITHOUT_CLASS_TOKEN = ("siglip", "gap", "gap_registers")
SOME = ("vit", "deit_distilled", "dinov2_registers", "siglip", "eva02", "rope_mixed", "beit")
LABELS = torch.tensor([0, 3, 5])

every_method = pytest.mark.parametrize("method", list(METHODS))
each_masking = pytest.mark.parametrize("method", MASKING)
some_families = pytest.mark.parametrize("name", SOME)


@pytest.fixture
def small(model_of: Model) -> Model:
    """Function: family, method and options to a model of 4 blocks that prunes at the last three."""

    def make(name: str, method: str, **options: Any) -> PrunedViT:
        if name in WITHOUT_CLASS_TOKEN and method in READS_CLASS_TOKEN:
            pytest.skip("this family has no class token")
        return model_of(name, **{"depth": 4, "stages": (1, 2, 3), **METHODS[method], **options})

    return make


def forward(model: PrunedViT, images: Tensor, execution: str = "auto", **kwargs: Any) -> tuple[Tensor, Trace]:
    model.execution = execution  # type: ignore[assignment]
    return model(images, return_trace=True, **kwargs)


def held(trace: Trace) -> Tensor:
    """The token that holds each patch ``(B, N, D)``, zero where it is gone."""
    assert trace.features is not None
    assert trace.source is not None
    index = trace.source.clamp(min=0).unsqueeze(-1).expand(-1, -1, trace.features.shape[-1])
    return trace.features.gather(1, index) * (trace.source >= 0).unsqueeze(-1)


# Nothing to do is done exactly


@torch.no_grad()
@every_method
@some_families
def test_ratio_one_is_exact_in_eval(name: str, method: str, small: Model, images_for: Images) -> None:
    model = small(name, method, keep_ratio=1.0)
    images = images_for(model)
    logits, trace = forward(model, images)
    assert torch.equal(logits, model.backbone(images))
    assert all(mask.all() for mask in [stage.kept for stage in trace.stages])


@torch.no_grad()
@every_method
def test_it_does_something(method: str, small: Model, images_for: Images) -> None:
    model = small("vit", method)
    images = images_for(model)
    plain = small("vit", "linear")  # other scores, another place, dropping
    plain.backbone.load_state_dict(model.backbone.state_dict())
    assert not torch.allclose(model(images), model.backbone(images), atol=1e-2)
    assert not torch.allclose(model(images), plain(images), atol=1e-3) or method == "linear"


# Masking equals gathering


@torch.no_grad()
@each_masking
@some_families
def test_mask_equals_gather(name: str, method: str, small: Model, images_for: Images) -> None:
    model = small(name, method)
    images = images_for(model)
    gathered, trace = forward(model, images, "gather")
    masked, other = forward(model, images, "mask")
    torch.testing.assert_close(masked, gathered, rtol=1e-4, atol=1e-4 * float(gathered.std()))
    assert all(map(torch.equal, [stage.kept for stage in other.stages], [stage.kept for stage in trace.stages]))
    assert all(map(torch.equal, [stage.length for stage in other.stages], [stage.length for stage in trace.stages]))
    tokens = held(trace)
    torch.testing.assert_close(held(other), tokens, rtol=1e-4, atol=1e-4 * float(tokens.std()))


@torch.no_grad()
@pytest.mark.parametrize("method", ["evit_fuse", "squeeze", "fuse", "merge_nearest"])
def test_training_forward_is_the_eval_forward(method: str, small: Model, images_for: Images) -> None:
    """The mask of a hard choice hides what gathering removes, up to the 1e-6 that it leaks."""
    model = small("vit", method)
    images = images_for(model)
    logits, trace = forward(model, images)
    trained, other = forward(model.train(), images)
    torch.testing.assert_close(trained, logits, rtol=0, atol=2e-3)
    assert all(map(torch.equal, [stage.kept for stage in other.stages], [stage.kept for stage in trace.stages]))


@pytest.mark.parametrize("method", ["merge_before", "tome", "aggregate"])
def test_what_cannot_be_masked_is_gathered_in_training_and_refused_otherwise(
    method: str, small: Model, images_for: Images
) -> None:
    model = small("vit", method).train()
    images = images_for(model)
    _, trace = forward(model, images)
    assert trace.features is not None
    assert trace.features.shape[1] < 24
    with pytest.raises(InputError, match="it cannot mask them"):
        forward(model, images, "mask")


# What is where


@torch.no_grad()
@every_method
def test_trace_follows_every_patch(method: str, small: Model, images_for: Images) -> None:
    model = small("vit", method)
    _, trace = forward(model, images_for(model))
    assert trace.source is not None
    assert trace.positions is not None
    for image in range(3):
        positions, source = trace.positions[image].tolist(), trace.source[image].tolist()
        for row, patch in enumerate(positions):
            if patch >= 0:
                assert source[patch] == row  # a token at a place holds at least the patch of that place
        keeps = trace.stages[-1].kept[image].nonzero().flatten().tolist()
        if method == "aggregate":  # whose mixtures stand nowhere
            assert set(positions) == {-1}
        else:
            assert sorted(p for p in positions if p >= 0) == keeps
        gone = [patch for patch, row in enumerate(source) if row < 0]
        if "merge" in method or method in ("tome", "squeeze", "squeeze_inside", "fuse", "evit_fuse"):
            assert not gone
        else:
            assert gone
    for earlier, later in pairwise(stage.kept for stage in trace.stages):
        assert not (later & ~earlier).any()


@torch.no_grad()
def test_numbers_of_tokens_follow_the_rule(small: Model, images_for: Images) -> None:
    evit = small("vit", "evit", keep_ratio=0.7)
    _, trace = forward(evit, images_for(evit))
    assert [int(count[0]) for count in trace.counts] == [17, 12, 9]  # of 24, each time rounded up
    fused = small("vit", "evit_fuse", keep_ratio=0.7)
    _, trace = forward(fused, images_for(fused))
    assert [int(length[0]) for length in [stage.length for stage in trace.stages]] == [
        18,
        14,
        11,
    ]  # 17 + 1; .7 of 18 is 13, + 1; ...
    tome = small("vit", "tome", keep_ratio=0.5)
    _, trace = forward(tome, images_for(tome))
    assert [int(length[0]) for length in [stage.length for stage in trace.stages]] == [21, 18, 15, 12]
    _, trace = forward(tome, images_for(tome), keep_counts=[20, 16, 12, 8])
    assert [int(length[0]) for length in [stage.length for stage in trace.stages]] == [20, 16, 12, 8]
    aggregated = small("vit", "aggregate", keep_ratio=0.7)
    _, trace = forward(aggregated, images_for(aggregated))
    assert trace.features is not None
    assert trace.features.shape[1] == 5 + 1


def test_count_rules() -> None:
    assert checked_ratios(0.5, 3, "original") == (0.5, 0.25, 0.125)
    assert checked_ratios(0.5, 2, "linear") == (0.75, 0.5)
    assert checked_ratios(0.5, 2, "current") == (0.5, 0.5)
    assert checked_ratios([0.5, 0.9], 2, "current") == (0.5, 0.9)
    with pytest.raises(InputError, match="none larger"):
        checked_ratios([0.5, 0.9], 2, "linear")
    for counts in (stage_counts(torch.tensor([10, 7, 1]), (0.5, 0.3)), stage_counts(10, (0.5, 0.3))):
        assert torch.as_tensor(counts[1]).reshape(-1)[0] == 3
    assert [count.tolist() for count in stage_counts(torch.tensor([10, 7, 1]), (0.5, 0.3), "current")] == [
        [5, 4, 1],
        [2, 2, 1],
    ]


@torch.no_grad()
@every_method
def test_batch_equals_its_images_one_by_one(method: str, small: Model, images_for: Images) -> None:
    model = small("vit", method)
    images = images_for(model)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(together, model(images))


@torch.no_grad()
@pytest.mark.parametrize(
    "method",
    ["evit", "evit_fuse", "squeeze", "merge_nearest", "fuse", "value_attention", "key_norm", "aggregate"],
)
@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_the_order_of_patches_does_not_matter(name: str, method: str, small: Model, images_for: Images) -> None:
    """Patches with their positions in another order: the same choice and output."""
    model = small(name, method)
    images = images_for(model)
    order = torch.randperm(model.adapter.grid_size[0] * model.adapter.grid_size[1])
    logits, trace = forward(model, images)
    model.adapter = copy.copy(model.adapter)
    embed, num_prefix = model.adapter.embed, model.num_prefix_tokens

    def reordered(images: Tensor) -> tuple[Tensor, Any]:
        x, context = embed(images)
        return torch.cat([x[:, :num_prefix], x[:, num_prefix:][:, order]], dim=1), context

    model.adapter.embed = reordered  # type: ignore[method-assign]
    other_logits, other = forward(model, images)
    torch.testing.assert_close(other_logits, logits, rtol=1e-4, atol=1e-4)
    for mask, theirs in zip(
        [stage.kept for stage in trace.stages], [stage.kept for stage in other.stages], strict=True
    ):
        assert torch.equal(theirs, mask[:, order])


# Learning


@pytest.mark.parametrize("method", ["fuse", "squeeze", "merge_nearest", "aggregate", "linear", "anchored"])
@pytest.mark.parametrize("execution", ["auto", "gather"])
def test_scorers_and_reducers_learn(method: str, execution: str, small: Model, images_for: Images) -> None:
    model = small("vit", method).train()
    logits, _ = forward(model, images_for(model), execution)
    F.cross_entropy(logits, LABELS).backward()
    for part in (*model.scorers, *([model.reducer] if method == "aggregate" else [])):
        norms = [float(p.grad.norm()) for p in part.parameters() if p.grad is not None]
        assert norms
        assert all(torch.isfinite(torch.tensor(norms)))
        assert max(norms) > 1e-6
    dense = small("vit", method, stages=()).train()
    dense.load_state_dict(model.state_dict(), strict=False)
    F.cross_entropy(dense(images_for(dense)), LABELS).backward()
    assert gradient_norm(model.backbone) < 10 * gradient_norm(dense.backbone)


@every_method
def test_trains_at_ratio_one(method: str, small: Model, images_for: Images) -> None:
    """As a warm-up of the keep ratio begins: nothing is dropped, everything is finite, parameters stay in the graph."""
    model = small("vit", method).train()
    counts = [24] * len(model.stages)
    logits, _ = forward(model, images_for(model), keep_counts=counts)
    F.cross_entropy(logits, LABELS).backward()
    assert torch.isfinite(logits).all()
    for part in (model.backbone, model.scorers, model.reducer):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def gradient_norm(module: nn.Module) -> float:
    return float(sum(p.grad.square().sum() for p in module.parameters() if p.grad is not None)) ** 0.5


@pytest.mark.parametrize("reducer", ["fuse", "squeeze", "merge_nearest", "aggregate"])
def test_soft_masks_give_a_reducer_nothing(reducer: str, model_of: Model, images_for: Images) -> None:
    model = model_of("vit", selector="gumbel_sigmoid", reducer=reducer).train()
    with pytest.raises(InputError, match=r"drops no token while training.*reducer='drop'"):
        model(images_for(model))
    assert model.eval()(images_for(model)).shape == (3, 7)


@pytest.mark.parametrize("reducer", ["fuse", "squeeze", "merge_nearest"])
def test_gates_train_with_reducers(reducer: str, model_of: Model, images_for: Images) -> None:
    """The number dropped differs between images, and may be none."""
    model = model_of("vit", selector="ste", reducer=reducer).train()
    for bias in (-8.0, 0.0, 8.0):
        for predictor in model.scorers:
            predictor.score[-1].bias.data.fill_(bias)  # type: ignore[index, union-attr]
        model.zero_grad()
        logits, trace = forward(model, images_for(model), generator=torch.Generator().manual_seed(0))
        F.cross_entropy(logits, LABELS).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        if bias == 8.0:
            assert trace.stages[0].kept.all()


# Intermediate features


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "dinov2_registers", "siglip", "eva02", "beit"])
def test_intermediates_without_stages_are_timm_s(name: str, model_of: Model, images_for: Images) -> None:
    model = model_of(name, stages=())
    images = images_for(model)
    for options in ({}, {"norm": True, "indices": 2}, {"indices": [0, -1], "return_prefix_tokens": True}):
        final, features = model.forward_intermediates(images, **options)
        expected_final, expected = model.backbone.forward_intermediates(images, **options)
        assert torch.equal(final, expected_final)
        assert len(features) == len(expected)
        for mine, theirs in zip(features, expected, strict=True):
            if isinstance(mine, tuple):
                assert torch.equal(mine[1], theirs[1])
                mine, theirs = mine[0], theirs[0]
            assert torch.equal(mine, theirs)


@torch.no_grad()
@every_method
@pytest.mark.parametrize("name", ["vit", "eva02"])
def test_intermediates_hold_every_patch(name: str, method: str, small: Model, images_for: Images) -> None:
    model = small(name, method)
    images = images_for(model)
    final, features = model.forward_intermediates(images, norm=True, output_fmt="NLC")
    logits, trace = forward(model, images)
    assert torch.equal(final, model.forward_features(images))
    assert torch.equal(model.forward_head(final, weight=trace.weight), logits)
    gone = trace.source == -1
    assert torch.equal(features[-1][~gone], held(trace)[~gone])
    # dropped patches keep what they were when they went: before the first stage nothing is dropped
    at = model.stages[0]
    dense_model = copy.copy(model)
    dense_model.stages, dense_model.keep_ratios = (), ()
    _, dense = dense_model.forward_intermediates(images, norm=True, output_fmt="NLC")
    if at:
        assert torch.equal(features[at - 1], dense[at - 1])
        if model.placement == "before" and gone.any() and len(model.stages) == 3:
            first = ~trace.stages[0].kept & gone
            assert torch.equal(features[-1][first], dense[at - 1][first])


@torch.no_grad()
def test_intermediates_are_on_the_grid(small: Model, images_for: Images) -> None:
    model = small("vit", "evit")
    images = images_for(model)
    rows = model.forward_intermediates(images, indices=[3], output_fmt="NLC", intermediates_only=True)[0]
    grid = model.forward_intermediates(images, indices=[3], intermediates_only=True)[0]
    assert grid.shape == (3, 48, 4, 6)
    assert torch.equal(grid.flatten(2).transpose(1, 2), rows)
    with pytest.raises(InputError, match="blocks 0 to 3"):
        model.forward_intermediates(images, indices=[4])
    for number in (0, 5):
        with pytest.raises(InputError, match="1 to 4"):
            model.forward_intermediates(images, indices=number)
    with pytest.raises(InputError, match="'NCHW' or 'NLC'"):
        model.forward_intermediates(images, output_fmt="NHWC")


# Cost, saving, exporting, refusing


@every_method
@pytest.mark.parametrize("name", ["vit", "dinov2_registers", "siglip", "eva02", "beit"])
def test_closed_form_macs_are_the_counted_ones(name: str, method: str, small: Model) -> None:
    model = small(name, method)
    assert closed_form_macs(model) == count_macs(model)


@torch.no_grad()
@pytest.mark.parametrize(
    ("scorer", "placement"),
    [("latent_attention", "inside"), ({"name": "anchored", "anchor": "latent_attention"}, "before")],
)
def test_a_pooling_latent_chooses(
    scorer: Any, placement: str, model_of: Model, images_for: Images, tmp_path: Path
) -> None:
    """Alike in both executions, at the cost that is said, and after loading."""
    parts = {"scorer": scorer, "placement": placement, "reducer": "merge_nearest"}
    model = model_of("siglip", depth=4, stages=(1, 2), **parts)
    images = images_for(model)
    (gathered, trace), (masked, other) = (forward(model, images, execution) for execution in ("gather", "mask"))
    torch.testing.assert_close(masked, gathered, rtol=1e-4, atol=1e-4 * float(gathered.std()))
    assert all(map(torch.equal, trace.kept, other.kept))
    model.execution = "auto"
    assert closed_form_macs(model) == count_macs(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(dynavit.load(tmp_path).eval()(images), gathered)


@torch.no_grad()
@every_method
def test_saved_and_loaded(method: str, small: Model, images_for: Images, tmp_path: Path) -> None:
    model = small("vit", method)
    model.save_pretrained(tmp_path)
    loaded = dynavit.load(tmp_path)
    images = images_for(model)
    assert torch.equal(loaded(images), model(images))
    assert dynavit.load(tmp_path, keep_ratio=1.0).keep_ratios == (1.0,) * len(model.stages)


@pytest.mark.parametrize(
    "method",
    ["tome", *(pytest.param(name, marks=pytest.mark.slow) for name in ("evit_fuse", "squeeze", "aggregate", "random"))],
)
@pytest.mark.parametrize("name", ["vit", pytest.param("eva02", marks=pytest.mark.slow)])
def test_torch_export(name: str, method: str, small: Model, images_for: Images) -> None:
    model = small(name, method)
    images = images_for(model)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images,), dynamic_shapes={"images": {0: batch}})
    for size in (1, 2, 3):
        torch.testing.assert_close(program.module()(images[:size]), model(images[:size]), rtol=1e-5, atol=1e-5)


def test_models_without_class_token_say_what_they_cannot() -> None:
    with pytest.raises(UnsupportedBackbone, match=r"'class_attention'.*this backbone has none.*'mean_attention'"):
        dynavit.create_model("vit_base_patch16_siglip_224", scorer="class_attention", depth=1, stages=(0,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "after"}, "placement='after'"),
        ({"count_rule": "ceil"}, "count_rule='ceil'"),
        ({"scorer": "class_atention"}, "class_attention"),
        ({"reducer": {"name": "fuse", "normalise": True}}, "normalize"),
        ({"scorer": {"scale": 2}}, "scorer=.*name"),
        ({"scorer": {"name": "mlp", "dim": 7}}, "leave out dim"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dynavit.create_model("vit_tiny_patch16_224", depth=2, stages=(1,), **options)


def test_a_scorer_that_could_never_learn_is_refused() -> None:
    options: dict[str, Any] = {"depth": 2, "stages": (1,), "placement": "inside", "scorer": "mlp"}
    with pytest.raises(InputError, match=r"only the class token is read.*would never learn"):
        dynavit.create_model("vit_tiny_patch16_224", **options)
    dynavit.create_model("vit_tiny_patch16_224", global_pool="avg", **options)
    dynavit.create_model("vit_tiny_patch16_224", **{**options, "scorer": "key_norm"})


def test_merging_halves_at_most(small: Model, images_for: Images) -> None:
    model = small("vit", "merge_before", keep_ratio=0.4)
    with pytest.raises(InputError, match="at most halves"):
        model(images_for(model))


def test_prune_with_a_scorer_instance_is_refused() -> None:
    """One scorer serves one stage, so a description is wanted, not an instance."""
    from dynavit.scorers import ScorePredictor

    backbone = timm.create_model("vit_tiny_patch16_224", depth=2)
    with pytest.raises(InputError, match=r"scorer=.*give a name"):
        dynavit.prune(backbone, stages=(1,), scorer=ScorePredictor(192))  # type: ignore[arg-type]


# Where tokens do not all count alike


@torch.no_grad()
@pytest.mark.parametrize("pool", ["avg", "map"])
def test_pooling_counts_merged_tokens_as_often_as_they_are_patches(pool: str, model_of: Model) -> None:
    """Merging equal tokens loses nothing, if pooling and attention know how many they are."""
    options = {"stages": (0,), "placement": "inside", "keep_ratio": 0.5, "reducer": "merge", "global_pool": pool}
    model = model_of("vit", class_token=False, **options)
    model.backbone.pos_embed.zero_()
    image = torch.randn(1, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(1, 3, 64, 96).clone()
    image[..., :16, :16] += 1  # one patch differs from the 23 others
    logits, trace = forward(model, image)
    assert trace.weight is not None
    assert trace.weight.sum() == 24
    assert trace.weight.max() > 1
    torch.testing.assert_close(logits, model.backbone(image), rtol=1e-4, atol=1e-4)
    tokens = model.forward_features(image)
    with pytest.raises(InputError, match=r"merged tokens are several.*weight=trace.weight"):
        model.forward_head(tokens)
    assert torch.equal(model.forward_head(tokens, weight=trace.weight), logits)


@torch.no_grad()
def test_head_wants_to_know_of_padding(model_of: Model, images_for: Images) -> None:
    model = model_of("gap")
    images = images_for(model)
    model.set_thresholds([0.0, 0.0, 0.0])
    logits, trace = forward(model, images)
    tokens = model.forward_features(images)
    with pytest.raises(InputError, match="shorter images are padded"):
        model.forward_head(tokens)
    assert torch.equal(model.forward_head(tokens, weight=trace.weight), logits)


@pytest.mark.parametrize("method", ["fuse", "squeeze", "merge_nearest", "evit_fuse"])
@pytest.mark.parametrize("counts", [[24, 20, 16], [20, 21, 10], [24, 24, 24]])
def test_training_gathers_what_it_would_mask(method: str, counts: list[int], small: Model, images_for: Images) -> None:
    """Also after a stage that dropped nothing, whose made token does not exist."""
    model = small("vit", method).train()
    images = images_for(model)
    gathered, trace = forward(model, images, "gather", keep_counts=counts)
    masked, other = forward(model, images, "mask", keep_counts=counts)
    torch.testing.assert_close(gathered, masked, rtol=0, atol=2e-3)
    assert all(map(torch.equal, [stage.length for stage in trace.stages], [stage.length for stage in other.stages]))
    if counts == [24, 24, 24]:
        torch.testing.assert_close(gathered, model.backbone(images), rtol=0, atol=2e-3)


def test_counts_know_which_tokens_are_made(model_of: Model) -> None:
    assert stage_counts(24, (1.0, 0.5), "current", makes=1) == [24, 12]
    assert stage_counts(1, (0.7, 0.7, 0.7), "current", makes=1) == [1, 1, 1]
    drop = model_of("vit", count_rule="current")
    mixed = model_of("vit", count_rule="current", reducer="aggregate")  # which makes a token after the last stage only
    assert mixed.stage_counts(24) == drop.stage_counts(24) == [17, 12, 9]


@torch.no_grad()
def test_given_counts_come_before_thresholds(model_of: Model, images_for: Images) -> None:
    model = model_of("vit")
    images = images_for(model)
    plain = forward(model, images, keep_counts=[9, 5, 2])[0]
    model.set_thresholds([0.0, 0.0, 0.0])
    assert torch.equal(forward(model, images, keep_counts=[9, 5, 2])[0], plain)


def test_what_was_calibrated_for_something_else_is_not_loaded(model_of: Model, tmp_path: Path) -> None:
    model = model_of("vit")
    model.set_thresholds([float("-inf"), 0.5, float("inf")])
    model.save_pretrained(tmp_path)
    assert "Infinity" not in (tmp_path / "config.json").read_text()
    assert dynavit.load(tmp_path).thresholds == (float("-inf"), 0.5, float("inf"))
    for other in ({"keep_ratio": 0.5}, {"selector": "random"}, {"reducer": "squeeze"}, {"placement": "inside"}):
        assert dynavit.load(tmp_path, **other).thresholds is None
    for wrong in ([0.0], [float("nan")] * 3):
        with pytest.raises(InputError, match="thresholds"):
            model.set_thresholds(wrong)


def test_the_scorer_is_remembered_where_none_is_needed(model_of: Model, tmp_path: Path) -> None:
    model_of("vit", stages=(), scorer="key_norm").save_pretrained(tmp_path)
    assert dynavit.load(tmp_path, stages=(1,), keep_ratio=0.5).scorers[0].name == "key_norm"


def test_attention_that_cannot_be_read_is_refused_at_once() -> None:
    backbone = timm.create_model("vit_tiny_patch16_224", depth=2, attn_layer="diff")
    for options, reader in (({"scorer": "attention"}, "scorer 'attention'"), ({"reducer": "merge"}, "reducer 'merge'")):
        with pytest.raises(
            UnsupportedBackbone, match=f"{reader}: .*DiffAttention cannot be read.*'distinctness' and 'mlp'"
        ):
            dynavit.prune(backbone, stages=(1,), **options)  # type: ignore[arg-type]
    dynavit.prune(backbone, stages=(1,))


# Merging by scores


@torch.no_grad()
@pytest.mark.parametrize("execution", ["gather", "mask"])
@pytest.mark.parametrize(("pool", "class_token"), [("token", True), ("avg", False), ("map", False)])
def test_merging_copies_loses_nothing_whatever_the_scores(
    execution: str, pool: str, class_token: bool, model_of: Model
) -> None:
    """Of patches that come in three kinds any may go, as long as one of each kind is left."""
    options = {"stages": (0, 1, 3), "keep_ratio": None, "keep_ratios": (0.7, 0.5, 0.3)}
    for seed in range(4):
        scorer = {"name": "random", "seed": seed}
        head = {"global_pool": pool, "class_token": class_token}
        model = model_of("vit", reducer="merge_nearest", scorer=scorer, **head, **options).double()
        model.backbone.pos_embed.zero_()
        kinds = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        number = torch.arange(24) % 3
        image = kinds[number].unflatten(0, (4, 6)).permute(2, 0, 3, 1, 4).reshape(1, 3, 64, 96)
        logits, trace = forward(model, image, execution)
        assert {int(number[patch]) for patch in trace.kept[-1][0]} == {0, 1, 2}
        torch.testing.assert_close(logits, model.backbone(image), rtol=0, atol=1e-10)
    model.reducer = dynavit.reducers.Squeeze()  # the control, which does not count
    assert (forward(model, image, execution)[0] - model.backbone(image)).abs().max() > 1e-3


def weighted_merging(model_of: Model, scorer: str) -> PrunedViT:
    """A model whose selector teaches no scorer, but whose reducer weighs by scores."""
    parts = {"scorer": scorer, "reducer": {"name": "merge_nearest", "weighted": True}}
    return model_of("vit", depth=4, stages=(1, 2), selector={"name": "topk", "gradient": "none"}, **parts)


def test_weights_teach_a_scorer_alike_in_both_executions(
    model_of: Model, images_for: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_mask, "__defaults__", (1e-13,))  # so that hidden tokens leak less than is measured
    model = weighted_merging(model_of, "anchored").double().train()
    images, found = images_for(model).double(), []
    for execution, counts in (("gather", None), ("mask", None), ("gather", (24, 24))):
        model.zero_grad()
        logits, trace = forward(model, images, execution, keep_counts=counts)
        assert trace.execution == execution
        F.cross_entropy(logits, LABELS).backward()
        parameters = [*model.scorers.parameters(), *model.reducer.parameters()]
        assert all(p.grad is not None for p in parameters)  # even where nothing is merged
        found.append(torch.cat([p.grad.flatten() for p in parameters]))
    assert found[0].abs().max() > 1e-4
    assert (found[2] == 0).all()
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_weighted_merging_is_saved(model_of: Model, images_for: Images, tmp_path: Path) -> None:
    model = weighted_merging(model_of, "anchored")
    images, beta = images_for(model), model.reducer.beta
    logits = model(images)
    model.save_pretrained(tmp_path)
    again = dynavit.load(tmp_path).eval()
    assert torch.equal(again.reducer.beta, beta)
    assert torch.equal(again(images), logits)
    beta.zero_()
    assert not torch.allclose(model(images), logits, atol=1e-4)
    model.reducer = dynavit.reducers.MergeNearest()
    plain = model(images)
    model.reducer = again.reducer
    again.reducer.beta.zero_()
    assert torch.equal(model(images), plain)


@torch.no_grad()
@pytest.mark.parametrize("method", ["merge_nearest", "merge_nearest_inside", "tome"])
def test_every_patch_is_counted_once(method: str, small: Model, images_for: Images) -> None:
    model = small("vit", method)
    _, trace = forward(model, images_for(model))
    assert trace.weight is not None
    held_by = torch.zeros_like(trace.weight).scatter_add(1, trace.source, torch.ones_like(trace.source).float())
    assert torch.equal(trace.weight, held_by)


@torch.no_grad()
def test_half_precision_merges_the_same(small: Model, images_for: Images) -> None:
    model = small("vit", "merge_nearest_inside")
    images = images_for(model)
    logits = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.cosine_similarity(model(images).float(), logits).min() > 0.97
    model = model.bfloat16()
    assert F.cosine_similarity(model(images.bfloat16()).float(), logits).min() > 0.95


def soft_decisions(seed: int = 0) -> list[Tensor]:
    """Which of 24 patches two stages keep in two images, fp64: of the first image one of each is kept in part."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(24, generator=generator) for _ in range(2)])
    masks = [torch.zeros(2, 24, dtype=torch.float64).scatter(1, order[:, :k], 1.0) for k in (14, 8)]
    masks[0][0, order[0, [2, 20]]] = torch.tensor([0.9, 0.3], dtype=torch.float64)
    masks[1][0, order[0, [5, 11]]] = torch.tensor([0.8, 0.2], dtype=torch.float64)
    return masks


def merging_by(masks: list[Tensor], model_of: Model, **options: Any) -> PrunedViT:
    selector = dynavit.selectors.Fixed(masks)
    options = {"depth": 4, "stages": (1, 2), "reducer": "merge_nearest", "selector": selector, **options}
    return model_of("vit", **options).double().train()


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("form", ["key", "identity"])
def test_the_gradient_of_keeping_or_merging_is_exact(pool: str, form: str, model_of: Model, images_for: Images) -> None:
    """Central differences along the masks of tokens kept and not kept, wholly or in part, at frozen partners."""
    masks = soft_decisions()
    model = merging_by(masks, model_of, global_pool=pool, class_token=pool == "token")
    model.mask_form = form  # type: ignore[assignment]
    images = images_for(model, 2).double()

    def loss() -> Tensor:
        model.selector = dynavit.selectors.Fixed(masks)
        logits, trace = forward(model, images, "mask")
        assert trace.weight is not None
        torch.testing.assert_close(trace.weight.sum(dim=1), torch.full((2,), 24.0, dtype=torch.float64))
        return logits.square().sum()

    for mask in masks:
        mask.requires_grad_()
    gradients = torch.autograd.grad(loss(), masks)
    step = 1e-5
    for mask, gradient in zip(masks, gradients, strict=True):
        assert (gradient[1] != 0).any()
        for patch in [int(p) for p in ((mask[0] > 0) & (mask[0] < 1)).nonzero()]:
            values = []
            for sign in (1, -1):
                mask.data[0, patch] += sign * step
                values.append(float(loss().detach()))
                mask.data[0, patch] -= sign * step
            difference = (values[0] - values[1]) / (2 * step)
            assert difference == pytest.approx(float(gradient[0, patch]), rel=1e-7, abs=1e-7)


def test_it_makes_no_difference_whether_a_copy_is_kept_or_merged(model_of: Model) -> None:
    """The gradient of its mask vanishes, for copies kept and not kept; dropping a copy would matter."""
    masks = [mask.round().requires_grad_() for mask in soft_decisions()]
    kinds = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = kinds[torch.arange(24) % 3].unflatten(0, (4, 6)).permute(2, 0, 3, 1, 4).reshape(1, 3, 64, 96)
    norms = {}
    for reducer in ("merge_nearest", "drop"):
        model = merging_by(masks, model_of, reducer=reducer)
        model.backbone.pos_embed.data.zero_()
        logits, _ = forward(model, image.expand(2, -1, -1, -1), "mask")
        norms[reducer] = max(float(g.abs().max()) for g in torch.autograd.grad(logits.square().sum(), masks))
    assert norms["merge_nearest"] < 1e-3 * norms["drop"]
