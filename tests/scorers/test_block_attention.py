"""AttentionView against timm's own attention: recorded inside it, and worked out again from its output."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stages import Stage, make_stage
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn import functional as F

from dynavit.errors import UnsupportedBackbone

Make = Callable[..., Any]

FAMILIES = ["vit", "deit_distilled", "deit3", "dinov2_registers", "clip", "siglip", "gap", "gap_registers"]
FAMILIES += ["eva02", "dinov3", "rope_mixed", "perception", "beit", "beitv2"]
NEWER_OPTIONS = {"qk_norm", "num_kv_heads", "attn_type"}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("vit", {"qk_norm": True}),
    ("vit", {"qkv_bias": False}),
    ("vit", {"qk_norm": True, "scale_attn_norm": True}),
    ("eva02", {"qkv_fused": True}),
    ("eva02", {"qkv_bias": False}),
    ("eva02", {"use_rot_pos_emb": False}),
    ("eva02", {"use_rot_pos_emb": False, "qk_norm": True}),
    ("eva02", {"scale_attn_inner": True}),
    ("dinov3", {"qk_norm": True}),
    ("dinov3", {"rope_rotate_half": False}),
    ("dinov3", {"attn_type": "rope"}),
    ("dinov3", {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1}),
    ("dinov3", {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1, "use_rot_pos_emb": False}),
    ("beit", {"use_rel_pos_bias": False, "use_abs_pos_emb": True}),
    ("beit", {"qkv_bias": False}),
]
every_variant = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=["-".join([name, *options]) for name, options in VARIANTS]
)
each_state = pytest.mark.parametrize(
    "state", [{}, {"hidden": True}, {"gathered": True}, {"gathered": True, "hidden": True}], ids=str
)


@pytest.fixture
def make(backbone_of: Make, images_for: Make) -> Make:
    """Function: family, state and timm options to a stage."""

    def stage(name: str, **options: Any) -> Stage:
        absent = NEWER_OPTIONS & options.keys() - inspect.signature(Eva).parameters.keys()
        if absent and name in ("eva02", "dinov3"):
            pytest.skip(f"timm has no {', '.join(absent)}")
        return make_stage(backbone_of, images_for, name, **options)

    return stage


class Recorder(nn.Module):
    """Stands in for the dropout between softmax and values, and remembers what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.p = 0.0
        self.seen: list[Tensor] = []

    def forward(self, attention: Tensor) -> Tensor:
        self.seen.append(attention)
        return attention


@torch.no_grad()
@each_state
@every_variant
def test_equal_to_the_weights_inside_timm(
    name: str, options: dict[str, Any], state: dict[str, bool], make: Make
) -> None:
    stage = make(name, **options, **state)
    stage.attn.fused_attn = False
    stage.attn.attn_drop = recorder = Recorder()
    stage.attended()
    (expected,) = recorder.seen
    assert expected.std() > 1e-2  # not nearly uniform
    weights = stage.view().attention()
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    if stage.mask is not None:
        assert (weights[:, :, :, stage.num_prefix :].sum(dim=(1, 2))[stage.mask == 0] == 0).all()


