"""What the classifier receives and what it answers, of one forward, in every family."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dynavit
from dynavit.models.features import features_and_logits

Make = Callable[..., dynavit.PrunedViT]


@pytest.mark.parametrize("adaptive", [False, True])
def test_both_are_those_of_the_methods(
    family: str, adaptive: bool, model_of: Make, images_for: Callable[..., Tensor]
) -> None:
    model = model_of(family, reducer="drop" if adaptive else "merge_nearest")
    images = images_for(model)
    with torch.no_grad():
        if adaptive:
            _, trace = model(images, return_trace=True)
            model.set_thresholds([choice.logits.median().item() for choice in trace.choices])
        features, logits = features_and_logits(model, images)
        tokens, trace = model.forward_features(images, return_trace=True)
        assert torch.equal(logits, model(images))
        assert torch.equal(features, model.forward_head(tokens, pre_logits=True, weight=trace.weight))
        assert features.shape == (3, model.num_features)
        if family != "deit_distilled":  # which has two heads
            torch.testing.assert_close(model.get_classifier()(features), logits)
