"""Section 4 of the design: what holds for every backbone family and selector."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dynavit
from dynavit import InputError, PrunedViT, Trace
from dynavit.functional import log_mask, num_keep
from dynavit.selectors import Fixed, create_selector, list_selectors

Model = Callable[..., PrunedViT]
Images = Callable[..., Tensor]

TRAINABLE = [
    name for name in list_selectors() if name not in ("fixed", "random") and create_selector(name).trains_scorer
]
LABELS = torch.tensor([0, 3, 5])
ADDED_POSITIONS = (  # before the first block, to patches cut from the image without overlap
    *("vit", "deit_distilled", "deit3", "dinov2_registers", "clip", "siglip", "gap", "gap_registers"),
)


def forward(model: PrunedViT, images: Tensor, seed: int = 0, **kwargs: Any) -> tuple[Tensor, Trace]:
    return model(images, return_trace=True, generator=torch.Generator().manual_seed(seed), **kwargs)


def scores_of(model: PrunedViT, images: Tensor, **kwargs: Any) -> tuple[Tensor, Trace, list[Tensor]]:
    """Run the model; also return what its scorers gave, with their gradients retained."""
    scores: list[Tensor] = []

    def record(module: nn.Module, arguments: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
        scores.append(output)

    hooks = [predictor.register_forward_hook(record) for predictor in model.scorers]
    try:
        logits, trace = forward(model, images, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, trace, scores


def centre(model: PrunedViT, images: Tensor) -> PrunedViT:
    """Shift each predictor's logits to mean 0, so that gates keep about half of the tokens."""
    for stage, predictor in enumerate(model.scorers):
        with torch.no_grad():
            predictor.score[-1].bias -= scores_of(model, images)[2][stage].mean()  # type: ignore[index]
    return model


def gradient_norm(module: nn.Module) -> float:
    return float(sum(p.grad.square().sum() for p in module.parameters() if p.grad is not None)) ** 0.5


def test_the_models_are_no_trivial_ones(family: str, model_of: Model, images_for: Images) -> None:
    """What follows would prove little with activations near zero or scores that hardly differ."""
    model = model_of(family)
    spread: list[float] = []
    for block in model.backbone.blocks:
        block.register_forward_hook(lambda m, i, output: spread.append(float(output.std())))
    images = images_for(model)
    with torch.no_grad():
        logits, _, scores = scores_of(model, images)
        dense = model.backbone(images)
    assert 1 < min(spread) < max(spread) < 5
    assert all(score.std() > 0.5 for score in scores)
    assert (logits - dense).abs().max() > 0.1  # pruning matters
    assert dense.std(dim=0).mean() > 0.1  # and so do the images


# 1. Nothing to do is done exactly


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("execution", ["auto", "mask", "gather"])
def test_without_stages_exactly_timm(
    family: str, training: bool, execution: str, model_of: Model, images_for: Images
) -> None:
    model = model_of(family, stages=())
    model.train(training)
    model.execution = execution  # type: ignore[assignment]
    images = images_for(model)
    logits, trace = forward(model, images)
    assert torch.equal(logits, model.backbone(images))
    assert torch.equal(model.forward_features(images), model.backbone.forward_features(images))
    assert [stage.kept for stage in trace.stages] == [choice.expected for choice in trace.choices] == trace.kept == []


@torch.no_grad()
@pytest.mark.parametrize("execution", ["mask", "gather"])
def test_ratio_one_is_exact_in_eval(family: str, execution: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family, keep_ratio=1.0)
    model.execution = execution  # type: ignore[assignment]
    images = images_for(model)
    logits, trace = forward(model, images)
    assert torch.equal(logits, model.backbone(images))
    assert all(mask.all() for mask in [stage.kept for stage in trace.stages])
    assert len([stage.kept for stage in trace.stages]) == 3


@pytest.mark.parametrize("selector", TRAINABLE)
def test_at_ratio_one_scorers_stay_in_the_training_graph(
    family: str, selector: str, model_of: Model, images_for: Images
) -> None:
    model = model_of(family, keep_ratio=1.0, selector=selector).train()
    images = images_for(model)
    logits, trace = forward(model, images)
    (F.cross_entropy(logits, LABELS) + sum(e.mean() for e in [choice.expected for choice in trace.choices])).backward()
    for name, parameter in model.named_parameters():
        if "head_dist" not in name:
            assert parameter.grad is not None, name
    if model.selector.fixed_k:
        torch.testing.assert_close(logits, model.backbone(images), atol=1e-5, rtol=1e-5)


