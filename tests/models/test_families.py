"""Families beyond the plain Vision Transformer: what each patch carries along has to follow it.

The same promises as in test_invariants.py, and those about the context: rotary embeddings, relative positions.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn import functional as F

import dynavit
from dynavit import PrunedViT, Trace
from dynavit.adapters import BackboneAdapter, create_adapter, register_adapter, registry
from dynavit.errors import UnsupportedBackbone
from dynavit.functional import num_keep
from dynavit.selectors import Fixed

Model = Callable[..., PrunedViT]
Images = Callable[..., Tensor]

PLAIN = ["deit_distilled", "deit3", "dinov2_registers", "clip", "siglip", "hybrid"]
AXIAL = ["eva02", "dinov3", "perception"]
BEIT = ["beit", "beitv2"]
WITH_CONTEXT = [*AXIAL, "rope_mixed", *BEIT]
EVERY = [*PLAIN, "naflex", *WITH_CONTEXT]

NEWER_OPTIONS = {"rope_jitter_coords", "rope_rescale_coords", "qk_norm", "num_kv_heads"}
LABELS = torch.tensor([0, 3, 5])
every_family = pytest.mark.parametrize("name", EVERY)
each_with_context = pytest.mark.parametrize("name", WITH_CONTEXT)


@pytest.fixture
def small(model_of: Model) -> Model:
    """Function: family and options to a model of 4 blocks that prunes before the last three."""

    def make(name: str, **options: Any) -> PrunedViT:
        absent = NEWER_OPTIONS & options.keys() - inspect.signature(Eva).parameters.keys()
        if absent:
            pytest.skip(f"timm {timm.__version__} has no {', '.join(absent)}")
        return model_of(name, **{"depth": 4, "stages": (1, 2, 3), **options})

    return make


def forward(model: PrunedViT, images: Tensor, execution: str = "auto") -> tuple[Tensor, Trace]:
    model.execution = execution  # type: ignore[assignment]
    return model(images, return_trace=True, generator=torch.Generator().manual_seed(0))


def gradient_norm(module: nn.Module) -> float:
    return float(sum(p.grad.square().sum() for p in module.parameters() if p.grad is not None)) ** 0.5


def assert_mask_equals_gather(model: PrunedViT, images: Tensor) -> None:
    """Same logits, decisions and kept tokens: 1e-4 of their scale."""
    gathered, trace = forward(model, images, "gather")
    masked, other = forward(model, images, "mask")
    torch.testing.assert_close(masked, gathered, rtol=1e-4, atol=1e-4 * float(gathered.std()))
    assert all(map(torch.equal, [stage.kept for stage in other.stages], [stage.kept for stage in trace.stages]))
    tokens, all_tokens = trace.features, other.features
    assert tokens is not None
    assert all_tokens is not None
    assert trace.positions is not None
    picked = all_tokens.gather(1, trace.positions[..., None].expand_as(tokens))
    torch.testing.assert_close(picked, tokens, rtol=1e-4, atol=1e-4 * float(tokens.std()))


# Nothing to do is done exactly


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@every_family
def test_without_stages_exactly_timm(name: str, training: bool, small: Model, images_for: Images) -> None:
    model = small(name, stages=()).train(training)
    images = images_for(model)
    assert torch.equal(model(images), model.backbone(images))
    assert torch.equal(model.forward_features(images), model.backbone.forward_features(images))


@torch.no_grad()
@pytest.mark.parametrize("execution", ["mask", "gather"])
@every_family
def test_ratio_one_is_exact_in_eval(name: str, execution: str, small: Model, images_for: Images) -> None:
    model = small(name, keep_ratio=1.0)
    images = images_for(model)
    logits, trace = forward(model, images, execution)
    assert torch.equal(logits, model.backbone(images))
    assert all(mask.all() for mask in [stage.kept for stage in trace.stages])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eva02", {"drop_path_rate": 0.5, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "pos_drop_rate": 0.1}),
        ("dinov3", {"rope_jitter_coords": 2.0, "rope_shift_coords": 0.5, "drop_path_rate": 0.5}),
        ("rope_mixed", {"rope_rescale_coords": 2.0}),
        ("beit", {"drop_path_rate": 0.5, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "pos_drop_rate": 0.1}),
    ],
)
def test_training_noise_is_drawn_as_timm_does(
    name: str, options: dict[str, Any], small: Model, images_for: Images
) -> None:
    model = small(name, stages=(), **options).train()
    images = images_for(model)
    results = []
    for run in (model, model.backbone, model):
        torch.manual_seed(len(results) // 2)  # the third draws other noise
        results.append(run(images))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2], atol=1e-3)


# Masking equals gathering


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False])
@every_family
def test_mask_equals_gather(name: str, fused: bool, small: Model, images_for: Images) -> None:
    model = small(name)
    for block in model.backbone.blocks:
        block.attn.fused_attn = fused
    assert_mask_equals_gather(model, images_for(model))


@torch.no_grad()
@pytest.mark.parametrize("name", ["perception", "siglip"])
def test_attention_pooling_without_fused_attention(name: str, small: Model, images_for: Images) -> None:
    """timm's pooling adds its mask to the scores: booleans would count as 0 and 1."""
    model = small(name)
    model.backbone.attn_pool.fused_attn = False
    assert_mask_equals_gather(model, images_for(model))


