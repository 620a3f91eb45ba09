"""What a correct selection guided by other spectra needs, one test a requirement.

Each is about something that a port of SEPS into multi-modal re-identification got wrong, or could have.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dynavit
from dynavit import InputError, PrunedViT
from dynavit.config import Config, LossConfig, ScheduleConfig, load_config
from dynavit.functional import log_mask
from dynavit.losses import create_metric_loss, keep_ratio_loss
from dynavit.reducers import TokenSet, create_reducer
from dynavit.runs.build import StartingModel
from dynavit.selectors import create_selector, list_selectors
from dynavit.selectors.functional import logistic_noise
from dynavit.tasks.count_loss import CountLoss
from dynavit.tasks.objective import Scheduled
from dynavit.tasks.reid import ReidObjective
from dynavit.training.optimization import clip_by_part, create_optimizer

M, IDENTITIES = 3, 4
LABELS = torch.arange(IDENTITIES).repeat_interleave(2)
GUIDED = {"name": "guided", "guides": M - 1}
TRAINABLE = [name for name in list_selectors() if name != "fixed" and create_selector(name).trains_scorer]
EXPECTED_COUNT = [name for name in TRAINABLE if not create_selector(name).fixed_k]


def create(seed: int = 0, **options: Any) -> PrunedViT:
    torch.manual_seed(seed)
    size = {"img_size": (32, 16), "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3}
    options = {"stages": (1, 2), "keep_ratio": 0.6, "reducer": "drop", "scorer": GUIDED, "selector": "ste", **options}
    return dynavit.create_model("vit_tiny_patch16_224", **size, num_identities=IDENTITIES, spectra=M, **options).train()


def samples(seed: int = 0) -> Tensor:
    return torch.randn(2 * IDENTITIES, M, 3, 32, 16, generator=torch.Generator().manual_seed(seed))


def losses(model: PrunedViT, images: Tensor, seed: int = 0, **settings: Any) -> tuple[dict[str, Tensor], Any]:
    """A training step's losses, with the keep-ratio loss where it applies."""
    count_loss = None if model.selector.fixed_k else CountLoss("probabilities")
    objective = ReidObjective(LossConfig(**settings), model, count_loss, None, None)  # type: ignore[arg-type]
    objective.inputs = lambda indices: {}  # type: ignore[method-assign]  # no data that tell cameras
    counts = model.stage_counts(32)
    torch.manual_seed(seed)
    return objective(model, images, LABELS, torch.arange(len(LABELS)), Scheduled(1.0, counts))


def norm_of(parameters: Sequence[nn.Parameter]) -> float:
    return float(sum(p.grad.square().sum() for p in parameters if p.grad is not None)) ** 0.5


def scores_of(model: PrunedViT, images: Tensor, **forward: Any) -> list[Tensor]:
    """What the scorers gave in a forward, with gradients retained."""
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, logits: Tensor) -> None:
        if logits.requires_grad:
            logits.retain_grad()
        found.append(logits)

    handles = [scorer.register_forward_hook(keep) for scorer in model.scorers]
    model(images, **forward)
    for handle in handles:
        handle.remove()
    return found


def test_requirement_1_a_logit_in_fp32_that_starts_near_dense() -> None:
    model = create()
    logits = torch.cat([logits.flatten() for logits in scores_of(model, samples())])
    assert logits.max() > 1  # no sigmoid is inside
    assert logits.sigmoid().mean() > 0.75
    assert all(scorer.scorer.score.bias >= 1 for scorer in model.scorers)
    assert all(scorer.scorer.score.weight.abs().max() < 1 for scorer in model.scorers)
    with torch.autocast("cpu", torch.bfloat16):
        low = scores_of(model, samples())
    assert all(one.dtype == torch.float32 for one in low)
    assert all(len(one.unique()) > 0.9 * one.numel() for one in low)  # bf16 has 128 numbers from 2 to 4


def test_requirement_2_binary_noise_the_same_in_both_directions_and_none_in_eval() -> None:
    logits = torch.randn(4, 32, requires_grad=True)
    alive, selector = torch.ones(4, 32, dtype=torch.bool), create_selector("ste")
    noise = logistic_noise(logits, torch.Generator().manual_seed(1))
    uniform = noise.sigmoid()
    assert uniform.isfinite().all()
    assert uniform.min() > 0
    assert uniform.max() < 1
    selection = selector(logits, alive, 16, 0.7, torch.Generator().manual_seed(1), True)
    assert torch.equal(selection.keep, logits + noise > 0)
    selection.mask.sum().backward()
    soft = torch.sigmoid((logits.detach() + noise) / 0.7)
    torch.testing.assert_close(logits.grad, soft * (1 - soft) / 0.7)
    model = create().eval()
    first, trace = model(samples(), return_trace=True)
    torch.manual_seed(5)
    assert torch.equal(model(samples()), first)
    assert [int(choice.num_kept.unique()) for choice in trace.choices] == model.stage_counts(32)