# 2. Masking equals gathering


def assert_same_outcome(family: str, masked: tuple[Tensor, Trace], gathered: tuple[Tensor, Trace]) -> None:
    """Same logits, and same final tokens where both have them: 1e-4 of their scale."""
    torch.testing.assert_close(masked[0], gathered[0], rtol=1e-4, atol=1e-4 * float(gathered[0].std()))
    for mine, theirs in zip(
        [stage.kept for stage in masked[1].stages], [stage.kept for stage in gathered[1].stages], strict=True
    ):
        assert torch.equal(mine, theirs)
    all_tokens, tokens, positions = masked[1].features, gathered[1].features, gathered[1].positions
    assert all_tokens is not None
    assert tokens is not None
    assert positions is not None
    assert tokens.shape[1] < all_tokens.shape[1]
    picked = all_tokens.gather(1, positions[..., None].expand_as(tokens))
    torch.testing.assert_close(picked, tokens, rtol=1e-4, atol=1e-4 * float(tokens.std()))


@torch.no_grad()
@pytest.mark.parametrize("selector", [*TRAINABLE, "random"])
def test_mask_equals_gather(family: str, selector: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family, selector=selector)
    images = images_for(model)
    model.execution = "gather"
    gathered = forward(model, images)
    model.execution = "mask"
    assert_same_outcome(family, forward(model, images), gathered)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["avg", "map"])
def test_mask_equals_gather_where_pooling_includes_the_prefix(pool: str, model_of: Model, images_for: Images) -> None:
    model = model_of("gap_registers", pool_include_prefix=True, global_pool=pool)
    images = images_for(model)
    gathered = forward(model, images)
    model.execution = "mask"
    assert_same_outcome("gap_registers", forward(model, images), gathered)
    model.set_keep_ratio(1.0)
    assert torch.equal(model(images), model.backbone(images))