@torch.no_grad()
@each_with_context
def test_it_would_not_with_the_context_of_other_patches(name: str, small: Model, images_for: Images) -> None:
    """The negative control: rotary embeddings or biases of the first k patches, not of those kept."""
    model = small(name)
    images = images_for(model)
    expected, trace = forward(model, images, "mask")
    right = model.adapter.gather
    model.adapter.gather = lambda context, index: right(context, index.sort().values * 0 + torch.arange(index.shape[1]))  # type: ignore[method-assign]
    model.selector = Fixed([mask.float() for mask in [stage.kept for stage in trace.stages]]).eval()
    wrong, _ = forward(model, images, "gather")
    assert (wrong - expected).abs().max() > 100 * 1e-4 * expected.std()


@torch.no_grad()
@each_with_context
def test_other_decisions_change_the_output(name: str, small: Model, images_for: Images) -> None:
    model = small(name)
    images = images_for(model)
    expected, trace = forward(model, images, "gather")
    model.selector = Fixed([mask.float() for mask in [stage.kept for stage in trace.stages]]).eval()
    assert torch.equal(forward(model, images, "gather")[0], expected)
    model.selector = Fixed([mask.flip(1).float() for mask in [stage.kept for stage in trace.stages]]).eval()
    assert not torch.allclose(forward(model, images, "gather")[0], expected, atol=0.02)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eva02", {"use_rot_pos_emb": False}),
        ("eva02", {"global_pool": "token"}),
        ("eva02", {"class_token": False, "num_reg_tokens": 2}),
        ("dinov3", {"qk_norm": True}),
        ("dinov3", {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1}),
        ("dinov3", {"rope_rotate_half": False}),
        ("rope_mixed", {"global_pool": "avg", "use_abs_pos_emb": True}),
        ("beit", {"use_rel_pos_bias": False, "use_abs_pos_emb": True}),
        ("beit", {"global_pool": "token", "init_values": None}),
        ("beit", {"swiglu_mlp": True, "scale_mlp": True}),
    ],
)
def test_variants_of_the_architectures(name: str, options: dict[str, Any], small: Model, images_for: Images) -> None:
    model = small(name, **options)
    images = images_for(model)
    assert_mask_equals_gather(model, images)
    model.set_keep_ratio(1.0)
    assert torch.equal(model(images), model.backbone(images))


@torch.no_grad()
@pytest.mark.parametrize("name", ["eva02", "dinov3", "rope_mixed", "beit"])
def test_after_a_change_of_the_input_size(name: str, small: Model, images_for: Images) -> None:
    model = small(name)
    if not hasattr(model.backbone, "set_input_size"):
        pytest.skip(f"timm {timm.__version__} cannot resize {name}")
    rows, columns = model.adapter.patch_size
    model.set_input_size((7 * rows, 3 * columns))
    images = images_for(model)
    _, trace = forward(model, images)
    assert trace.stages[0].kept.shape == (3, 21)
    assert_mask_equals_gather(model, images)
    model.set_keep_ratio(1.0)
    assert torch.equal(model(images), model.backbone(images))


