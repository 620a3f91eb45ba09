"""Thresholds: every image keeps as many tokens as it needs, on average as many as the keep ratios say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import dynavit
from dynavit import InputError, PrunedViT, Trace
from dynavit.models.thresholds import calibrate, kept_counts
from tests.adapters.test_naflex import VARIANTS as NAFLEX
from tests.adapters.test_naflex import batch_of

Model = Callable[..., PrunedViT]
Images = Callable[..., Tensor]

INF = float("inf")
REDUCERS = ["drop", "fuse", "merge_nearest"]
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}


def in_batches(images: Tensor, size: int = 5) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(images.split(size))


def adaptive(model: PrunedViT, images: Tensor) -> PrunedViT:
    """Give thresholds that keep different numbers of tokens in these images."""
    calibrate(model, in_batches(images))
    return model


def run(model: PrunedViT, images: Any) -> tuple[Tensor, Trace]:
    with torch.inference_mode():
        return model(images, return_trace=True)


def counts_of(model: PrunedViT, images: Tensor) -> Tensor:
    return kept_counts(run(model, images)[1])


# a batch and its images one by one


@pytest.mark.parametrize("reducer", REDUCERS)
def test_a_batch_equals_its_images_one_by_one(family: str, reducer: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family, reducer=reducer)
    images = images_for(model, batch=6)
    adaptive(model, images)
    logits, trace = run(model, images)
    counts = kept_counts(trace)
    assert len(counts[:, -1].unique()) > 1  # padding is really needed
    for number in range(len(images)):
        alone, own = run(model, images[number : number + 1])
        torch.testing.assert_close(logits[number : number + 1], alone, **CLOSE)
        assert torch.equal(kept_counts(own), counts[number : number + 1])
        assert all(
            torch.equal(m[number], o[0])
            for m, o in zip([stage.kept for stage in trace.stages], [stage.kept for stage in own.stages], strict=True)
        )
        assert [int(length[number]) for length in [stage.length for stage in trace.stages]] == [
            int(length[0]) for length in [stage.length for stage in own.stages]
        ]


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("placement", ["before", "inside"])
def test_gathering_equals_masking(
    family: str, reducer: str, placement: str, model_of: Model, images_for: Images
) -> None:
    model = model_of(family, reducer=reducer, placement=placement)
    images = images_for(model, batch=4)
    adaptive(model, images)
    gathered, trace = run(model, images)
    model.execution = "mask"
    masked, other = run(model, images)
    torch.testing.assert_close(gathered, masked, **CLOSE)
    assert torch.equal(kept_counts(trace), kept_counts(other))
    assert all(map(torch.equal, [stage.kept for stage in trace.stages], [stage.kept for stage in other.stages]))
    assert all(map(torch.equal, [stage.length for stage in trace.stages], [stage.length for stage in other.stages]))


def test_padding_that_is_not_hidden_would_be_noticed(model_of: Model, images_for: Images) -> None:
    """The negative control: in a batch, an image answers otherwise if its padding is seen."""
    model = model_of("vit")
    images = images_for(model, batch=6)
    logits, trace = run(adaptive(model, images), images)
    shortest = int(trace.stages[-1].length.argmin())
    assert trace.weight is not None
    assert not trace.weight[shortest].all()
    longest = trace.stages[0].length.max()
    model.set_thresholds(None)
    seen = model(
        images[shortest : shortest + 1],
        keep_counts=[int(longest), *(int(stage.length.max()) for stage in trace.stages[1:])],
    )
    assert (logits[shortest] - seen[0]).abs().max() > 1e-2


def test_naflex_images_of_different_sizes(model_of: Model) -> None:
    """Shares are of each image's own patches, and its padding is never a candidate."""
    torch.manual_seed(0)
    name, options = NAFLEX["gap"]
    model = dynavit.create_model(name, stages=(1, 3), keep_ratio=0.6, depth=4, embed_dim=48, num_heads=3, **options)
    images = batch_of(((3, 4), (2, 2), (5, 2), (6, 5)))
    calibrate(model, lambda: [images])
    logits, trace = run(model, images)
    counts, sizes = kept_counts(trace), images["patch_valid"].sum(dim=1)
    assert torch.equal(counts.sum(dim=0), torch.stack(model.stage_counts(sizes), dim=1).sum(dim=0))
    assert (counts <= sizes[:, None]).all()
    for number, grid in enumerate(((3, 4), (2, 2), (5, 2), (6, 5))):
        size = grid[0] * grid[1]
        own = {key: value[number : number + 1, :size] for key, value in images.items()}
        torch.testing.assert_close(run(model, own)[0], logits[number : number + 1], **CLOSE)


# calibration


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("count_rule", ["original", "linear", "current"])
def test_calibration_meets_the_mean_budget(reducer: str, count_rule: str, model_of: Model, images_for: Images) -> None:
    model = model_of("vit", reducer=reducer, count_rule=count_rule)
    images = images_for(model, batch=12)
    for ratio in (0.8, 0.5, [0.9, 0.5, 0.5]):
        thresholds = calibrate(model, in_batches(images), ratio)
        assert model.thresholds == thresholds
        counts = counts_of(model, images)
        assert counts.sum(dim=0).tolist() == [len(images) * count for count in model.stage_counts(24)]
        assert counts[:, 0].min() < counts[:, 0].max()


