"""What is said of a data set's answers."""

from __future__ import annotations

import math

import pytest
import torch

from dynavit import create_model
from dynavit.tasks.answers import Answers, selection_metrics


@pytest.mark.parametrize(("rule", "kept"), [("original", 33), ("current", 34), ("linear", 66)])
def test_expected_is_compared_with_the_count_kept_not_the_ratio(rule: str, kept: int) -> None:
    """100 patches at 0.333: "original" rounds down, "current" up, "linear" takes half of it at the first stage."""
    model = create_model("test_vit", stages=(2, 4), keep_ratio=0.333, selector="ste", count_rule=rule).eval()
    for scorer in model.predictors:
        torch.nn.init.zeros_(scorer.score[-1].weight)  # so that every logit is the bias, 2
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output, trace = model(images, return_trace=True)
    expected = torch.stack([choice.expected for choice in trace.choices], dim=1)
    answers = Answers(torch.arange(2), torch.zeros(2), output, trace.stages[0].kept, expected)
    found = selection_metrics(model, answers)["expected_minus_ratio"]
    assert found == pytest.approx(1 / (1 + math.exp(-2)) - kept / 100, abs=1e-6)