@torch.no_grad()
@each_state
@every_variant
def test_weights_and_values_give_the_output_of_timm(
    name: str, options: dict[str, Any], state: dict[str, bool], make: Make
) -> None:
    stage = make(name, **options, **state)
    outputs: list[Tensor] = []
    stage.attn.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    stage.attended()
    view = stage.view()
    mixed = (view.attention() @ view.values()).transpose(1, 2).flatten(2)
    if hasattr(stage.attn, "norm"):
        mixed = stage.attn.norm(mixed)
    torch.testing.assert_close(stage.attn.proj(mixed), outputs[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@each_state
@every_variant
def test_class_attention_is_the_first_row(
    name: str, options: dict[str, Any], state: dict[str, bool], make: Make
) -> None:
    """Folded where there are no keys to be made, and not folded: from views that share nothing."""
    stage = make(name, **options, **state)
    if not stage.adapter.has_class_token:
        with pytest.raises(UnsupportedBackbone, match="no class token"):
            stage.view().class_attention()
        return
    row = stage.view().class_attention()
    assert row.dtype == torch.float32
    torch.testing.assert_close(row, stage.view().attention()[:, :, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(row.sum(dim=-1), torch.ones(row.shape[:2]))
    rotated = stage.backbone.rope is not None if hasattr(stage.backbone, "rope") else False
    assert stage.view().folds == (not rotated and not options.get("qk_norm", False))


@torch.no_grad()
@every_variant
def test_mean_keys(name: str, options: dict[str, Any], make: Make) -> None:
    stage = make(name, **options, gathered=True)
    keys = stage.view().keys()
    assert keys.shape[1] == stage.attn.num_heads
    torch.testing.assert_close(stage.view().mean_keys(), keys.mean(dim=1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "dinov2_registers", "dinov3", "beit"])
def test_nothing_is_computed_before_it_is_asked_for_nor_twice(name: str, make: Make) -> None:
    stage = make(name)
    calls: list[int] = []
    stage.backbone.blocks[1].norm1.register_forward_hook(lambda *_: calls.append(0))
    view = stage.view()
    assert calls == []
    assert view.keys() is view.keys()
    assert view.values() is view.values()
    assert view.class_attention() is view.class_attention()
    assert view.attention() is view.attention()
    view.mean_keys()
    assert calls == [0]


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "eva02", "rope_mixed", "beit"])
def test_half_precision(name: str, make: Make) -> None:
    """Weights are fp32, normalised as exactly, and near those of the fp32 block."""
    expected = make(name, hidden=True).view().attention()
    under_autocast, pure = make(name, hidden=True), make(name, hidden=True)
    pure.backbone.bfloat16()
    pure.x = pure.x.bfloat16()
    for stage, autocast in ((under_autocast, True), (pure, False)):
        for read in (lambda view: view.attention(), lambda view: view.class_attention()):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                weights = read(stage.view())
            assert weights.dtype == torch.float32
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
            reference = expected if weights.ndim == 4 else expected[:, :, 0]
            assert (weights - reference).abs().max() < 0.1
            assert (weights - reference).abs().mean() < 3e-3


def test_double_precision(make: Make) -> None:
    stage = make("eva02")
    stage.backbone.double()
    stage.x = stage.x.double()
    assert stage.view().attention().dtype == torch.float64


@pytest.mark.parametrize("name", ["vit", "dinov3", "beit"])
def test_gradients_are_those_of_the_whole(name: str, make: Make) -> None:
    """The folded row has the gradient of the row that is not folded, to tokens, weights and mask."""
    stage = make(name)
    stage.backbone.train()
    stage.mask = torch.rand(stage.positions.shape, generator=torch.Generator().manual_seed(3)).requires_grad_()
    leaves = [stage.x.requires_grad_(), stage.mask]
    leaves += [p for part, p in stage.attn.named_parameters() if part in ("qkv.weight", "relative_position_bias_table")]
    weight = torch.randn(2, 3, stage.x.shape[1], generator=torch.Generator().manual_seed(4))
    folded = torch.autograd.grad((stage.view(training=True).class_attention() * weight).sum(), leaves)
    whole = torch.autograd.grad((stage.view(training=True).attention()[:, :, 0] * weight).sum(), leaves)
    torch.testing.assert_close(folded, whole, rtol=1e-4, atol=1e-6)
    assert all((gradient != 0).any() for gradient in folded)


def test_attention_that_is_not_known_is_refused(make: Make) -> None:
    stage = make("vit")

    class DiffAttention(type(stage.attn)):  # type: ignore[misc]
        """Like timm's of this name: the same projections, used in another way."""

    stage.attn.__class__ = DiffAttention
    with pytest.raises(UnsupportedBackbone, match="attention of DiffAttention cannot be read"):
        stage.view()
    stage = make("vit")

    class Wrapped(nn.Linear):
        """What a low-rank adapter would put there: its weight is not all of it."""

        def forward(self, x: Tensor) -> Tensor:
            return 2 * F.linear(x, self.weight, self.bias)

    stage.attn.qkv = Wrapped(48, 144)
    with pytest.raises(UnsupportedBackbone, match=r"qkv is a Wrapped.*torch\.nn\.Linear"):
        stage.view()
