"""Several spectra of a sample: each as by itself, guided by the others, present or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import dynavit
from dynavit import InputError, PrunedViT
from dynavit.cost.macs import closed_form_macs, count_macs
from dynavit.models.heads import BNNeck
from dynavit.models.spectra import SpectraEmbedding
from dynavit.scorers import GuidedScorer

Make = Callable[..., Any]
B, M, IDENTITIES, WIDTH = 3, 3, 5, 48
GUIDED = {"name": "guided", "guides": M - 1, "weight": 9.0, "learned_weights": False}


@pytest.fixture
def model_for(backbone_of: Make) -> Make:
    def make(family: str = "vit", scorer: Any = GUIDED, **options: Any) -> PrunedViT:
        backbone = backbone_of(family, num_classes=0)
        options = {"stages": (2, 4), "keep_ratio": 0.5, "reducer": "drop", "spectra": M, **options}
        torch.manual_seed(0)
        model = dynavit.prune(backbone, num_identities=IDENTITIES, scorer=scorer, **options).eval()
        norm = model.neck.norm
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        return model

    return make


def samples_for(model: PrunedViT, batch: int = B) -> Tensor:
    size = model.adapter.image_size
    return torch.randn(batch, M, 3, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_without_guidance_each_spectrum_is_embedded_by_itself(family: str, model_for: Make) -> None:
    """With its slice of the batch norm, of length 1 over the root of M."""
    if family == "naflex":
        pytest.skip("a mapping for each image")
    model = model_for(family, scorer="light")
    samples = samples_for(model)
    alone = dynavit.prune(model.backbone, stages=(2, 4), keep_ratio=0.5, reducer="drop", scorer="light")
    alone.scorers = model.scorers
    embedding = model(samples).view(B, M, -1)
    width = embedding.shape[2]
    for number in range(M):
        alone.neck = BNNeck(width, IDENTITIES).eval()
        part = slice(number * width, (number + 1) * width)
        for name in ("running_mean", "running_var"):
            getattr(alone.neck.norm, name).copy_(getattr(model.neck.norm, name)[part])
        expected = alone.eval()(samples[:, number]) / M**0.5
        torch.testing.assert_close(embedding[:, number], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("execution", ["gather", "mask"])
def test_each_spectrum_is_guided_by_the_others_class_tokens(execution: str, model_for: Make) -> None:
    model = model_for()
    model.execution = execution
    samples, shown = samples_for(model), []
    handles = [
        scorer.register_forward_hook(lambda module, given, logits: shown.append((given, logits)))
        for scorer in model.scorers
    ]
    _, trace = model(samples, return_trace=True)
    for handle in handles:
        handle.remove()
    assert len(shown) == 2
    for (tokens, mask, view), logits in shown:
        assert view.summary.shape == (B * M, WIDTH)
        for sample in range(B):
            for number in range(M):
                own = sample * M + number
                others = [sample * M + other for other in range(M) if other != number]
                assert torch.equal(view.guide[own], view.summary[others])
        unguided = GuidedScorer.forward(
            model.scorers[0], tokens, mask, type(view)(0, view.positions, None, view.summary, view.guide.roll(3, 0))
        )
        assert not torch.equal(unguided.argsort(dim=1), logits.argsort(dim=1))
    assert trace.kept[-1].shape[0] == B * M


@torch.no_grad()
def test_without_class_tokens_the_mean_of_those_alive_guides(model_for: Make) -> None:
    model = model_for("gap")
    samples, shown = samples_for(model), []
    model.scorers[1].register_forward_hook(lambda module, given, logits: shown.append(given))
    found = model(samples)
    model.execution = "mask"
    torch.testing.assert_close(model(samples), found, rtol=1e-4, atol=1e-5)
    (gathered, _, view), (tokens, mask, masked_view) = shown
    torch.testing.assert_close(view.guide[0], gathered.mean(dim=1)[1:3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(masked_view.guide, view.guide, rtol=1e-4, atol=1e-5)
    assert mask.sum() < tokens.shape[0] * tokens.shape[1]


@torch.no_grad()
@pytest.mark.parametrize("family", ["vit", "gap"])
def test_an_absent_spectrum_neither_guides_nor_counts(family: str, model_for: Make) -> None:
    model = model_for(family)
    samples = samples_for(model)
    present = torch.tensor([[True, True, True], [True, False, True], [False, False, True]])
    embedding = model(samples, present=present).view(B, M, -1)
    assert torch.equal(embedding.norm(dim=2) > 0, present)
    torch.testing.assert_close(embedding.flatten(1).norm(dim=1), torch.ones(B))
    other = torch.where(present[:, :, None, None, None], samples, samples.flip(0) * 3)
    assert torch.equal(model(other, present=present).view(B, M, -1), embedding)
    assert torch.equal(embedding[0], model(samples, present=torch.ones(B, M, dtype=torch.bool)).view(B, M, -1)[0])
    # guided by one less, tokens are chosen otherwise
    _, all_there = model(samples, return_trace=True)
    _, some = model(samples, present=present, return_trace=True)
    differ = (all_there.kept[-1] != some.kept[-1]).any(dim=1).view(B, M)
    assert differ[1, [0, 2]].any()
    assert not differ[0].any()


@torch.no_grad()
def test_two_samples_are_compared_by_the_spectra_that_both_have(model_for: Make) -> None:
    model = model_for(scorer="light")
    samples = samples_for(model)
    whole = model(samples).view(B, M, -1) * M**0.5
    first, second = torch.tensor([[True, True, False]] * B), torch.tensor([[True, False, True]] * B)
    cosine = (model(samples, present=first) * model(samples.flip(0), present=second)).sum(dim=1)
    common = (whole[:, 0] * whole.flip(0)[:, 0]).sum(dim=1)
    torch.testing.assert_close(cosine, common / 2, rtol=1e-4, atol=1e-5)


def test_heads_in_training(model_for: Make) -> None:
    """One of the concatenation and one of each spectrum, on the same batch norm; all of them learn."""
    model = model_for(scorer="light", selector={"name": "topk", "gradient": "none"}).train()
    statistics = model.neck.norm.num_batches_tracked.clone()
    output = model(samples_for(model))
    assert isinstance(output, SpectraEmbedding)
    assert model.neck.norm.num_batches_tracked == statistics + 1
    assert torch.equal(output.features.view(B, M, -1), output.each_features)
    normed = F.batch_norm(output.features, None, None, model.neck.norm.weight, model.neck.norm.bias, training=True)
    torch.testing.assert_close(output.logits, model.neck.classifier(normed))
    for number, one in enumerate(normed.view(B, M, -1).unbind(dim=1)):
        torch.testing.assert_close(output.each_logits[:, number], model.neck.each[number](one))
    labels = torch.tensor([0, 3, 4])
    F.cross_entropy(output.each_logits[:, 1], labels).backward()
    assert (model.neck.each[1].weight.grad != 0).any()
    assert (model.neck.each[0].weight.grad == 0).all()
    assert model.num_features == M * WIDTH
    model.reset_classifier(9)
    assert model(samples_for(model)).each_logits.shape == (B, M, 9)


def test_gradients_pass_from_one_spectrum_to_what_guides_it(model_for: Make) -> None:
    """The second spectrum's loss alone reaches the first one's pixels, through the scores."""
    model = model_for(selector="topk").train()
    samples = samples_for(model).requires_grad_()
    output = model(samples, generator=torch.Generator().manual_seed(0))
    output.each_features[:, 1].square().sum().backward()
    assert (samples.grad[:, 0] != 0).any()
    closed = model_for(scorer={**GUIDED, "gradient": False}, selector="topk").train()
    samples.grad = None
    output = closed(samples, generator=torch.Generator().manual_seed(0))
    output.each_features[:, 1].square().sum().backward()
    assert (samples.grad[:, 0] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("reducer", ["drop", "merge_nearest", "fuse"])
def test_macs_of_a_sample_are_those_counted(reducer: str, model_for: Make) -> None:
    model = model_for(reducer=reducer)
    assert closed_form_macs(model) == count_macs(model)
    assert closed_form_macs(model, keep_ratios=0.3) < closed_form_macs(model)


@torch.no_grad()
def test_saved_and_loaded_with_cameras(tmp_path: Any) -> None:
    model = dynavit.create_model(
        "test_vit", num_identities=7, spectra=M, scorer=GUIDED, side={"cameras": 4}, img_size=(64, 32)
    ).eval()
    torch.nn.init.normal_(model.side.table)
    model.save_pretrained(tmp_path / "saved")
    again = dynavit.load(tmp_path / "saved")
    samples = torch.randn(2, M, 3, 64, 32)
    cameras, present = torch.tensor([3, -1]), torch.tensor([[True, True, False], [True, True, True]])
    found = model(samples, cameras=cameras, present=present)
    assert torch.equal(again(samples, cameras=cameras, present=present), found)
    one = model(samples[:1], cameras=cameras[:1], present=present[:1])
    torch.testing.assert_close(one, found[:1], rtol=1e-4, atol=1e-6)
    assert not torch.equal(model(samples, cameras=cameras.flip(0), present=present), found)


@torch.no_grad()
def test_a_spectrum_may_be_absent_for_good(model_for: Make) -> None:
    model = model_for()
    samples = samples_for(model)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, True]])
    without = model.at_ratio(model.keep_ratios)
    without.absent = (2,)
    expected = model(samples, present=torch.tensor([[True, True, False]] * B))
    assert torch.equal(without(samples), expected)
    assert torch.equal(without(samples, present=present), model(samples, present=present & ~torch.eye(M).bool()[2]))
    assert not torch.equal(model(samples), expected)
    for wrong in ((0, 1, 2), (3,), (-1,), 2.5, "2"):
        with pytest.raises(InputError, match=r"absent=.*: numbers from 0 to 2 of the model's spectra, but not all"):
            without.absent = wrong
    without.absent = 1
    assert torch.equal(without(samples), model(samples, present=torch.tensor([[True, False, True]] * B)))


@torch.no_grad()
def test_whatever_stands_in_place_of_an_absent_spectrum_is_not_seen(model_for: Make) -> None:
    model = model_for()
    samples, present = samples_for(model), torch.tensor([[True, False, True]] * B)
    expected = model(samples, present=present)
    for value in (float("nan"), float("inf")):
        samples[:, 1] = value
        assert torch.equal(model(samples, present=present), expected)


@torch.no_grad()
def test_the_two_halves_of_a_forward_know_what_is_absent(model_for: Make) -> None:
    model = model_for("gap")
    samples, present = samples_for(model), torch.tensor([[True, True, False], [True] * 3, [False, True, True]])
    features = model.forward_features(samples, present=present)
    assert features.shape[0] == B * M
    assert torch.equal(model.forward_head(features, present=present), model(samples, present=present))
    assert model.forward_head(features, pre_logits=True).shape == (B * M, WIDTH)
    model.absent = (2,)
    assert torch.equal(model.forward_head(model.forward_features(samples)), model(samples))
    grids = model.forward_intermediates(samples, indices=[5], intermediates_only=True, output_fmt="NLC")
    model.absent = ()
    others = model.forward_intermediates(samples, indices=[5], intermediates_only=True, output_fmt="NLC")
    differ = (grids[0] != others[0]).flatten(1).any(dim=1).view(B, M)
    assert differ[:, :2].any()  # which were guided by the third


@torch.no_grad()
def test_thresholds_are_calibrated_on_samples(model_for: Make) -> None:
    model = model_for()
    samples, present = samples_for(model, 8), torch.rand(8, M) < 0.8
    present[:, 0] = True
    wanted = model.stage_counts(24)
    dynavit.calibrate(model, [(samples, {"present": present})])
    _, trace = model(samples, present=present, return_trace=True)
    for count, choice in zip(wanted, trace.choices, strict=True):
        assert choice.num_kept.shape == (8 * M,)
        assert abs(float(choice.num_kept.float().mean()) - count) < 0.5


def test_counts_of_samples_hold_for_their_spectra(model_for: Make) -> None:
    model = model_for().eval()
    counts = torch.tensor([20, 10, 5])
    _, trace = model(samples_for(model), keep_counts=[counts, counts], return_trace=True)
    assert torch.equal(trace.choices[0].num_kept.view(B, M), counts[:, None].expand(B, M))


def test_what_does_not_fit(model_for: Make) -> None:
    model = model_for()
    samples = samples_for(model)
    with pytest.raises(InputError, match=r"sees 3 spectra .* got \(3, 3, 64, 96\)"):
        model(samples[:, 0])
    with pytest.raises(InputError, match=r"sees 3 spectra .* got \(3, 2, 3, 64, 96\)"):
        model(samples[:, :2])
    with pytest.raises(InputError, match=r"^present: a bool tensor of shape \(3, 3\), got torch.float32 \(3, 3\)"):
        model(samples, present=torch.ones(3, 3))
    with pytest.raises(InputError, match=r"^present: a bool tensor of shape \(3, 3\), got torch.bool \(3, 2\)"):
        model(samples, present=torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="the spectra guide each other: leave guide out"):
        model(samples, guide=torch.zeros(3, 1, WIDTH))
    with pytest.raises(InputError, match="in training every spectrum of a sample has to be there"):
        model.train()(samples, present=torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="one image has no batch statistics"):
        model(samples[:1])
    with pytest.raises(InputError, match=r"guides=1: .* each spectrum is guided by 2 other\(s\): set guides=2"):
        model_for(scorer={"name": "guided", "guides": 1})
    with pytest.raises(InputError, match=r"spectra=1: a whole number, at least 2"):
        model_for(spectra=1)
    with pytest.raises(InputError, match=r"spectra=3 belongs to re-identification models"):
        dynavit.create_model("test_vit", spectra=3)
    plain = dynavit.create_model("test_vit", num_classes=3)
    with pytest.raises(InputError, match=r"^present: this model sees one image a sample"):
        plain(torch.zeros(1, 3, 160, 160), present=torch.ones(1, 1, dtype=torch.bool))
