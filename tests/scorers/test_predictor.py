"""The network that scores tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynavit.scorers import ScorePredictor


@pytest.fixture
def predictor() -> ScorePredictor:
    torch.manual_seed(0)
    return ScorePredictor(16)


def make_tokens(batch: int = 3, n: int = 10) -> Tensor:
    return torch.randn(batch, n, 16, generator=torch.Generator().manual_seed(1))


def make_mask() -> Tensor:
    return (torch.rand(3, 10, generator=torch.Generator().manual_seed(2)) < 0.5).float()


def test_one_raw_logit_a_token(predictor: ScorePredictor) -> None:
    logits = predictor(make_tokens())
    assert logits.shape == (3, 10)
    # no softmax over the tokens, in any disguise: neither probabilities nor their logarithms
    assert not torch.allclose(logits.logsumexp(dim=1), torch.zeros(3), atol=1e-2)
    assert not torch.allclose(logits.sum(dim=1), torch.ones(3), atol=1e-2)


def test_starts_near_the_dense_model() -> None:
    for start in (2.0, -1.0):
        logits = ScorePredictor(16, initial_logit=start)(make_tokens()).detach()
        assert float(logits.mean()) == pytest.approx(start, abs=0.5)
        assert logits.std() > 1e-4  # all equal, and top-k would choose by position


def test_no_mask_is_a_mask_of_ones(predictor: ScorePredictor) -> None:
    torch.testing.assert_close(predictor(make_tokens()), predictor(make_tokens(), torch.ones(3, 10)))


def test_masked_context_is_that_of_the_tokens_left(predictor: ScorePredictor) -> None:
    """Mask and gather execution score alike."""
    tokens, mask = make_tokens(), make_mask()
    logits = predictor(tokens, mask)
    for image in range(3):
        left = mask[image].bool()
        alone = predictor(tokens[image : image + 1, left])
        torch.testing.assert_close(logits[image : image + 1, left], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits, predictor(tokens), atol=1e-3)


def test_dropped_tokens_do_not_matter(predictor: ScorePredictor) -> None:
    tokens, mask = make_tokens(), make_mask()
    other = torch.where(mask.bool()[..., None], tokens, 5 * tokens.flip(0))
    kept = mask.bool()
    torch.testing.assert_close(predictor(tokens, mask)[kept], predictor(other, mask)[kept])


def test_image_without_tokens_stays_finite(predictor: ScorePredictor) -> None:
    """DynamicViT's own predictor divides 0 by 0 here."""
    mask = torch.zeros(3, 10, requires_grad=True)
    logits = predictor(make_tokens(), mask)
    (gradient,) = torch.autograd.grad(logits.sum(), mask)
    assert logits.isfinite().all()
    assert gradient.isfinite().all()
    # clamped at one token: nearly nothing left must not be blown up to a full context
    nearly = predictor(make_tokens(), torch.full((3, 10), 1e-4))
    torch.testing.assert_close(nearly, logits.detach(), atol=1e-2, rtol=0)


def test_names_of_the_parameters_are_those_of_saved_models(predictor: ScorePredictor) -> None:
    layers = ["embed.0", "embed.1", "score.0", "score.2", "score.4"]
    assert list(predictor.state_dict()) == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def test_permutation_equivariance(predictor: ScorePredictor) -> None:
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    permuted = predictor(make_tokens()[:, order], make_mask()[:, order])
    torch.testing.assert_close(permuted, predictor(make_tokens(), make_mask())[:, order])


def test_half_precision(predictor: ScorePredictor) -> None:
    expected = predictor(make_tokens(), make_mask())
    logits = predictor.bfloat16()(make_tokens().bfloat16(), make_mask())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.05)