@torch.no_grad()
def test_mask_equals_gather_for_replayed_decisions(family: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family)
    images = images_for(model)
    expected = forward(model, images)
    model.selector = Fixed([mask.float() for mask in [stage.kept for stage in expected[1].stages]]).eval()
    replayed = {}
    for execution in ("gather", "mask"):
        model.execution = execution  # type: ignore[assignment]
        replayed[execution] = forward(model, images)
    assert torch.equal(replayed["gather"][0], expected[0])
    assert_same_outcome(family, replayed["mask"], replayed["gather"])
    # other decisions, other logits: the comparison can fail
    model.selector = Fixed([mask.flip(1).float() for mask in [stage.kept for stage in expected[1].stages]]).eval()
    assert not torch.allclose(forward(model, images)[0], expected[0], atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("mask_form", ["key", "identity"])
def test_training_forward_is_the_eval_forward(family: str, mask_form: str, model_of: Model, images_for: Images) -> None:
    """With hard decisions the additive bias differs from true removal by its eps alone."""
    model = model_of(family)
    images = images_for(model)
    gathered = forward(model, images)
    model.train()
    model.mask_form = mask_form  # type: ignore[assignment]
    masked = forward(model, images)
    torch.testing.assert_close(masked[0], gathered[0], rtol=0, atol=2e-3)
    assert all(
        map(torch.equal, [stage.kept for stage in masked[1].stages], [stage.kept for stage in gathered[1].stages])
    )


@torch.no_grad()
def test_pooling_over_all_tokens_would_be_noticed(model_of: Model, images_for: Images) -> None:
    """The negative control: a head that does not know the mask is far off, except with a class token."""
    for family, differs in [("gap", True), ("gap_registers", True), ("siglip", True), ("vit", False)]:
        model = model_of(family)
        model.execution = "mask"
        logits, trace = forward(model, images_for(model))
        assert trace.features is not None
        x, _ = model.forward_features(images_for(model), return_trace=True)
        naive = model.backbone.forward_head(x)
        assert (float((naive - logits).abs().max()) > 0.05) == differs


# 3. What the trace says


@torch.no_grad()
@pytest.mark.parametrize("execution", ["mask", "gather"])
@pytest.mark.parametrize("ratios", [(0.7, 0.49, 0.343), (1.0, 0.5, 0.5), (0.3, 0.2, 0.001)])
def test_trace(family: str, execution: str, ratios: tuple[float, ...], model_of: Model, images_for: Images) -> None:
    model = model_of(family, keep_ratio=None, keep_ratios=ratios)
    model.execution = execution  # type: ignore[assignment]
    images = images_for(model)
    num_patches = model.adapter.grid_size[0] * model.adapter.grid_size[1]
    x, trace = model.forward_features(images, return_trace=True)
    alive = torch.ones(3, num_patches, dtype=torch.bool)
    for mask, kept, count, ratio in zip(
        [stage.kept for stage in trace.stages], trace.kept, trace.counts, ratios, strict=True
    ):
        k = num_keep(num_patches, ratio)
        assert mask.shape == (3, num_patches)
        assert not (mask & ~alive).any()  # what is dropped does not come back
        assert count.tolist() == [k] * 3
        assert kept.shape == (3, k)
        assert (kept.diff(dim=1) > 0).all()
        assert torch.equal(torch.zeros_like(mask).scatter(1, kept, True), mask)
        alive = mask
    assert trace.positions is not None
    assert trace.features is not None
    left = k if execution == "gather" else num_patches
    assert x.shape[1] == model.num_prefix_tokens + left  # prefix tokens survive
    assert torch.equal(trace.features, x[:, model.num_prefix_tokens :])
    if execution == "gather":
        assert torch.equal(trace.positions, trace.kept[-1])
        assert trace.weight is None
    else:
        assert trace.weight is not None
        assert torch.equal(trace.weight.bool(), trace.stages[-1].kept)
    # one entry a stage that selected: in eval a stage at ratio 1.0 is skipped
    assert len([choice.expected for choice in trace.choices]) == sum(ratio < 1 for ratio in ratios)
    assert all(
        e.shape == (3,) and (e > 0).all() and (e < 1).all() for e in [choice.expected for choice in trace.choices]
    )


@torch.no_grad()
@pytest.mark.parametrize("selector", ["ste", "gumbel_sigmoid"])
def test_trace_of_images_that_keep_different_numbers(
    family: str, selector: str, model_of: Model, images_for: Images
) -> None:
    model = model_of(family, selector=selector)
    images = images_for(model)
    centre(model, images).train()
    _, trace = forward(model, images)
    differing = 0
    for stage, (mask, kept, count) in enumerate(
        zip([stage.kept for stage in trace.stages], trace.kept, trace.counts, strict=True)
    ):
        differing += len(count.unique()) > 1
        assert kept.shape == (3, int(count.max()))
        for image in range(3):
            n = int(count[image])
            assert torch.equal(kept[image, :n], mask[image].nonzero()[:, 0])
            assert (kept[image, n:] == -1).all()
        if stage:
            assert not (mask & ~trace.stages[stage - 1].kept).any()
    assert differing


@torch.no_grad()
def test_prefix_tokens_are_never_scored(family: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family)
    _, trace, scores = scores_of(model, images_for(model))
    counts = [trace.stages[0].kept.shape[1], *(int(count[0]) for count in trace.counts)]
    assert [score.shape for score in scores] == [(3, n) for n in counts[:-1]]


def test_soft_masks_multiply_and_remove_nothing(model_of: Model, images_for: Images) -> None:
    model = model_of("gap", selector="gumbel_sigmoid").train()
    _, trace, scores = scores_of(model, images_for(model))
    assert trace.weight is not None
    assert ((trace.weight > 0) & (trace.weight < 1)).all()
    survival = torch.ones_like(scores[0])
    for expected, score in zip([choice.expected for choice in trace.choices], scores, strict=True):
        survival = survival * score.sigmoid()
        torch.testing.assert_close(expected, survival.mean(dim=1))
    assert all(score.shape == trace.stages[0].kept.shape for score in scores)


def test_expected_fraction_of_hard_selectors(model_of: Model, images_for: Images) -> None:
    model = model_of("vit", selector="ste").train()
    _, trace, scores = scores_of(model, images_for(model))
    alive = torch.ones_like(trace.stages[0].kept)
    for expected, score, mask in zip(
        [choice.expected for choice in trace.choices], scores, [stage.kept for stage in trace.stages], strict=True
    ):
        torch.testing.assert_close(expected, (score.sigmoid() * alive).mean(dim=1))
        alive = mask
    model.selector = create_selector("topk").train()
    _, trace = forward(model, images_for(model))
    for expected, count in zip([choice.expected for choice in trace.choices], trace.counts, strict=True):
        torch.testing.assert_close(expected, count / 24, atol=1e-4, rtol=0)


# 4. Determinism


@torch.no_grad()
@pytest.mark.parametrize("execution", ["mask", "gather"])
def test_eval_is_deterministic(family: str, execution: str, model_of: Model, images_for: Images) -> None:
    for selector in [*TRAINABLE, "random"]:
        model = model_of(family, selector=selector)
        model.execution = execution  # type: ignore[assignment]
        images = images_for(model)
        first = model(images)
        torch.manual_seed(99)
        assert torch.equal(first, model(images, temperature=7.0))


@torch.no_grad()
def test_batch_equals_its_images_one_by_one(family: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family)
    images = images_for(model)
    logits, trace, scores = scores_of(model, images)
    for score, kept in zip(scores, trace.kept, strict=True):  # no tie that rounding could turn
        ordered = score.sort(dim=1, descending=True).values
        k = kept.shape[1]
        assert (ordered[:, k - 1] - ordered[:, k]).min() > 1e-4
    for image in range(3):
        alone, own = forward(model, images[image : image + 1])
        torch.testing.assert_close(alone[0], logits[image], atol=1e-5, rtol=1e-5)
        for mine, theirs in zip(own.kept, trace.kept, strict=True):
            assert torch.equal(mine[0], theirs[image])


# 5. Patch order does not matter


def permute_patches(images: Tensor, grid: tuple[int, int], order: Tensor) -> Tensor:
    rows, columns = grid
    b, c, height, width = images.shape
    h, w = height // rows, width // columns
    patches = images.reshape(b, c, rows, h, columns, w).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(b, rows * columns, c, h, w)[:, order]
    patches = patches.reshape(b, rows, columns, c, h, w).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, c, height, width)


