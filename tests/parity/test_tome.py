"""Parity with the published ToMe: its own code's outputs, in vectors/README terms.

facebookresearch/ToMe at commit af95e4b, random weights, 6 blocks of width 48; every block merges 8 tokens, or fewer
and fewer, between attention and MLP; with and without proportional attention.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dynavit import PrunedViT
from dynavit.models.ratios import ratios_removing

Make = Callable[..., PrunedViT]
FORMS = ["r8_prop", "r8_noprop", "r8dec_prop", "r8dec_noprop"]


@pytest.fixture(scope="module")
def v(published: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return published("tome_tiny")


def tome(form: str, v: dict[str, Tensor], make: Make) -> PrunedViT:
    """Return the model that merges as the published one did in this form."""
    left = (v[f"{form}_ntokens"] - 1).tolist()  # of its 197 tokens one is the class token
    return make(
        stages=range(6),
        keep_ratios=[-(-1000 * count // 196) / 1000 for count in left],
        placement="inside",
        reducer={"name": "merge", "proportional": form.endswith("_prop")},
    )


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_same_logits_sources_and_tokens(
    form: str, v: dict[str, Tensor], with_published_weights: Make, published_images: Tensor
) -> None:
    model = tome(form, v, with_published_weights)
    logits, trace = model(published_images, return_trace=True)
    torch.testing.assert_close(logits, v[f"{form}_logits"], rtol=1e-4, atol=1e-5)
    assert [lengths.tolist() for lengths in [stage.length for stage in trace.stages]] == [
        [n - 1] * 2 for n in v[f"{form}_ntokens"].tolist()
    ]
    assert trace.source is not None
    assert torch.equal(trace.source + 1, v[f"{form}_group_of_token"][:, 1:].long())
    sizes = torch.stack([torch.bincount(row, minlength=trace.stages[-1].length[0].item()) for row in trace.source])
    assert torch.equal(sizes, v[f"{form}_size"][:, 1:].long())
    expected = model.backbone.norm(v[f"{form}_tokens_out"])
    torch.testing.assert_close(trace.features, expected[:, 1:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_would_notice_the_other_attention(
    v: dict[str, Tensor], with_published_weights: Make, published_images: Tensor
) -> None:
    """The negative control: with and without proportional attention are not the same."""
    logits = tome("r8_prop", v, with_published_weights)(published_images)
    assert not torch.allclose(logits, v["r8_noprop_logits"], rtol=1e-3, atol=1e-3)


def test_constant_reduction_is_what_the_published_code_calls_r(v: dict[str, Tensor]) -> None:
    model_ratios = ratios_removing(8, 196, 6)
    assert [196 * round(1000 * ratio) // 1000 + 1 for ratio in model_ratios] == v["r8_prop_ntokens"].tolist()
