"""The keep-ratio loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dynavit.losses import keep_ratio_loss

RATIOS = [0.7, 0.49, 0.343]


@pytest.mark.parametrize(("case", "per_image"), [("img", True), ("dyn", False)])
@pytest.mark.parametrize("suffix", ["kl", "mse", "kl_empty", "mse_empty"])
def test_parity_with_dynamicvit(vectors: Path, case: str, per_image: bool, suffix: str) -> None:
    """Values and gradients of the published loss: there the stages are summed, and weighted 2 / 3."""
    published = np.load(vectors / "losses.npz")
    assert published["keep_ratio"].tolist() == pytest.approx(RATIOS)
    scores = torch.from_numpy(published["scores"]).clone()
    scores.requires_grad_()
    loss = keep_ratio_loss(list(scores.mean(dim=2)), RATIOS, per_image=per_image)
    assert 3 * float(loss.detach()) == pytest.approx(float(published[f"{case}_{suffix}_ratio"]), rel=1e-5)
    weight = float(published["ratio_weight"])
    (gradient,) = torch.autograd.grad(weight * loss, scores)
    expected = torch.from_numpy(published[f"{case}_{suffix}_grad_scores"])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)


def test_per_image_and_of_the_batch() -> None:
    expected = [torch.tensor([0.5, 0.9])]
    assert float(keep_ratio_loss(expected, [0.7])) == pytest.approx(0.04)
    assert float(keep_ratio_loss(expected, [0.7], per_image=False)) == pytest.approx(0.0, abs=1e-12)


def test_mean_over_stages() -> None:
    stages = [torch.tensor([0.8, 0.8]), torch.tensor([0.5, 0.5])]
    assert float(keep_ratio_loss(stages, [0.7, 0.2])) == pytest.approx((0.01 + 0.09) / 2)


def test_gradient_pulls_towards_the_ratio() -> None:
    logits = torch.tensor([[3.0] * 10, [-3.0] * 10], requires_grad=True)
    expected = logits.sigmoid().mean(dim=1)
    (gradient,) = torch.autograd.grad(keep_ratio_loss([expected], [0.5]), logits)
    assert (gradient[0] > 0).all()
    assert (gradient[1] < 0).all()


def test_minimum_is_at_the_ratio_and_not_beside_it() -> None:
    """On expected fractions the optimum has p = ratio; on sampled ones p (1 - p) / N is added."""
    p = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    losses = torch.stack([keep_ratio_loss([x[None]], [0.7]) for x in p])
    assert float(p[losses.argmin()]) == pytest.approx(0.7)
    assert float(losses.min()) == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize(("stages", "ratios"), [(0, []), (2, [0.5]), (1, [0.5, 0.4])])
def test_stages_and_ratios_must_match(stages: int, ratios: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{stages} stages and {len(ratios)} keep ratios"):
        keep_ratio_loss([torch.ones(2)] * stages, ratios)