@torch.no_grad()
@pytest.mark.parametrize("execution", ["mask", "gather"])
def test_permuted_patches(family: str, execution: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family)
    if family not in ADDED_POSITIONS:
        pytest.skip("what its patches carry is permuted in test_families.py")
    model.execution = execution  # type: ignore[assignment]
    images = images_for(model)
    grid = model.adapter.grid_size
    order = torch.randperm(grid[0] * grid[1], generator=torch.Generator().manual_seed(1))
    permuted = copy.deepcopy(model)
    position = permuted.backbone.pos_embed
    prefix = position.shape[1] - len(order)
    position[:, prefix:] = model.backbone.pos_embed[:, prefix:][:, order]

    logits, trace = forward(model, images)
    other_logits, other_trace = forward(permuted, permute_patches(images, grid, order))
    torch.testing.assert_close(other_logits, logits, rtol=1e-4, atol=1e-4)
    for mask, other in zip(
        [stage.kept for stage in trace.stages], [stage.kept for stage in other_trace.stages], strict=True
    ):
        assert torch.equal(other, mask[:, order])
        assert not torch.equal(other, mask)
    # a selector that looks at places is not equivariant: the check can fail
    for each in (model, permuted):
        each.selector = create_selector("random").eval()
    _, trace = forward(model, images)
    _, other_trace = forward(permuted, permute_patches(images, grid, order))
    assert not torch.equal(other_trace.stages[0].kept, trace.stages[0].kept[:, order])


# 6. Gradients


@pytest.mark.parametrize("mask_form", ["key", pytest.param("identity", marks=pytest.mark.slow)])
@pytest.mark.parametrize("selector", TRAINABLE)
def test_gradient_through_kept_and_dropped_tokens(
    family: str, selector: str, mask_form: str, model_of: Model, images_for: Images
) -> None:
    model = model_of(family, selector=selector)
    images = images_for(model)
    centre(model, images).train()
    model.execution, model.mask_form = "mask", mask_form  # type: ignore[assignment]
    logits, trace, scores = scores_of(model, images)
    F.cross_entropy(logits, LABELS).backward()
    alive = torch.ones_like(trace.stages[0].kept)
    for score, mask in zip(scores, [stage.kept for stage in trace.stages], strict=True):
        gradient = score.grad
        assert gradient is not None
        size = gradient.abs()
        assert gradient.isfinite().all()
        groups = [alive & mask, alive & ~mask]
        for group in groups:
            assert group.any()
            assert (size[group] > 0).float().mean() > 0.95
        median = [float(size[group].median()) for group in groups]
        assert min(median) > 1e-3 * max(median)
        if not model.selector.soft:
            assert (gradient[~alive] == 0).all()
            alive = mask
    for predictor in model.scorers:
        assert gradient_norm(predictor) > 1e-6


