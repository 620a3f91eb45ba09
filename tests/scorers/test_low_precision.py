"""In half precision scorers choose nearly the same tokens as in fp32."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynavit
from dynavit.data.quickstart import ClutteredDigits
from dynavit.data.transforms import create_transforms
from dynavit.scorers import create_scorer

FOLDER = Path(__file__).parents[2] / "checkpoints/quickstart-pruned"
SHARE = {torch.bfloat16: 0.99, torch.float16: 0.995}


@pytest.fixture(scope="module")
def model() -> dynavit.PrunedViT:
    return dynavit.load(FOLDER)


@pytest.fixture(scope="module")
def images(model: dynavit.PrunedViT) -> Tensor:
    _, transform = create_transforms(**model.metadata["preprocessing"])
    data = ClutteredDigits(train=False, size=128, transform=transform)
    return torch.stack([data[number][0] for number in range(len(data))])


class Choices(nn.Module):
    """Returns which patches each stage keeps, and the scores of the first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        _, trace = self.model(images, return_trace=True)
        return [stage.kept for stage in trace.stages], trace.choices[0].logits


@torch.inference_mode()
@pytest.mark.parametrize("dtype", SHARE)
@pytest.mark.parametrize("how", ["autocast", "cast", pytest.param("exported", marks=pytest.mark.slow)])
def test_the_trained_quickstart_model_keeps_the_same_tokens(
    model: dynavit.PrunedViT, images: Tensor, dtype: torch.dtype, how: str
) -> None:
    run: Any = Choices(model)
    expected, _ = run(images)
    if how == "autocast":
        with torch.autocast("cpu", dtype=dtype):
            found, scores = run(images)
    else:
        run = copy.deepcopy(run).to(dtype)
        if how == "exported":
            run = torch.export.export(run, (images.to(dtype),), strict=False).module()
        found, scores = run(images.to(dtype))
    assert scores.dtype == torch.float32
    assert sum(len(row.unique()) for row in scores) / scores.numel() > 0.99  # they collapsed to 6 values of 64
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine & theirs).sum() / theirs.sum() >= SHARE[dtype]


@pytest.mark.parametrize("name", ["mlp", "light", "linear"])
def test_a_large_bias_does_not_swallow_the_differences(name: str) -> None:
    torch.manual_seed(0)
    scorer = create_scorer(name, 32, initial_logit=100.0)
    tokens = torch.randn(2, 50, 32)
    low = copy.deepcopy(scorer).bfloat16()(tokens.bfloat16())
    assert low.dtype == torch.float32
    assert len(low.unique()) > 90
    torch.testing.assert_close(low, scorer(tokens), rtol=0, atol=0.05)