@torch.no_grad()
@pytest.mark.parametrize("name", ["dinov3", "rope_mixed"])
def test_images_of_any_size(name: str, small: Model) -> None:
    model = small(name, dynamic_img_size=True)
    images = torch.randn(2, 3, 64, 112, generator=torch.Generator().manual_seed(0))
    assert_mask_equals_gather(model, images)
    model.set_keep_ratio(1.0)
    assert torch.equal(model(images), model.backbone(images))


@torch.no_grad()
@pytest.mark.parametrize("mask_form", ["key", "identity"])
@each_with_context
def test_training_forward_is_the_eval_forward(name: str, mask_form: str, small: Model, images_for: Images) -> None:
    """The additive mask and, in BEiT, the bias together: for hard decisions only eps is between the two."""
    model = small(name)
    images = images_for(model)
    expected, trace = forward(model, images)
    model.train()
    model.mask_form = mask_form  # type: ignore[assignment]
    for execution in ("mask", "gather"):
        logits, other = forward(model, images, execution)
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-3)
        assert all(map(torch.equal, [stage.kept for stage in other.stages], [stage.kept for stage in trace.stages]))


# The context, number by number


@torch.no_grad()
def gathered_twice(adapter: BackboneAdapter, context: Any, num_patches: int) -> tuple[Any, Tensor]:
    """Drop at random in two stages; also return the original places that are left, ``(2, k)``."""
    generator = torch.Generator().manual_seed(3)
    first = torch.stack([torch.randperm(num_patches, generator=generator)[:9].sort().values for _ in range(2)])
    second = torch.stack([torch.randperm(9, generator=generator)[:5].sort().values for _ in range(2)])
    return adapter.gather(adapter.gather(context, first), second), first.gather(1, second)


@pytest.mark.parametrize("name", [*AXIAL, "rope_mixed"])
def test_rotary_embeddings_by_original_position(name: str, small: Model, images_for: Images) -> None:
    model = small(name)
    adapter: Any = model.adapter
    rope = model.backbone.rope.get_embed(shape=model.adapter.grid_size)
    _, whole = adapter.embed(images_for(model, 2))
    context, positions = gathered_twice(adapter, whole, rope.shape[-2])
    for number in range(4):
        own = rope[number] if name == "rope_mixed" else rope.unsqueeze(0)  # (heads or 1, N, d)
        taken = adapter._options(number, context)["rope"]
        assert taken.shape == (2, own.shape[0], 5, own.shape[2])
        for image in range(2):
            for token, place in enumerate(positions[image].tolist()):
                assert torch.equal(taken[image, :, token], own[:, place])


@pytest.mark.parametrize("name", BEIT)
def test_relative_positions_by_original_position(name: str, small: Model, images_for: Images) -> None:
    model = small(name)
    _, whole = model.adapter.embed(images_for(model, 2))
    rows, columns = model.adapter.grid_size
    context, positions = gathered_twice(model.adapter, whole, rows * columns)
    assert context.shape == (2, 6, 6)
    places = F.pad(positions + 1, (1, 0))  # 0 is the class token
    for block in model.backbone.blocks:
        full = block.attn._get_rel_pos_bias()[0]
        bias = block.attn.relative_position_bias_table[context]  # (2, 6, 6, heads)
        for image in range(2):
            for i, row in enumerate(places[image].tolist()):
                for j, column in enumerate(places[image].tolist()):
                    assert torch.equal(bias[image, i, j], full[:, row, column])


# What the trace says, and that the order of patches does not matter


@torch.no_grad()
@pytest.mark.parametrize("execution", ["mask", "gather"])
@every_family
def test_kept_patches(name: str, execution: str, small: Model, images_for: Images) -> None:
    model = small(name)
    _, trace = forward(model, images_for(model), execution)
    rows, columns = model.adapter.grid_size
    alive = torch.ones(3, rows * columns, dtype=torch.bool)
    for mask, kept, ratio in zip([stage.kept for stage in trace.stages], trace.kept, model.keep_ratios, strict=True):
        assert not (mask & ~alive).any()
        assert kept.shape == (3, num_keep(rows * columns, ratio))
        assert (kept.diff(dim=1) > 0).all()
        assert torch.equal(torch.zeros_like(mask).scatter(1, kept, True), mask)
        alive = mask