def test_requirement_3_masks_act_through_logarithms_and_never_before_a_norm() -> None:
    """Nothing multiplies their gradient: 1 / mask at 1, where the published aggregation has 1e10."""
    mask = torch.ones(1, 8, requires_grad=True)
    log_mask(mask).sum().backward()
    torch.testing.assert_close(mask.grad, torch.ones(1, 8), rtol=1e-5, atol=0)
    torch.manual_seed(0)
    aggregate = create_reducer("aggregate", 24, tokens=4)
    kept, dropped = torch.randn(2, 6, 24), torch.randn(2, 3, 24)
    mask = torch.ones(2, 6, requires_grad=True)
    made = aggregate(TokenSet(kept, torch.randn(2, 6), mask), TokenSet(dropped, torch.randn(2, 3))).tokens
    made.square().sum().backward()
    assert 1e-4 < mask.grad.norm() < 1e2
    # the tokens that a block sees are the same whatever the masks say: only keys and pooling are weighed
    model = create(selector="gumbel_sigmoid")
    seen: list[Tensor] = []
    model.backbone.blocks[1].norm1.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for seed in (0, 1):
        model(samples(), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(seen[0], seen[1])


def test_requirement_4_class_tokens_stay_and_masks_multiply() -> None:
    model = create(selector="gumbel_sigmoid")
    _, trace = model(samples(), return_trace=True, generator=torch.Generator().manual_seed(0))
    drawn = torch.Generator().manual_seed(0)
    product = torch.ones(2 * IDENTITIES * M, 32)
    for choice in trace.choices:
        product = product * torch.sigmoid(choice.logits + logistic_noise(choice.logits, drawn))
        torch.testing.assert_close(choice.decided, product.mean(dim=1), rtol=1e-4, atol=1e-5)
    model = create().eval()
    tokens = model.forward_features(samples())
    assert tokens.shape[1] == model.num_prefix_tokens + model.stage_counts(32)[-1]
    hard = create()
    _, trace = hard(samples(), return_trace=True, generator=torch.Generator().manual_seed(0))
    assert not (trace.stages[1].kept & ~trace.stages[0].kept).any()


@pytest.mark.parametrize("selector", TRAINABLE)
def test_requirement_5_a_ratio_loss_has_gradient_where_the_count_is_only_expected(selector: str) -> None:
    model = create(selector=selector)
    found, trace = losses(model, samples(), metric_weight=0.0, identity_weight=0.0)
    assert ("keep_ratio" in found) == (selector in EXPECTED_COUNT)
    if selector in EXPECTED_COUNT:
        found["keep_ratio"].backward()
        assert norm_of([*model.scorers.parameters()]) > 1e-3
        expected = [choice.expected for choice in trace.choices]
        wanted = [count / 32 for count in model.stage_counts(32)]
        torch.testing.assert_close(found["keep_ratio"], keep_ratio_loss(expected, wanted), rtol=1e-4, atol=1e-6)
    # cameras are in the tokens alone: with their table at zero they change no probability
    side = create(selector=selector, side={"cameras": 2})
    nn.init.zeros_(side.side.table)
    cameras = torch.arange(len(LABELS)) % 2
    both = [
        scores_of(side, samples(), cameras=one, generator=torch.Generator().manual_seed(0))[0]
        for one in (cameras, cameras.flip(0))
    ]
    assert torch.equal(*both)


def test_requirement_6_temperature_clipping_rates_and_warm_up() -> None:
    schedule, config = ScheduleConfig(), Config()
    assert schedule.temperature_start == schedule.temperature_end == 1
    assert config.train.clip_grad_norm is not None
    assert 1 <= config.train.clip_grad_norm <= 5
    assert config.optimizer.backbone_lr_scale <= 1
    shipped = load_config(Path(__file__).parents[2] / "configs/quickstart/multimodal.yaml")
    assert shipped.optimizer.backbone_lr_scale < 1
    model = create()
    optimizer = create_optimizer(shipped.optimizer, StartingModel(model, model, True, False), "none")
    rates = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    scorer, block = model.scorers[0].tenths, model.backbone.blocks[0].attn.qkv.weight
    assert rates[id(scorer)] / rates[id(block)] == pytest.approx(1 / shipped.optimizer.backbone_lr_scale)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    clip_by_part(optimizer, 1.0)
    fast = [p for group in optimizer.param_groups for p in group["params"] if rates[id(p)] == rates[id(scorer)]]
    slow = [p for group in optimizer.param_groups for p in group["params"] if rates[id(p)] == rates[id(block)]]
    assert norm_of(fast) == pytest.approx(1, rel=1e-3)  # each part by itself
    assert norm_of(slow) == pytest.approx(1, rel=1e-3)
    assert hasattr(schedule, "keep_ratio_warmup_epochs")


def test_requirement_7_top_k_teaches_kept_and_dropped_or_says_that_it_does_not() -> None:
    model = create(selector="topk")
    model.execution = "mask"
    logits = scores_of(model, samples())
    keeps = [one.argsort(dim=1, descending=True)[:, :k] for one, k in zip(logits, model.stage_counts(32), strict=True)]
    # the graph of the same forward
    torch.manual_seed(0)
    found: list[Tensor] = []
    for scorer in model.scorers:
        scorer.register_forward_hook(lambda module, given, out: (out.retain_grad(), found.append(out))[0])
    model(samples()).each_features.square().sum().backward()
    kept = torch.zeros_like(found[0], dtype=torch.bool).scatter(1, keeps[0], True)
    assert (found[0].grad[kept] != 0).float().mean() > 0.9
    assert (found[0].grad[~kept] != 0).float().mean() > 0.9
    frozen = create(selector={"name": "topk", "gradient": "none"})
    optimizer = create_optimizer(Config().optimizer, StartingModel(frozen, frozen, True, False), "none")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in trained or p.requires_grad for p in frozen.scorers.parameters())
    model.execution, model.probes = "gather", 0
    with pytest.raises(InputError, match="learns by the masks of dropped tokens, of which none would be left"):
        model(samples())