def test_the_budget_is_met_where_images_have_nothing_above_the_threshold(model_of: Model, images_for: Images) -> None:
    """Their best token stays all the same, so others have to keep fewer."""
    model = model_of("vit", keep_ratio=None, keep_ratios=(0.2, 0.1, 0.05))
    images = images_for(model, batch=12)
    images[:8] *= 0.01  # eight that look alike and score alike
    thresholds = calibrate(model, in_batches(images))
    _, trace = run(model, images)
    assert (trace.choices[0].logits.amax(dim=1) < thresholds[0]).any()
    assert kept_counts(trace).sum(dim=0).tolist() == [12 * count for count in (4, 2, 1)]
    assert (kept_counts(trace)[:, 2] == 1).all()


def test_thresholds_and_counts_are_monotone_in_the_ratio(model_of: Model, images_for: Images) -> None:
    model = model_of("vit")
    images = images_for(model, batch=8)
    found, first = [], []
    for ratio in (0.9, 0.7, 0.5, 0.3):
        found.append(calibrate(model, in_batches(images), ratio)[0])
        first.append(counts_of(model, images)[:, 0])
    assert found == sorted(found)
    assert all((more >= fewer).all() for more, fewer in pairwise(first))


def test_calibration_does_not_depend_on_the_batches(model_of: Model, images_for: Images) -> None:
    model = model_of("vit")
    images = images_for(model, batch=9)
    whole = calibrate(model, in_batches(images, 9))
    for size in (1, 4):
        torch.testing.assert_close(calibrate(model, in_batches(images, size)), whole, rtol=1e-4, atol=1e-5)


def test_a_ratio_of_one_keeps_everything(model_of: Model, images_for: Images) -> None:
    model = model_of("vit")
    images = images_for(model)
    assert calibrate(model, in_batches(images), 1.0) == (-INF, -INF, -INF)
    assert (counts_of(model, images) == 24).all()


def test_cameras_are_passed_on(model_of: Model, images_for: Images) -> None:
    model = model_of("vit", side={"cameras": 2, "scale": 3.0})
    torch.nn.init.normal_(model.side.table, std=3.0)
    images, cameras = images_for(model, batch=6), torch.tensor([0, 1, 0, 1, 0, 1])
    told = calibrate(model, lambda: [(images, {"cameras": cameras})])
    assert told != calibrate(model, lambda: [images])  # unknown
    model.set_thresholds(told)
    with torch.inference_mode():
        _, trace = model(images, cameras, return_trace=True)
    assert kept_counts(trace).sum(dim=0).tolist() == [6 * count for count in (16, 11, 8)]


def test_batches_are_given_in_any_usual_form(model_of: Model, images_for: Images) -> None:
    model = model_of("vit")
    images = images_for(model, batch=6)
    expected = calibrate(model, in_batches(images, 3))
    labels = torch.arange(6)
    tensors, labelled, indexed = (
        TensorDataset(images),
        TensorDataset(images, labels),
        TensorDataset(images, labels, labels),
    )
    forms = [
        list(images.split(3)),
        images.split(3),
        [None, *images.split(3)],  # of a batch all of whose pictures were skipped
        [(part, torch.zeros(3)) for part in images.split(3)],
        *(DataLoader(data, batch_size=3) for data in (tensors, labelled, indexed)),
        DataLoader(list(images), batch_size=3),
        lambda: DataLoader(labelled, batch_size=3),
    ]
    for form in forms:
        assert calibrate(model, form) == expected


def test_other_than_batches_is_refused(model_of: Model, images_for: Images) -> None:
    model = model_of("vit", stages=(0, 1))
    images = images_for(model)
    used = iter([images])
    for batches, said in (
        (images, r"got Tensor\. A single batch is given as \[batch\]"),
        ({"patches": images}, "got dict"),
        ("folder", "got str"),
        (3, "got int"),
        (None, "got NoneType"),
        (iter([images]), "gone through 2 times.* list_iterator ends for good"),
        ((part for part in [images]), "generator ends for good"),
        (lambda: None, "got NoneType from the function"),
        (lambda: images, r"got Tensor from the function\. A single batch"),
        ([{"pixels": images}], "lacks 'patches'; it has pixels"),
        ([{}], "lacks 'patches'; it has none"),
        ([(images, {"label": 3})], "cameras, views, guide, present, got label"),
        ([images[:, :1]], r"images of shape \(\d+, 1, "),
        ([images.byte()], r"images of torch\.uint8"),
        ([images * float("nan")], "scores of stage 0 are NaN"),
        (lambda: used, "once more for the next stage"),
        ([images[0]], r"a batch is .* got a tensor of shape \(3, "),
        (["a.jpg"], "got str"),
        ([[]], "got list"),
        ([], "no images"),
    ):
        with pytest.raises(InputError, match=said):
            calibrate(model, batches)
    assert calibrate(model_of("vit", stages=(1,)), iter([images]))  # one pass is enough for one stage


