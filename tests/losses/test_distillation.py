"""Distillation of logits and of the tokens kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dynavit import PrunedViT
from dynavit.losses import keep_ratio_loss, logit_distillation, score_distillation, token_distillation


def load(vectors: Path) -> dict[str, Tensor]:
    published = np.load(vectors / "losses.npz")
    return {name: torch.from_numpy(np.asarray(published[name])) for name in published.files}


def places(kept: Tensor) -> Tensor:
    return torch.arange(kept.shape[1]).expand(kept.shape)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("empty", [False, True])
def test_parity_with_dynamicvit(vectors: Path, per_image: bool, empty: bool) -> None:
    """The whole published loss, put together from the library's parts: values and gradients."""
    v = load(vectors)
    case = f"{'img' if per_image else 'dyn'}_mse{'_empty' if empty else ''}"
    kept = v["scores"][2].bool() & (not empty)
    pred, tokens = v["pred"].clone().requires_grad_(), v["token_pred"].clone().requires_grad_()
    scores = v["scores"].clone().requires_grad_()

    task = functional.cross_entropy(pred, v["labels"])
    ratio = keep_ratio_loss(list(scores.mean(dim=2)), v["keep_ratio"].tolist(), per_image=per_image)
    logit = logit_distillation(pred, v["cls_t"])
    token = token_distillation(tokens, v["token_t"], places(kept), kept)
    total = v["clf_weight"] * task + v["ratio_weight"] * ratio + v["distill_weight"] * (logit + token)

    for name, found in (("cls", task), ("clskl", logit), ("token", token), ("total", total)):
        expected = v[f"{case}_{name}"].reshape(()).to(found.dtype)
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6, msg=name)
    gradients = torch.autograd.grad(total, [pred, tokens, scores])
    for name, gradient in zip(("pred", "token", "scores"), gradients, strict=True):
        expected = v[f"{case}_grad_{name}"]
        torch.testing.assert_close(gradient, expected.to(gradient.dtype), rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("case", ["img_kl", "dyn_kl", "img_kl_empty"])
def test_logit_parity_does_not_depend_on_the_token_loss(vectors: Path, case: str) -> None:
    v = load(vectors)
    pred = v["pred"].clone().requires_grad_()
    loss = logit_distillation(pred, v["cls_t"])
    torch.testing.assert_close(loss.detach(), v[f"{case}_clskl"], rtol=1e-5, atol=0)
    total = functional.cross_entropy(pred, v["labels"]) + v["distill_weight"].float() * loss
    (gradient,) = torch.autograd.grad(total, pred)
    torch.testing.assert_close(gradient, v[f"{case}_grad_pred"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_logit_distillation_is_the_divergence(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(6, 5, generator=generator).double() for _ in range(2))
    p, q = ((x / temperature).softmax(dim=1) for x in (teacher, student))
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(logit_distillation(student, teacher, temperature), expected)
    # KL(teacher || student), not the other way round
    assert logit_distillation(student, teacher) != logit_distillation(teacher, student)
    assert logit_distillation(teacher, teacher, temperature) == 0


def test_temperature_keeps_the_gradient_comparable() -> None:
    """For large T the gradient tends to that of half the squared difference over classes."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=generator).double() for _ in range(2))
    student, teacher = (x - x.mean(dim=1, keepdim=True) for x in (student, teacher))
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(logit_distillation(student, teacher, 1e3), student)
    torch.testing.assert_close(gradient, (student - teacher).detach() / (6 * 5), rtol=1e-2, atol=1e-4)


def test_logit_distillation_with_certain_teachers_and_half_precision() -> None:
    student = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).half().requires_grad_()
    teacher = torch.full((4, 5), -300.0).half()
    teacher[:, 2] = 300
    loss = logit_distillation(student, teacher.requires_grad_())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, functional.cross_entropy(student.float(), torch.full((4,), 2)))
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert teacher.grad is None


def features(seed: int, batch: int = 3, n: int = 6, width: int = 4) -> Tensor:
    return torch.randn(batch, n, width, generator=torch.Generator().manual_seed(seed))


KEPT = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 0], [1, 0, 0, 1, 0, 1]], dtype=torch.bool)


def test_token_distillation_counts_kept_tokens_alone() -> None:
    student, teacher = features(0), features(1)
    loss = token_distillation(student, teacher, places(KEPT), KEPT)
    torch.testing.assert_close(loss, functional.mse_loss(student[KEPT], teacher[KEPT]))
    changed = student.masked_fill(~KEPT[..., None], float("nan")).requires_grad_()
    again = token_distillation(changed, teacher, places(KEPT), KEPT)
    assert torch.equal(again, loss)
    (gradient,) = torch.autograd.grad(again, changed)
    assert (gradient[~KEPT] == 0).all()
    assert (gradient[KEPT] != 0).all()


def test_token_distillation_of_gathered_students() -> None:
    student, teacher = features(0), features(1)
    positions = KEPT.nonzero()[:, 1].reshape(3, 3)
    gathered = student.gather(1, positions[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(
        token_distillation(gathered, teacher, positions, KEPT),
        token_distillation(student, teacher, places(KEPT), KEPT),
    )


def test_token_distillation_of_nothing_is_zero() -> None:
    student = features(0).requires_grad_()
    none = torch.zeros_like(KEPT)
    loss = token_distillation(student, features(1), places(none), none)
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, student)
    assert (gradient == 0).all()


def test_teacher_gets_no_gradient() -> None:
    student, teacher = features(0).requires_grad_(), features(1).requires_grad_()
    token_distillation(student, teacher, places(KEPT), KEPT).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_half_precision_features() -> None:
    student, teacher = (200 * features(seed).half() for seed in (0, 1))
    loss = token_distillation(student, teacher, places(KEPT), KEPT)
    assert loss.dtype == torch.float32
    assert loss.isfinite()  # the squares alone exceed fp16


def test_on_a_model(model_of: Callable[..., PrunedViT], images_for: Callable[..., Tensor]) -> None:
    """Both executions give the same loss; the dense model itself is the teacher."""
    model = model_of("gap_registers")
    images = images_for(model)
    dense = model.backbone.forward_features(images)[:, model.num_prefix_tokens :]
    losses = []
    for execution in ("gather", "mask"):
        model.execution = execution  # type: ignore[assignment]
        _, trace = model(images, return_trace=True)
        assert trace.features is not None
        assert trace.positions is not None
        losses.append(token_distillation(trace.features, dense, trace.positions, trace.stages[-1].kept))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)
    assert losses[0] > 1e-3
    model.set_keep_ratio(1.0)
    _, trace = model(images, return_trace=True)
    assert token_distillation(trace.features, dense, trace.positions, trace.stages[-1].kept) == 0


def scored(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of two images' tokens in fp64, a teacher's attention, where they stand, and which are alive."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    attention = torch.rand(2, 9, generator=generator, dtype=torch.float64)
    positions = torch.stack([torch.randperm(9, generator=generator)[:7] for _ in range(2)])
    positions[0, 2] = -1  # a reducer made it
    alive = torch.ones(2, 7, dtype=torch.bool)
    alive[1, [0, 4]] = False
    return logits, attention, positions, alive


def test_score_distillation_is_the_divergence_of_shares() -> None:
    logits, attention, positions, alive = scored()
    expected = 0.0
    for image in range(2):
        tokens = [i for i in range(7) if alive[image, i] and positions[image, i] >= 0]
        teacher = torch.stack([attention[image, positions[image, i]] for i in tokens])
        teacher, student = teacher / teacher.sum(), logits[image, tokens].softmax(dim=0)
        expected += sum(p * (p / q).log() for p, q in zip(teacher, student, strict=True)) / 2
    found = score_distillation(logits, attention, positions, alive)
    torch.testing.assert_close(found, expected)
    assert found > 0.1
    logits[0, 2] = logits[1, [0, 4]] = float("nan")  # which do not count
    assert score_distillation(logits, 3 * attention, positions, alive) == pytest.approx(found)


def test_score_distillation_is_zero_where_shares_are_equal_and_of_nothing() -> None:
    _, attention, positions, alive = scored()
    agreeing = attention.gather(1, positions.clamp(min=0)).log() + torch.tensor([[5.0], [-700.0]])
    assert score_distillation(agreeing, attention, positions, alive).abs() < 1e-12
    agreeing[0, 0] += 1e-3
    assert score_distillation(agreeing, attention, positions, alive) > 1e-9
    none = torch.zeros_like(alive)
    logits = agreeing.requires_grad_()
    loss = score_distillation(logits, attention, positions, none)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_score_distillation_gradients_match_finite_differences() -> None:
    """Of the student alone; tokens that do not count get none."""
    logits, attention, positions, alive = scored()
    logits.requires_grad_(), attention.requires_grad_()
    score_distillation(logits, attention, positions, alive).backward()
    assert attention.grad is None
    step = 1e-5
    with torch.no_grad():
        for place in range(14):
            values = []
            for sign in (1, -1):
                logits.view(-1)[place] += sign * step
                values.append(score_distillation(logits, attention, positions, alive))
                logits.view(-1)[place] -= sign * step
            assert abs((values[0] - values[1]) / (2 * step) - logits.grad.view(-1)[place]) < 1e-8
    assert (logits.grad[0, 2], *logits.grad[1, [0, 4]]) == (0, 0, 0)
    assert (logits.grad != 0).sum() == 11


def test_score_distillation_of_gathered_students(
    model_of: Callable[..., PrunedViT], images_for: Callable[..., Tensor]
) -> None:
    """Tokens removed or hidden, the scores of those left are compared alike."""
    model = model_of("vit", scorer="light", selector={"name": "topk", "gradient": "none"}).train()
    images = images_for(model)
    attention = torch.rand(3, 24, generator=torch.Generator().manual_seed(0))
    losses = []
    for execution in ("gather", "mask"):
        model.execution = execution  # type: ignore[assignment]
        _, trace = model(images, return_trace=True)
        losses.append([score_distillation(c.logits, attention, c.positions, c.candidates) for c in trace.choices])
    assert trace.choices[-1].logits.shape[1] == 24
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