def test_random_gives_no_gradient(family: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family, selector="random").train()
    F.cross_entropy(model(images_for(model)), LABELS).backward()
    assert all(parameter.grad is None for parameter in model.scorers.parameters())
    assert gradient_norm(model.backbone) > 0


def backbone_norm(model: PrunedViT, images: Tensor) -> float:
    model.zero_grad()
    logits, _ = forward(model, images)
    F.cross_entropy(logits, LABELS).backward()
    return gradient_norm(model.backbone)


@pytest.mark.parametrize("selector", TRAINABLE)
def test_selection_does_not_inflate_the_backbone_gradient(
    family: str, selector: str, model_of: Model, images_for: Images
) -> None:
    model = model_of(family, selector=selector).train()
    for predictor in model.scorers:  # as new: small differences between scores, gates keep most tokens
        predictor.score[-1].weight.data.mul_(0.1)  # type: ignore[index]
        nn.init.constant_(predictor.score[-1].bias, 2.0)  # type: ignore[index]
    plain = dynavit.prune(model.backbone, stages=()).train()
    images = images_for(model)
    ratio = backbone_norm(model, images) / backbone_norm(plain, images)
    assert 0.1 < ratio < 10


@pytest.mark.parametrize("selector", TRAINABLE)
def test_nor_where_the_scorers_want_no_token(family: str, selector: str, model_of: Model, images_for: Images) -> None:
    """No key left, or a mean over no token, would multiply gradients by 1e6 or 1e3."""
    model = model_of(family, selector=selector).train()
    plain = dynavit.prune(model.backbone, stages=()).train()
    images = images_for(model)
    for predictor in model.scorers:
        nn.init.constant_(predictor.score[-1].bias, -25.0)  # type: ignore[index]
    assert backbone_norm(model, images) < 10 * backbone_norm(plain, images)
    _, trace = forward(model, images)
    if not model.selector.soft:
        assert all((count >= 1).all() for count in trace.counts)


