"""Blocks in two halves, and tokens that a reducer made: adapters are driven directly, family by family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynavit.adapters import BackboneAdapter, create_adapter
from dynavit.errors import UnsupportedBackbone
from dynavit.functional import log_mask

Backbone = Callable[..., nn.Module]
Images = Callable[..., Tensor]

BATCH, NUMBER = 2, 1
MASKS = ["none", "boolean", "additive", "pairs"]
ROTARY = ["eva02", "dinov3", "perception", "rope_mixed"]
EVERY_STATE = pytest.mark.parametrize("gathered", [False, True])


class State:
    """Tokens as they enter a block, with their context."""

    def __init__(self, backbone: nn.Module, images: Tensor, *, gathered: bool = False) -> None:
        self.backbone: Any = backbone
        self.adapter: BackboneAdapter = create_adapter(backbone)
        with torch.no_grad():
            self.x, self.context = self.adapter.embed(images)
            self.x = self.adapter.block(0, self.x, self.context, None)
        if gathered:
            n = self.x.shape[1] - self.num_prefix
            generator = torch.Generator().manual_seed(1)
            self.gather(torch.stack([torch.randperm(n, generator=generator)[: n - 4] for _ in self.x]))

    @property
    def num_prefix(self) -> int:
        return self.adapter.num_prefix_tokens

    def gather(self, index: Tensor) -> None:
        prefix = torch.arange(self.num_prefix).expand(len(index), -1)
        whole = torch.cat([prefix, index + self.num_prefix], dim=1)
        self.x = self.x.gather(1, whole[..., None].expand(-1, -1, self.x.shape[2]))
        self.context = self.adapter.gather(self.context, index)

    def mask(self, kind: str) -> Tensor | None:
        """An attention mask that hides some of the patches."""
        length = self.x.shape[1]
        keys = torch.rand(BATCH, 1, 1, length, generator=torch.Generator().manual_seed(2)) < 0.6
        keys[..., : max(self.num_prefix, 1)] = True
        if kind == "pairs":
            return log_mask((keys | torch.eye(length, dtype=torch.bool)).float())
        return {"none": None, "boolean": keys, "additive": log_mask(keys.float())}[kind]

    def block(self, mask: Tensor | None = None) -> Tensor:
        return self.adapter.block(NUMBER, self.x, self.context, mask)

    def halves(self, mask: Tensor | None = None) -> Tensor:
        return self.adapter.mlp(NUMBER, self.adapter.attention(NUMBER, self.x, self.context, mask))

    def append(self, made: Tensor) -> None:
        """Append made tokens ``(B, m, D)``."""
        self.x = torch.cat([self.x, made], dim=1)
        self.context = self.adapter.extend(self.context, made.shape[1])

    def hiding(self, count: int) -> Tensor:
        """A mask that hides the last tokens."""
        return (torch.arange(self.x.shape[1]) < self.x.shape[1] - count).expand(BATCH, 1, 1, -1)


@pytest.fixture
def state_of(backbone_of: Backbone, images_for: Images) -> Callable[..., State]:
    """Function: family and timm options to the state before the second of two blocks."""

    def make(family: str, *, gathered: bool = False, **options: Any) -> State:
        backbone = backbone_of(family, **{"depth": 2, **options})
        return State(backbone, images_for(backbone, BATCH), gathered=gathered)

    return make


def made_tokens(state: State, count: int) -> Tensor:
    return torch.randn(BATCH, count, state.x.shape[2], generator=torch.Generator().manual_seed(5))


# attention() and mlp() make block()


@torch.no_grad()
@EVERY_STATE
def test_two_halves_are_the_block(family: str, gathered: bool, state_of: Callable[..., State]) -> None:
    state = state_of(family, gathered=gathered)
    outputs = []
    for fused in (True, False):
        for block in state.backbone.blocks:
            block.attn.fused_attn = fused
        for kind in MASKS:
            mask = state.mask(kind)
            outputs.append(state.block(mask))
            assert torch.equal(state.halves(mask), outputs[-1]), (fused, kind)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3  # a mask that matters
    attended = state.adapter.attention(NUMBER, state.x, state.context, None)
    assert (attended - state.x).abs().max() > 1e-2  # and neither half is the identity
    assert (state.adapter.mlp(NUMBER, state.x) - state.x).abs().max() > 1e-2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_noise_and_gradients(family: str, checkpointing: bool, state_of: Callable[..., State]) -> None:
    state = state_of(family, gathered=True, drop_path_rate=0.5, proj_drop_rate=0.1, attn_drop_rate=0.1)
    state.backbone.train().set_grad_checkpointing(checkpointing)
    runs = []
    for part in (state.backbone.blocks[NUMBER].attn, state.backbone.blocks[NUMBER].mlp):
        part.register_forward_pre_hook(lambda *_: runs.append(0))
    results = []
    for run, seed in ((state.block, 4), (state.halves, 4), (state.halves, 1)):
        runs.clear()
        state.backbone.zero_grad()
        mask = state.mask("additive")
        assert mask is not None
        leaves = [state.x.clone().requires_grad_(), mask.requires_grad_()]
        state.x = leaves[0]
        torch.manual_seed(seed)
        out = run(mask)
        out.square().sum().backward()
        assert len(runs) == (4 if checkpointing else 2)
        gradients = {name: p.grad.clone() for name, p in state.backbone.named_parameters() if p.grad is not None}
        results.append((out.detach(), [leaf.grad for leaf in leaves], gradients))
        state.x = state.x.detach()
    (out, leaves, gradients), (halves, own_leaves, own), (other, _, _) = results
    assert torch.equal(halves, out)
    assert not torch.allclose(other, out, atol=1e-3)  # other noise
    torch.testing.assert_close(own_leaves, leaves, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own, gradients, rtol=1e-4, atol=1e-4)
    assert any(name.startswith(f"blocks.{NUMBER}.attn") for name in gradients)


@pytest.mark.parametrize("name", ["vit", "eva02", "beit"])
def test_fused_attention_is_avoided_where_only_the_mask_needs_a_gradient(
    name: str, state_of: Callable[..., State]
) -> None:
    state = state_of(name)
    state.backbone.train().requires_grad_(False)
    fused: list[bool] = []
    state.backbone.blocks[NUMBER].attn.register_forward_hook(
        lambda *_: fused.append(torch.backends.cuda.mem_efficient_sdp_enabled())
    )
    mask = state.mask("additive")
    assert mask is not None
    state.halves(mask.requires_grad_()).sum().backward()
    state.halves(mask.detach())
    assert fused == [False, True]
    assert (mask.grad != 0).any()  # type: ignore[union-attr]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit", {"init_values": 0.5}),
        ("dinov3", {"init_values": None}),
        ("beit", {"init_values": None}),
        ("beit", {"use_rel_pos_bias": False, "use_abs_pos_emb": True}),
        ("eva02", {"use_rot_pos_emb": False}),
    ],
)
def test_variants_of_the_architectures(name: str, options: dict[str, Any], state_of: Callable[..., State]) -> None:
    state = state_of(name, gathered=True, **options)
    state.append(made_tokens(state, 1))
    for kind in MASKS:
        assert torch.equal(state.halves(state.mask(kind)), state.block(state.mask(kind)))


# Made tokens: extend()


@torch.no_grad()
@EVERY_STATE
def test_a_hidden_made_token_changes_nothing(family: str, gathered: bool, state_of: Callable[..., State]) -> None:
    state = state_of(family, gathered=gathered)
    without = state.block()
    length = state.x.shape[1]
    state.append(made_tokens(state, 2))
    hidden = state.block(state.hiding(2))
    torch.testing.assert_close(hidden[:, :length], without, rtol=1e-5, atol=1e-5)
    assert torch.equal(state.halves(state.hiding(2)), hidden)
    assert (state.block()[:, :length] - without).abs().max() > 1e-3  # seen, it matters


@torch.no_grad()
@EVERY_STATE
def test_made_tokens_stand_at_no_place(family: str, gathered: bool, state_of: Callable[..., State]) -> None:
    """Their order does not matter, nor whether they came in one stage or two; that of patches may."""
    state = state_of(family, gathered=gathered)
    before = copy.copy(state)
    made = made_tokens(state, 3)
    state.append(made)
    out = state.block()
    order = torch.tensor([2, 0, 1])
    permuted = copy.copy(before)
    permuted.append(made[:, :2])
    permuted.append(made[:, 2:])
    permuted.x = torch.cat([before.x, made[:, order]], dim=1)
    again = permuted.block()
    torch.testing.assert_close(again[:, :-3], out[:, :-3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again[:, -3:], out[:, -3:][:, order], rtol=1e-5, atol=1e-5)

    if state.context is not None and family != "naflex":  # the negative control: a patch and a made token change places
        swapped = torch.arange(state.x.shape[1])
        swapped[[-1, -5]] = swapped[[-5, -1]]
        state.x = state.x[:, swapped]
        assert (state.block()[:, :-5] - out[:, :-5]).abs().max() > 1e-3


@torch.no_grad()
@EVERY_STATE
def test_a_made_copy_of_the_class_token_is_treated_as_it(
    family: str, gathered: bool, state_of: Callable[..., State]
) -> None:
    state = state_of(family, gathered=gathered)
    if not state.num_prefix:
        pytest.skip("no prefix tokens")
    state.append(torch.cat([state.x[:, :1], made_tokens(state, 1)], dim=1))
    out = state.block(state.mask("boolean"))
    torch.testing.assert_close(out[:, -2], out[:, 0], rtol=1e-5, atol=1e-5)
    assert (out[:, -1] - out[:, 0]).abs().max() > 1e-2


@torch.no_grad()
@EVERY_STATE
@pytest.mark.parametrize("name", ROTARY)
def test_a_made_token_is_not_rotated(name: str, gathered: bool, state_of: Callable[..., State]) -> None:
    """Against a block with one more prefix token, which timm does not rotate."""
    state = state_of(name, gathered=gathered)
    made = made_tokens(state, 1)
    prefix = state.num_prefix
    other = copy.deepcopy(state)
    other.backbone.blocks[NUMBER].attn.num_prefix_tokens += 1
    other.x = torch.cat([state.x[:, :prefix], made, state.x[:, prefix:]], dim=1)
    expected = other.block()
    state.append(made)
    out = state.block()
    torch.testing.assert_close(out[:, -1], expected[:, prefix], rtol=1e-5, atol=1e-5)
    rest = torch.cat([expected[:, :prefix], expected[:, prefix + 1 :]], dim=1)
    torch.testing.assert_close(out[:, :-1], rest, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@EVERY_STATE
def test_gathering_made_tokens_equals_hiding_the_others(
    family: str, gathered: bool, state_of: Callable[..., State]
) -> None:
    """Twice: some made tokens stay, more are made, and some of each are kept again."""
    state = state_of(family, gathered=gathered)
    n = state.x.shape[1] - state.num_prefix
    state.append(made_tokens(state, 2))
    state.gather(torch.stack([torch.tensor([n + 1, *range(1, n)]), torch.tensor([*range(n - 1), n])]))  # one each
    state.append(made_tokens(state, 1))
    n = state.x.shape[1] - state.num_prefix
    index = torch.stack([torch.tensor([0, 1, n - 2, n - 1, 2]), torch.tensor([3, n - 1, n - 2, 1, 5])])
    shown = torch.zeros(BATCH, n, dtype=torch.bool).scatter(1, index, True)
    keys = torch.cat([torch.ones(BATCH, state.num_prefix, dtype=torch.bool), shown], dim=1)[:, None, None]
    masked = state.block(keys)[:, state.num_prefix :].gather(1, index[..., None].expand(-1, -1, state.x.shape[2]))
    state.gather(index)
    torch.testing.assert_close(state.block()[:, state.num_prefix :], masked, rtol=1e-5, atol=1e-5)


# What an adapter says of its family


def test_class_tokens(family: str, state_of: Callable[..., State]) -> None:
    state = state_of(family)
    assert state.adapter.has_class_token == (family not in ("siglip", "gap", "gap_registers", "naflex"))
    assert state.adapter.valid(state.context) is None
    if family == "eva02":  # registers alone are prefix tokens, but no class token
        assert not state_of(family, class_token=False, num_reg_tokens=2, global_pool="avg").adapter.has_class_token


def test_an_adapter_without_the_methods_says_so(backbone_of: Backbone) -> None:
    class Plain(BackboneAdapter):
        embed = gather = block = None  # type: ignore[assignment]

    adapter = Plain(backbone_of("vit"))
    x = torch.zeros(1, 5, 48)
    for call, what in (
        (lambda: adapter.attention(0, x, None, None), "half a block"),
        (lambda: adapter.view(0, x, None, None), "attention"),
        (lambda: adapter.extend(None, 1), "made tokens"),
    ):
        with pytest.raises(UnsupportedBackbone, match=f"VisionTransformer: Plain cannot .*{what}"):
            call()
