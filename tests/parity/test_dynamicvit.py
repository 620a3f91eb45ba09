"""Parity with the published DynamicViT: its own code's outputs and gradients, in vectors/README terms.

raoyongming/DynamicViT at commit 1322e62, random weights, 6 blocks of width 48, pruned before blocks
2, 3 and 4 to 137, 96 and 67 of 196 patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import dynavit
from dynavit import PrunedViT, Selection, Selector
from dynavit.losses import token_distillation
from dynavit.models.attention_bias import attention_mask
from dynavit.selectors import Fixed, SelectionRequest
from dynavit.selectors.functional import straight_through

RATIOS = (0.7, 0.49, 0.343)


def from_dynamicvit(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename DynamicViT's weights to ours.

    Its predictor ends in two outputs and a LogSoftmax, channel 0 for keep; ours in one logit, their
    difference: softmax([l0, l1])[0] = sigmoid(l0 - l1).
    """
    ours = {}
    for name, value in theirs.items():
        if not name.startswith("score_predictor."):
            ours[f"backbone.{name}"] = value
            continue
        _, stage, part, layer, kind = name.split(".")
        if (part, layer) == ("out_conv", "4"):
            value = value[:1] - value[1:]
        ours[f"scorers.{stage}.{'embed' if part == 'in_conv' else 'score'}.{layer}.{kind}"] = value
    return ours


@pytest.fixture(scope="module")
def v(vectors: Path) -> dict[str, Tensor]:
    published = np.load(vectors / "dynamicvit_tiny.npz")
    return {name: torch.from_numpy(published[name]) for name in published.files}


@pytest.fixture(scope="module")
def images() -> Tensor:
    pixels = np.random.RandomState(0).standard_normal((2, 3, 224, 224))
    return torch.from_numpy(pixels.astype(np.float32))


@pytest.fixture
def model(vectors: Path) -> PrunedViT:
    kwargs: dict[str, Any] = {"embed_dim": 48, "depth": 6, "num_heads": 3, "num_classes": 10}
    pruned = dynavit.create_model(
        "vit_tiny_patch16_224", stages=(2, 3, 4), keep_ratios=RATIOS, scorer="mlp", reducer="drop", **kwargs
    )
    pruned.load_state_dict(from_dynamicvit(load_file(vectors / "dynamicvit_tiny.safetensors")))
    return pruned.eval()


class Replay(Fixed):
    """Given decisions, in a model that runs its scorers all the same."""

    needs_scores = True


class NoiseFree(Selector):
    """DynamicViT's straight-through without noise, for given hard decisions."""

    fixed_k = False

    def __init__(self, decisions: Tensor, stage: int = 0) -> None:
        super().__init__()
        self.decisions, self.stage = decisions, stage

    def at(self, stage: int, positions: Tensor) -> Selector:
        return NoiseFree(self.decisions, stage)

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        hard, soft = self.decisions[self.stage], logits.sigmoid()
        return Selection(hard.bool() & request.alive, straight_through(hard, soft), soft * request.alive)