@pytest.mark.parametrize("big", [1e4, 1e10])
def test_that_check_notices_big_negative_masks(
    big: float, model_of: Model, images_for: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T12's negative control: -(1 - m) * BIG in place of log_mask."""
    model = model_of("vit").train()
    images = images_for(model)
    expected, norm = model(images), backbone_norm(model, images)
    monkeypatch.setattr("dynavit.models.attention_bias.log_mask", lambda mask: -(1 - mask) * big)
    torch.testing.assert_close(model(images), expected, atol=1e-2, rtol=0)  # looks all right
    assert not backbone_norm(model, images) < 10 * norm  # or it has become NaN


@pytest.mark.parametrize("big", [1e4])
def test_mask_gradient_is_the_multiplicative_one(
    big: float, model_of: Model, images_for: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite differences of the whole model: a token's mask moved by h moves the loss by gradient * h."""
    model = model_of("gap", stages=(3,), keep_ratio=0.5).double().train()
    images = images_for(model).double()
    decision = forward(model, images)[1].stages[0].kept.double().requires_grad_()

    def loss(value: Tensor) -> Tensor:
        model.selector = Fixed([value]).train()
        return F.cross_entropy(forward(model, images)[0], LABELS)

    def relative_error() -> float:
        (gradient,) = torch.autograd.grad(loss(decision), decision)
        step, kept = 1e-6, decision[0].nonzero()[:4, 0]
        with torch.no_grad():
            differences = []
            for token in kept.tolist():
                moved = decision.detach().clone()
                moved[0, token] -= step
                differences.append((loss(decision) - loss(moved)) / step)
        found = torch.stack(differences)
        return float((gradient[0, kept] - found).norm() / found.norm())

    assert relative_error() < 1e-3
    honest = torch.autograd.grad(loss(decision), decision)[0].norm()
    monkeypatch.setattr("dynavit.models.attention_bias.log_mask", lambda mask: -(1 - mask) * big)
    inflated = torch.autograd.grad(loss(decision), decision)[0].norm()
    assert inflated > 100 * honest


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_backbone_still_trains_scorers(
    family: str, checkpointing: bool, model_of: Model, images_for: Images
) -> None:
    model = model_of(family).train()
    model.backbone.requires_grad_(False)
    model.set_grad_checkpointing(checkpointing)
    F.cross_entropy(model(images_for(model)), LABELS).backward()
    for predictor in model.scorers:
        assert gradient_norm(predictor) > 1e-6
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


# 7. No state


@pytest.mark.parametrize("selector", [*TRAINABLE, "random"])
def test_forwards_leave_no_trace_in_the_model(selector: str, model_of: Model, images_for: Images) -> None:
    model = model_of("vit", selector=selector)
    images = images_for(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    evaluated = model(images)
    model.train()
    trained = forward(model, images, seed=4, temperature=0.5)[0]
    for temperature in (1.0, torch.tensor(0.3)):
        model.train()
        forward(model, images, seed=5, temperature=temperature)
        model.eval()
        assert torch.equal(model(images), evaluated)
    model.train()
    assert torch.equal(forward(model, images, seed=4, temperature=0.5)[0], trained)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not list(model.buffers())


def test_temperature_is_an_argument(model_of: Model, images_for: Images) -> None:
    model = model_of("vit", selector="gumbel_sigmoid").train()
    images = images_for(model)
    sharp, smooth = (forward(model, images, temperature=t)[1].weight for t in (0.05, 5.0))
    assert sharp is not None
    assert smooth is not None
    assert torch.minimum(sharp, 1 - sharp).mean() < 0.1 < smooth.std() + 0.1
    assert smooth.std() < sharp.std()


# 8. One checkpoint


@torch.no_grad()
def test_one_checkpoint_for_every_ratio_and_execution(family: str, model_of: Model, images_for: Images) -> None:
    trained = model_of(family)
    images = images_for(trained)
    assert trained.architecture is not None
    fresh = dynavit.create_model(
        trained.architecture, stages=(1, 3, 4), keep_ratio=0.5, selector="ste", reducer="drop", **trained.model_kwargs
    )
    fresh.load_state_dict(trained.state_dict(), strict=True)
    fresh.eval()
    for ratio in (1.0, 0.7, 0.4):
        fresh.set_keep_ratio(ratio)
        trained.set_keep_ratio(ratio)
        for execution in ("gather", "mask"):
            fresh.execution = trained.execution = execution  # type: ignore[assignment]
            assert torch.equal(fresh(images), trained(images))


def test_plain_timm_weights_load_strictly(
    family: str, model_of: Model, images_for: Images, backbone_of: Callable[..., nn.Module]
) -> None:
    model = model_of(family)
    plain = backbone_of(family)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(0.9)
    model.backbone.load_state_dict(plain.state_dict(), strict=True)
    model.set_keep_ratio(1.0)
    images = images_for(model)
    assert torch.equal(model(images), plain(images))
    assert type(model.backbone) is type(plain)


# What else may be switched on


@pytest.mark.parametrize(
    "selector", ["topk", *(pytest.param(name, marks=pytest.mark.slow) for name in TRAINABLE if name != "topk")]
)
def test_gradient_checkpointing_changes_nothing(
    family: str, selector: str, model_of: Model, images_for: Images
) -> None:
    results = []
    for enable in (False, True):
        model = model_of(family, selector=selector).train()
        model.set_grad_checkpointing(enable)
        images = images_for(model)
        logits, trace = forward(model, images, seed=3)
        F.cross_entropy(logits, LABELS).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((logits.detach(), [stage.kept for stage in trace.stages], gradients))
    (logits, masks, gradients), (again, again_masks, again_gradients) = results
    assert torch.equal(logits, again)
    assert all(map(torch.equal, masks, again_masks))
    for name, gradient in gradients.items():
        other = again_gradients[name]
        assert (gradient is None) == (other is None), name
        if gradient is not None:
            torch.testing.assert_close(other, gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_gradient_checkpointing_recomputes(model_of: Model, images_for: Images) -> None:
    model = model_of("vit").train()
    model.set_grad_checkpointing()
    runs: list[int] = []
    for number, block in enumerate(model.backbone.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: runs.append(number))
    F.cross_entropy(model(images_for(model)), LABELS).backward()
    assert sorted(runs) == sorted([*range(6), *range(6)])
    runs.clear()
    model.eval()
    F.cross_entropy(model(images_for(model)), LABELS).backward()
    assert runs == list(range(6))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_fused_attention_is_avoided_where_only_the_mask_needs_a_gradient(
    frozen: bool, checkpointing: bool, model_of: Model, images_for: Images
) -> None:
    """https://github.com/pytorch/pytorch/issues/148476, in the recomputation too."""
    model = model_of("vit").train()
    model.backbone.requires_grad_(not frozen)
    model.set_grad_checkpointing(checkpointing)
    fused: dict[int, set[bool]] = {number: set() for number in range(6)}
    for number, block in enumerate(model.backbone.blocks):
        block.attn.register_forward_hook(
            lambda *_, number=number: fused[number].add(torch.backends.cuda.mem_efficient_sdp_enabled())
        )
    F.cross_entropy(model(images_for(model)), LABELS).backward()
    # the first block after the first stage; from there on the tokens need a gradient as well
    assert fused == {number: {not (frozen and number == 1)} for number in range(6)}
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_model(family: str, dtype: torch.dtype, model_of: Model, images_for: Images) -> None:
    model = model_of(family).to(dtype)
    images = images_for(model).to(dtype)
    logits, trace = forward(model, images)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert [int(count[0]) for count in trace.counts] == [
        num_keep(trace.stages[0].kept.shape[1], ratio) for ratio in model.keep_ratios
    ]


def test_training_under_autocast(family: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family).train()
    images = images_for(model)
    exact, _ = forward(model, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, trace = forward(model, images)
        loss = F.cross_entropy(logits.float(), LABELS)
    loss.backward()
    assert trace.weight is not None
    assert trace.weight.dtype == torch.float32
    assert gradient_norm(model.scorers) > 1e-6
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert logits.isfinite().all()
    assert exact.isfinite().all()


def test_log_mask_is_what_the_model_uses(
    family: str, model_of: Model, images_for: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one place where a mask meets attention is log_mask, in fp32, and never infinite."""
    seen: list[Tensor] = []

    def spy(mask: Tensor, eps: float = 1e-6) -> Tensor:
        seen.append(log_mask(mask, eps))
        return seen[-1]

    monkeypatch.setattr("dynavit.models.attention_bias.log_mask", spy)
    model = model_of(family).train()
    forward(model, images_for(model))
    assert len(seen) >= 3
    for bias in seen:
        assert bias.dtype == torch.float32
        assert bias.shape[:3] == (3, 1, 1)
        assert ((bias <= 0) & (bias > -14)).all()


def test_gather_in_training_for_a_fixed_number(family: str, model_of: Model, images_for: Images) -> None:
    """Shorter sequences, the same values, and a gradient for the scorers."""
    model = model_of(family).train()
    images = images_for(model)
    masked, _ = forward(model, images)
    model.execution = "gather"
    logits, trace, scores = scores_of(model, images)
    torch.testing.assert_close(logits, masked, rtol=0, atol=2e-3)
    kept = int(trace.counts[-1][0])
    assert trace.weight is not None
    assert torch.equal(trace.weight, (torch.arange(kept + model.probes) < kept).float().expand(3, -1))
    F.cross_entropy(logits, LABELS).backward()
    for score, choice, predictor in zip(scores, trace.choices, model.scorers, strict=True):
        assert score.grad is not None
        assert (score.grad[choice.candidates] != 0).float().mean() > 0.95
        assert not score.grad[~choice.candidates].any()
        assert gradient_norm(predictor) > 1e-6


def test_gather_in_training_is_refused_where_nothing_is_removed(model_of: Model, images_for: Images) -> None:
    model = model_of("vit", selector="gumbel_sigmoid").train()
    model.execution = "gather"
    with pytest.raises(InputError, match=r"execution='gather' in training.*Use execution='mask'"):
        model(images_for(model))
    model.eval()
    assert model(images_for(model)).shape == (3, 7)