def test_a_failed_calibration_leaves_the_model_as_it_was(model_of: Model, images_for: Images) -> None:
    model = model_of("vit", keep_ratio=0.5)
    model.set_thresholds([0.1, 0.2, 0.3])
    for ratio, batches in ((0.7, list), (1.5, in_batches(images_for(model)))):
        with pytest.raises(InputError, match=r"no images|keep_ratio=1.5"):
            calibrate(model, batches, ratio)
        assert model.keep_ratios == (0.5, 0.25, 0.125)
        assert model.thresholds == (0.1, 0.2, 0.3)


# thresholds themselves


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("execution", ["gather", "mask"])
def test_at_least_one_token_is_kept(
    family: str, reducer: str, execution: str, model_of: Model, images_for: Images
) -> None:
    model = model_of(family, reducer=reducer)
    model.execution = execution  # type: ignore[assignment]
    model.set_thresholds([INF] * 3)
    logits, trace = run(model, images_for(model))
    assert (kept_counts(trace) == 1).all()
    assert logits.isfinite().all()
    best = trace.choices[0].logits.argmax(dim=1)  # and it is the best one
    assert trace.stages[0].kept.gather(1, best[:, None]).all()


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("execution", ["gather", "mask"])
def test_a_threshold_that_all_exceed_changes_nothing(
    family: str, reducer: str, execution: str, model_of: Model, images_for: Images
) -> None:
    model = model_of(family, reducer=reducer)
    model.execution = execution  # type: ignore[assignment]
    model.set_thresholds([-INF] * 3)
    images = images_for(model)
    logits, trace = run(model, images)
    with torch.inference_mode():
        torch.testing.assert_close(logits, model.backbone(images), rtol=1e-5, atol=1e-5)
    assert all(mask.all() for mask in [stage.kept for stage in trace.stages])


def test_tokens_above_the_threshold_are_those_kept(model_of: Model, images_for: Images) -> None:
    model = model_of("vit")
    images = images_for(model)
    model.execution = "mask"
    thresholds = adaptive(model, images).thresholds
    assert thresholds is not None
    _, trace = run(model, images)
    expected = torch.ones_like(trace.stages[0].kept)
    for scores, threshold, mask in zip(
        [choice.logits for choice in trace.choices], thresholds, [stage.kept for stage in trace.stages], strict=True
    ):
        expected = expected & (scores > threshold)
        assert expected.any(dim=1).all()
        assert torch.equal(mask, expected)


def test_training_does_not_read_thresholds(model_of: Model, images_for: Images) -> None:
    model = model_of("vit").train()
    images = images_for(model)
    model.execution = "mask"
    expected = model(images)
    model.set_thresholds([INF] * 3)
    assert torch.equal(model(images), expected)


def test_thresholds_are_saved_and_a_keep_ratio_gives_them_up(
    tmp_path: Path, model_of: Model, images_for: Images
) -> None:
    model = model_of("vit")
    images = images_for(model, batch=6)
    adaptive(model, images)
    model.thresholds = (*model.thresholds[:2], -INF)  # type: ignore[index]  # as where everything is kept
    model.save_pretrained(tmp_path)
    loaded = dynavit.load(tmp_path)
    assert loaded.thresholds == model.thresholds
    assert torch.equal(run(loaded, images)[0], run(model, images)[0])
    for other in (dynavit.load(tmp_path, keep_ratio=0.5), dynavit.load(tmp_path, keep_ratios=(0.5, 0.25, 0.125))):
        assert other.thresholds is None
        assert counts_of_ratio(other, images) == [12, 6, 3]
    loaded.set_keep_ratio(0.5)
    assert loaded.thresholds is None
    assert counts_of_ratio(loaded, images) == [12, 6, 3]
    loaded.save_pretrained(tmp_path / "again")
    assert dynavit.load(tmp_path / "again").thresholds is None


def counts_of_ratio(model: PrunedViT, images: Tensor) -> list[int]:
    counts = run(model, images)[1].counts
    assert all((count == count[0]).all() for count in counts)
    return [int(count[0]) for count in counts]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"selector": "random"}, "logits, which Random does not read"),
        ({"selector": "fixed"}, "logits, which Fixed does not read"),
        ({"reducer": "merge"}, "logits, which Merge does not read"),
    ],
)
def test_models_that_choose_without_scores_are_refused(
    options: dict[str, Any], said: str, model_of: Model, images_for: Images
) -> None:
    model = model_of("vit", **options)
    with pytest.raises(InputError, match=said):
        model.set_thresholds([0.0] * 3)
    with pytest.raises(InputError, match=said):
        calibrate(model, in_batches(images_for(model)))
    assert model.thresholds is None


def test_another_number_of_thresholds_is_refused(model_of: Model) -> None:
    with pytest.raises(InputError, match="2 thresholds for 3 stages"):
        model_of("vit").set_thresholds([0.0, 0.0])