def recorded(model: PrunedViT) -> list[Tensor]:
    """The scorers' outputs of the forwards to come."""
    scores: list[Tensor] = []
    for predictor in model.scorers:
        predictor.register_forward_hook(lambda module, inputs, output: scores.append(output.detach()))
    return scores


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def test_dense(model: PrunedViT, images: Tensor, v: dict[str, Tensor]) -> None:
    model.set_keep_ratio(1.0)
    logits, trace = model(images, return_trace=True)
    assert trace.features is not None
    torch.testing.assert_close(logits, v["dense_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(trace.features, v["dense_tokens_norm"], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("execution", ["gather", "mask"])
def test_evaluation(model: PrunedViT, execution: str, images: Tensor, v: dict[str, Tensor]) -> None:
    model.execution = execution  # type: ignore[assignment]
    scores = recorded(model)
    blocks: list[Tensor] = []
    for block in model.backbone.blocks:
        block.register_forward_hook(lambda module, inputs, output: blocks.append(output[:, 0]))
    logits, trace = model(images, return_trace=True)
    torch.testing.assert_close(logits, v["eval_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.stack(blocks), v["eval_block_out_cls"], atol=1e-4, rtol=0)
    entering = torch.arange(196).expand(2, -1)  # theirs are sorted by score from stage to stage
    for stage, kept in enumerate(trace.kept):
        theirs = v[f"eval_kept_{stage}"].long()
        assert torch.equal(kept, theirs.sort(dim=1).values)
        logprob = v[f"eval_logprob_{stage}"]
        places = entering if execution == "mask" else entering.argsort(dim=1).argsort(dim=1)
        mine = scores[stage].gather(1, places)
        torch.testing.assert_close(mine, logprob[..., 0] - logprob[..., 1], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(mine.sigmoid(), logprob[..., 0].exp(), atol=1e-5, rtol=0)
        entering = theirs


@torch.no_grad()
def test_evaluation_in_double_precision(model: PrunedViT, images: Tensor, v: dict[str, Tensor]) -> None:
    logits = model.double()(images.double())
    torch.testing.assert_close(logits, v["eval_logits_f64"], atol=1e-12, rtol=0)


def train_on(model: PrunedViT, selector: Selector, images: Tensor) -> tuple[Tensor, Any]:
    model.train()
    model.mask_form = "identity"
    model.selector = selector.train()
    return model(images, return_trace=True)


def test_training_forward_and_gradients(model: PrunedViT, images: Tensor, v: dict[str, Tensor]) -> None:
    decisions = [d.clone().requires_grad_() for d in v["decisions"].float()]
    scores = recorded(model)
    logits, trace = train_on(model, Replay(decisions), images)

    torch.testing.assert_close(logits.detach(), v["train_logits"], atol=1e-5, rtol=0)
    assert torch.equal(trace.weight.detach(), v["train_mask"])
    kept = v["train_mask"].bool()
    torch.testing.assert_close(trace.features.detach()[kept], v["train_features"][kept], atol=1e-4, rtol=0)
    for stage in range(3):
        assert torch.equal(trace.stages[stage].kept.float(), v[f"train_out_pred_prob_{stage}"])
        logprob = v[f"train_logprob_{stage}"]
        found = scores[stage]
        # their scores of dropped tokens come from rows that only the identity term defines
        torch.testing.assert_close(found, logprob[..., 0] - logprob[..., 1], atol=2e-4, rtol=1e-4)

    (logits * v["R"]).sum().backward()
    for stage, decision in enumerate(decisions):
        assert decision.grad is not None
        assert relative(decision.grad, v[f"train_grad_decision_{stage}"]) < 1e-5
    gradients = {
        "patch_embed_weight": model.backbone.patch_embed.proj.weight.grad,
        "qkv_weight_3": model.backbone.blocks[3].attn.qkv.weight.grad,
        "cls_token": model.backbone.cls_token.grad,
    }
    for name, gradient in gradients.items():
        assert relative(gradient, v[f"train_grad_{name}"]) < 1e-5, name


def test_key_form_has_the_same_values_but_other_gradients(
    model: PrunedViT, images: Tensor, v: dict[str, Tensor]
) -> None:
    """What the identity form is needed for: parity fails without it, in the gradient of kept tokens."""
    decisions = [d.clone().requires_grad_() for d in v["decisions"].float()]
    model.train()
    model.selector = Fixed(decisions).train()
    logits, trace = model(images, return_trace=True)
    torch.testing.assert_close(logits.detach(), v["train_logits"], atol=1e-5, rtol=0)
    kept = v["train_mask"].bool()
    torch.testing.assert_close(trace.features.detach()[kept], v["train_features"][kept], atol=1e-4, rtol=0)
    (logits * v["R"]).sum().backward()
    found, expected = decisions[2].grad, v["train_grad_decision_2"]
    assert found is not None
    assert 1e-3 < relative(found[kept], expected[kept]) < 0.1


def test_straight_through_gradients(model: PrunedViT, images: Tensor, v: dict[str, Tensor]) -> None:
    """The scorers' gradients, through the masks, against theirs with two outputs a token."""
    logits, _ = train_on(model, NoiseFree(v["decisions"].float()), images)
    (logits * v["R"]).sum().backward()
    assert relative(model.backbone.pos_embed.grad, v["ste_grad_pos_embed"]) < 1e-5
    for stage, predictor in enumerate(model.scorers):
        last, first = predictor.score[4], predictor.embed[1]  # type: ignore[index]
        expected = v[f"ste_grad_predictor_out4_weight_{stage}"]
        assert isinstance(last.weight.grad, Tensor)
        # d / d(l0 - l1) reaches their two rows with opposite signs
        assert relative(torch.cat([last.weight.grad, -last.weight.grad]), expected) < 1e-5
        assert relative(first.weight.grad, v[f"ste_grad_predictor_in1_weight_{stage}"]) < 1e-5


def test_training_at_the_kept_sets_of_evaluation(model: PrunedViT, images: Tensor, v: dict[str, Tensor]) -> None:
    decisions = [torch.zeros(2, 196).scatter(1, v[f"eval_kept_{stage}"].long(), 1.0) for stage in range(3)]
    logits, _ = train_on(model, Fixed(decisions), images)
    torch.testing.assert_close(logits.detach(), v["train_at_eval_mask_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.detach(), v["eval_logits"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_kept_token_distillation_reads_their_features(model: PrunedViT, images: Tensor, v: dict[str, Tensor]) -> None:
    """Their loss compares features and mask of the training forward with the dense model's tokens."""
    _, trace = train_on(model, Fixed(list(v["decisions"].float())), images)
    kept = v["train_mask"].bool()
    expected = nn.functional.mse_loss(v["train_features"][kept], v["dense_tokens_norm"][kept])
    found = token_distillation(trace.features, v["dense_tokens_norm"], trace.positions, trace.stages[-1].kept)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_weights_fit_a_plain_timm_model(vectors: Path, images: Tensor, v: dict[str, Tensor]) -> None:
    theirs = load_file(vectors / "dynamicvit_tiny.safetensors")
    vit = timm.create_model("vit_tiny_patch16_224", embed_dim=48, depth=6, num_heads=3, num_classes=10).eval()
    vit.load_state_dict({k: t for k, t in theirs.items() if not k.startswith("score_predictor")})
    with torch.no_grad():
        torch.testing.assert_close(vit(images), v["dense_logits"], atol=1e-5, rtol=0)


# The policy softmax alone


def ours(scores: Tensor, policy: Tensor) -> Tensor:
    """Attention through the library's bias; the policies of the cases cover all nine tokens."""
    bias = attention_mask(policy[..., 0], num_prefix=0, training=True, form="identity")
    return (scores + bias).softmax(dim=-1)


@pytest.mark.parametrize("case", ["hard", "soft", "ones"])
def test_policy_softmax(vectors: Path, case: str) -> None:
    p = {name: torch.from_numpy(value) for name, value in np.load(vectors / "policy_softmax.npz").items()}
    scores = p["attn"].clone().requires_grad_()
    policy = p[f"policy_{case}"].clone().requires_grad_()
    attention = ours(scores, policy)
    output = attention @ p["v"]
    gradients = torch.autograd.grad((output * p["G"]).sum(), [scores, policy])
    torch.testing.assert_close(attention.detach(), p[f"softmax_{case}"], atol=5e-5, rtol=0)
    torch.testing.assert_close(output.detach(), p[f"out_{case}"], atol=1e-4, rtol=0)
    for name, gradient in zip(("attn", "policy"), gradients, strict=True):
        assert relative(gradient, p[f"grad_{name}_{case}"]) < 2e-4, name


def test_policy_softmax_with_one_extreme_dropped_key(vectors: Path) -> None:
    """The published code's fault, which we do not share in eval, and say of ours in training."""
    p = {name: torch.from_numpy(value) for name, value in np.load(vectors / "policy_softmax.npz").items()}
    scores, policy, dropped = p["attn_extreme"], p["policy_hard"], int(p["extreme_dropped_key"])
    rows = policy[0, :, 0].bool()
    assert not rows[dropped]
    theirs = p["softmax_extreme"][0, 0, rows]
    assert relative(theirs, torch.full_like(theirs, 1 / 9)) < 1e-3  # uniform, whatever the scores

    keys = attention_mask(policy[..., 0], num_prefix=0, training=False, form="identity")
    exact = scores.masked_fill(~keys, -torch.inf).softmax(dim=-1)[0, 0, rows]
    assert (exact[:, dropped] == 0).all()
    assert (exact - theirs).abs().max() > 0.5
    mine = ours(scores, policy)[0, 0, rows]
    assert (mine - theirs).abs().max() > 0.5
    assert mine.isfinite().all()


def test_conversion_covers_every_weight(model: PrunedViT, vectors: Path) -> None:
    converted = from_dynamicvit(load_file(vectors / "dynamicvit_tiny.safetensors"))
    assert converted.keys() == model.state_dict().keys()
    logits: Callable[[Tensor], Tensor] = model.scorers[0]
    assert logits(torch.randn(1, 4, 48)).shape == (1, 4)