class Reordered(BackboneAdapter):
    """Another adapter whose patches come in another order, with or without what they carry."""

    grid_size, patch_size = (0, 0), (0, 0)
    gather, block, norm, head = None, None, None, None  # type: ignore[assignment]

    def __init__(self, adapter: BackboneAdapter, order: Tensor, *, with_context: bool = True) -> None:
        super().__init__(adapter.backbone)
        self.adapter, self.order, self.with_context = adapter, order, with_context
        self.gather, self.block, self.norm, self.head = adapter.gather, adapter.block, adapter.norm, adapter.head  # type: ignore[method-assign]

    def embed(self, images: Tensor) -> tuple[Tensor, Any]:
        x, context = self.adapter.embed(images)
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        if self.with_context:
            context = self.adapter.gather(context, self.order.expand(x.shape[0], -1))
        return torch.cat([prefix, patches[:, self.order]], dim=1), context


@torch.no_grad()
@pytest.mark.parametrize("execution", ["mask", "gather"])
@every_family
def test_permuted_patches(name: str, execution: str, small: Model, images_for: Images) -> None:
    model = small(name)
    images = images_for(model)
    rows, columns = model.adapter.grid_size
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(1))
    logits, trace = forward(model, images, execution)
    adapter = model.adapter
    model.adapter = Reordered(adapter, order)
    other_logits, other_trace = forward(model, images, execution)
    torch.testing.assert_close(other_logits, logits, rtol=1e-4, atol=1e-4)
    for mask, other in zip(
        [stage.kept for stage in trace.stages], [stage.kept for stage in other_trace.stages], strict=True
    ):
        assert torch.equal(other, mask[:, order])
        assert not torch.equal(other, mask)
    if name in WITH_CONTEXT:  # tokens that leave behind what they carry: the check can fail
        model.adapter = Reordered(adapter, order, with_context=False)
        model.selector = Fixed([mask.float() for mask in [stage.kept for stage in other_trace.stages]]).eval()
        assert (forward(model, images, execution)[0] - logits).abs().max() > 0.01


@torch.no_grad()
@every_family
def test_determinism_and_images_one_by_one(name: str, small: Model, images_for: Images) -> None:
    model = small(name)
    images = images_for(model)
    logits, trace = forward(model, images)
    assert torch.equal(forward(model, images)[0], logits)
    for image in range(3):
        alone, own = forward(model, images[image : image + 1])
        torch.testing.assert_close(alone[0], logits[image], atol=1e-5, rtol=1e-5)
        for mine, theirs in zip(own.kept, trace.kept, strict=True):
            assert torch.equal(mine[0], theirs[image])


# Gradients


@pytest.mark.parametrize("mask_form", ["key", "identity"])
@every_family
def test_gradients_reach_all_scorers(name: str, mask_form: str, small: Model, images_for: Images) -> None:
    model = small(name).train()
    model.mask_form = mask_form  # type: ignore[assignment]
    masks: list[Tensor] = []
    choose = model.selector.forward

    def record(*args: Any, **kwargs: Any) -> Any:
        selection = choose(*args, **kwargs)
        selection.mask.retain_grad()
        masks.append(selection.mask)
        return selection

    model.selector.forward = record  # type: ignore[method-assign]
    logits, trace = forward(model, images_for(model), "mask")
    F.cross_entropy(logits, LABELS).backward()
    for predictor in model.scorers:
        assert gradient_norm(predictor) > 1e-6
    for mask, kept in zip(masks, [stage.kept for stage in trace.stages], strict=True):
        assert mask.grad is not None
        assert (mask.grad[kept] != 0).all()
    assert (masks[0].grad[~trace.stages[0].kept] != 0).any()  # type: ignore[index]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("execution", ["mask", "gather"])
@each_with_context
def test_gradient_checkpointing_changes_nothing(name: str, execution: str, small: Model, images_for: Images) -> None:
    results = []
    for enable in (False, True):
        model = small(name).train()
        model.set_grad_checkpointing(enable)
        runs: list[int] = []
        for block in model.backbone.blocks:
            block.register_forward_pre_hook(lambda *_, runs=runs: runs.append(0))
        logits, _ = forward(model, images_for(model), execution)
        F.cross_entropy(logits, LABELS).backward()
        assert len(runs) == (8 if enable else 4)
        results.append((logits.detach(), {key: p.grad for key, p in model.named_parameters()}))
    (logits, gradients), (again, others) = results
    assert torch.equal(logits, again)
    for key, gradient in gradients.items():
        assert gradient is not None, key
        torch.testing.assert_close(others[key], gradient, atol=1e-6, rtol=1e-4, msg=key)