def test_requirement_8_distances_in_fp32_a_margin_and_what_is_logged() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(8, 16), LABELS
    loss = create_metric_loss("triplet", num_classes=4, embedding_size=16)
    with torch.autocast("cpu", torch.bfloat16):
        value, statistics = loss(features, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(features, labels)[0])
    distance = torch.cdist(features, features)
    same = labels[:, None] == labels
    positive = distance.masked_fill(~same, 0).amax(dim=1)
    negative = distance.masked_fill(same, 1e9).amin(dim=1)
    torch.testing.assert_close(value, F.relu(positive - negative + 0.3).mean())
    torch.testing.assert_close(statistics["metric/hardest_positive"], positive.mean())
    torch.testing.assert_close(statistics["metric/hardest_negative"], negative.mean())
    torch.testing.assert_close(statistics["metric/feature_norm"], features.norm(dim=1).mean())
    unit = create_metric_loss("triplet", num_classes=4, embedding_size=16, normalize=True)
    torch.testing.assert_close(unit(features, labels)[0], unit(3 * features, labels)[0])


@pytest.mark.parametrize("selector", TRAINABLE)
def test_requirement_9_gradients_executions_and_precision(selector: str) -> None:
    model = create(selector=selector)
    found, trace = losses(model, samples())
    found["loss"].backward()
    ratio = norm_of([*model.scorers.parameters()]) / norm_of([*model.backbone.parameters()])
    assert 1e-4 < ratio < 1e2
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    assert all(len(later.kept) and not (later.kept & ~earlier.kept).any() for earlier, later in zip(
        trace.stages, trace.stages[1:], strict=False
    ))  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = losses(model, samples())
    assert all(loss.isfinite() for loss in low.values())
    low["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    deployed = copy.deepcopy(model).eval()
    with torch.no_grad():
        gathered = deployed(samples())
        deployed.execution = "mask"
        torch.testing.assert_close(deployed(samples()), gathered, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("selector", [name for name in TRAINABLE if not create_selector(name).soft])
def test_requirement_9_the_forward_is_that_of_the_hard_mask(selector: str) -> None:
    logits = torch.randn(3, 32, requires_grad=True)
    alive = torch.ones(3, 32, dtype=torch.bool)
    selection = create_selector(selector)(logits, alive, 16, 1.0, torch.Generator().manual_seed(0), True)
    assert torch.equal(selection.mask, selection.keep.float())
    assert selection.mask.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize(("selector", "seeds"), [("topk", 20), ("ste", 5)])
def test_requirement_10_twenty_seeds_stay_finite_at_keep_ratio_0_3(selector: str, seeds: int) -> None:
    for seed in range(seeds):
        model = create(seed, selector=selector, keep_ratio=0.3)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        seen: list[float] = []
        for step in range(100):
            optimizer.zero_grad()
            soft = {"name": "triplet", "soft_margin": True}
            found, _ = losses(model, samples(100 * seed + step % 4), seed=step, metric=soft)
            found["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seen.append(float(found["loss"].detach()))
        assert all(p.isfinite().all() for p in model.parameters()), seed
        assert max(seen) < 2 * seen[0], seed
        assert sum(seen[-4:]) < 0.9 * sum(seen[:4]), seed  # of the same four batches