@pytest.mark.parametrize("execution", ["mask", "gather"])
@pytest.mark.parametrize("name", ["eva02", "beit"])
def test_fused_attention_is_avoided_where_only_the_mask_needs_a_gradient(
    name: str, execution: str, small: Model, images_for: Images
) -> None:
    model = small(name).train()
    model.backbone.requires_grad_(False)
    fused: list[bool] = []
    for block in model.backbone.blocks:
        block.attn.register_forward_hook(lambda *_: fused.append(torch.backends.cuda.mem_efficient_sdp_enabled()))
    F.cross_entropy(forward(model, images_for(model), execution)[0], LABELS).backward()
    assert fused == [True, False, True, True]
    assert all(gradient_norm(predictor) > 1e-6 for predictor in model.scorers)


# Plain weights, half precision, no state, export


@torch.no_grad()
@each_with_context
def test_plain_timm_weights_load_strictly(
    name: str, small: Model, images_for: Images, backbone_of: Callable[..., nn.Module]
) -> None:
    model = small(name, keep_ratio=1.0)
    plain = backbone_of(name, depth=4)
    for parameter in plain.parameters():
        parameter.mul_(0.9)
    model.backbone.load_state_dict(plain.state_dict(), strict=True)
    images = images_for(model)
    assert torch.equal(model(images), plain(images))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["dinov3", "beit"])
def test_half_precision(name: str, dtype: torch.dtype, small: Model, images_for: Images) -> None:
    model = small(name).to(dtype)
    images = images_for(model).to(dtype)
    for training, execution in [(False, "mask"), (False, "gather"), (True, "mask")]:
        logits, trace = forward(model.train(training), images, execution)
        assert logits.dtype == dtype
        assert logits.isfinite().all()
        assert len([stage.kept for stage in trace.stages]) == 3


@torch.no_grad()
@pytest.mark.parametrize("name", BEIT)
def test_forwards_leave_the_tables_where_they_are(name: str, small: Model, images_for: Images) -> None:
    model = small(name)
    images = images_for(model)
    tables = [block.attn.relative_position_bias_table for block in model.backbone.blocks]
    logits, _ = forward(model, images, "gather")
    assert all(b.attn.relative_position_bias_table is t for b, t in zip(model.backbone.blocks, tables, strict=True))
    assert torch.equal(forward(copy.deepcopy(model), images, "gather")[0], logits)
    with pytest.raises(RuntimeError):  # nor does a forward that fails
        model.adapter.block(1, torch.zeros(2, 4, 1), torch.zeros(2, 4, 4, dtype=torch.long), None)
    assert all(b.attn.relative_position_bias_table is t for b, t in zip(model.backbone.blocks, tables, strict=True))


@pytest.mark.parametrize("name", ["dinov3", "rope_mixed", "beit"])
def test_torch_export(name: str, small: Model, images_for: Images) -> None:
    model = small(name, depth=2, stages=(1,))
    exported = torch.export.export(
        model, (images_for(model, 2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    ).module()
    for batch in (1, 3):
        images = images_for(model, batch, seed=batch)
        assert torch.equal(exported(images), model(images))


# Refusals


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("eva02", {"use_post_norm": True}, r"Eva\.blocks\[0\] is a EvaBlockPostNorm.*EvaBlock \(pre-norm\)"),
        ("eva02", {"patch_drop_rate": 0.2}, "patch_drop_rate"),
        ("dinov3", {"global_pool": "avgmax"}, r"global_pool='avgmax'.*supported: 'token', 'avg', 'map'"),
        (
            "beit",
            {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
            r"rel_pos_bias.*use_shared_rel_pos_bias=True.*use_rel_pos_bias=True",
        ),
    ],
)
def test_what_cannot_be_driven_is_refused_by_name(
    name: str, options: dict[str, Any], message: str, small: Model
) -> None:
    with pytest.raises(UnsupportedBackbone, match=message):
        small(name, **options)


@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224"])
def test_families_without_an_adapter(name: str) -> None:
    backbone = timm.create_model(name, depth=2, embed_dim=48, num_heads=3)
    with pytest.raises(UnsupportedBackbone, match=r"cannot be pruned.*Beit, Eva, NaFlexVit, VisionTransformer"):
        create_adapter(backbone)


def test_an_eva_of_ones_own_that_computes_something_else_is_refused() -> None:
    class Own(Eva):
        def forward_features(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().forward_features(*args, **kwargs) * 2

    with pytest.raises(UnsupportedBackbone, match="Own cannot be pruned"):
        create_adapter(Own(img_size=32, embed_dim=24, depth=2, num_heads=2, num_classes=2))


# A worked example: a backbone that timm does not have, and its adapter


class NearBlock(nn.Module):
    """Attention in which a patch looks less at what is far from it: ``softmax(q k - distance)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, places: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        bias = -torch.cdist(places, places)
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v, bias if mask is None else bias + mask))


class NearViT(nn.Module):
    """What dynavit reads of every backbone: the attributes below, ``blocks`` and two methods."""

    num_prefix_tokens = 0
    global_pool = "avg"

    def __init__(self, rows: int = 5, dim: int = 24, num_classes: int = 4) -> None:
        super().__init__()
        self.embed_dim = self.num_features = dim
        self.num_classes = num_classes
        self.grid = (rows, rows)
        self.stem = nn.Conv2d(3, dim, 8, 8)
        self.blocks = nn.ModuleList(NearBlock(dim) for _ in range(4))
        self.classifier = nn.Linear(dim, num_classes)

    def places(self) -> Tensor:
        return torch.cartesian_prod(*(torch.arange(float(side)) for side in self.grid))

    def forward_features(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, self.places())
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.mean(dim=1) if pre_logits else self.classifier(x.mean(dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class NearAdapter(BackboneAdapter):
    """The context is the place of each patch: ``(N, 2)``, then ``(B, n, 2)``."""

    @property
    def grid_size(self) -> tuple[int, int]:
        return self.backbone.grid

    @property
    def patch_size(self) -> tuple[int, int]:
        return 8, 8

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.backbone.stem(images).flatten(2).transpose(1, 2), self.backbone.places()

    def gather(self, context: Tensor, index: Tensor) -> Tensor:
        if context.ndim == 2:
            return context[index]
        return context.gather(1, index[..., None].expand(-1, -1, 2))

    def block(self, number: int, x: Tensor, context: Tensor, attention_mask: Tensor | None) -> Tensor:
        mask = None if attention_mask is None else attention_mask.squeeze(1)  # this model has no heads
        return self.backbone.blocks[number](x, context, mask)

    def norm(self, x: Tensor) -> Tensor:
        return x

    def head(self, x: Tensor, mask: Tensor | None, training: bool, pre_logits: bool) -> Tensor:
        if mask is None:
            return self.backbone.forward_head(x, pre_logits)
        weight = mask.unsqueeze(-1)
        pooled = (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        return pooled if pre_logits else self.backbone.classifier(pooled)


def test_adding_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone = NearViT().eval()
    images = torch.randn(3, 3, 40, 40)
    with pytest.raises(UnsupportedBackbone, match="NearViT cannot be pruned"):
        dynavit.prune(backbone)
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))  # forget it again after this test
    register_adapter(NearViT)(NearAdapter)

    assert torch.equal(dynavit.prune(backbone, stages=())(images), backbone(images))
    with pytest.raises(
        UnsupportedBackbone, match=r"attention of NearBlock cannot be read.*'distinctness' and 'mlp' read none"
    ):
        dynavit.prune(backbone, scorer="attention")
    assert dynavit.prune(backbone)(images).shape == (3, 4)
    model = dynavit.prune(backbone, stages=(1, 2, 3), keep_ratio=0.7, scorer="mlp", reducer="drop")
    with torch.no_grad():
        assert_mask_equals_gather(model, images)
        logits, trace = forward(model, images)
        assert [int(count[0]) for count in trace.counts] == [num_keep(25, ratio) for ratio in model.keep_ratios]
        model.adapter = Reordered(model.adapter, torch.randperm(25))
        torch.testing.assert_close(model(images), logits)
    model.train()
    F.cross_entropy(model(images), torch.tensor([0, 1, 2])).backward()
    assert all(gradient_norm(predictor) > 0 for predictor in model.scorers)
