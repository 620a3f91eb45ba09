"""Metric losses: batch-hard triplet against brute force, centres, names, and what is refused."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from dynavit import InputError
from dynavit.losses.metric import create_metric_loss

LABELS = torch.tensor([4, 0, 4, 2, 0, 2, 4, 4, 0])


def features_of(labels: Tensor = LABELS, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(labels), 6, generator=generator, dtype=torch.float64)
    return (3 * x).to(dtype).requires_grad_()


def distance_between(a: Tensor, b: Tensor, distance: str, normalize: bool) -> Tensor:
    if distance == "cosine":
        return 1 - (a @ b) / (a.norm() * b.norm())
    if normalize:
        a, b = a / a.norm(), b / b.norm()
    return (a - b).square().sum().sqrt()


def brute_force(x: Tensor, labels: Tensor, distance: str, normalize: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Return the distances of each image that has both to its hardest positive and negative."""
    positives, negatives = [], []
    for i, label in enumerate(labels):
        apart = {j: distance_between(x[i], x[j], distance, normalize) for j in range(len(labels)) if j != i}
        same = [d for j, d in apart.items() if labels[j] == label]
        other = [d for j, d in apart.items() if labels[j] != label]
        if same and other:
            positives.append(max(same, key=lambda d: d.item()))
            negatives.append(min(other, key=lambda d: d.item()))
    return positives, negatives


@pytest.mark.parametrize("margin", [None, 0.0, 2.5, "soft"])
@pytest.mark.parametrize(("distance", "normalize"), [("euclidean", False), ("euclidean", True), ("cosine", False)])
@pytest.mark.parametrize("labels", [LABELS, torch.tensor([0, 1, 1, 2, 2, 2, 3])], ids=["pk", "with singles"])
def test_triplet_equals_brute_force(labels: Tensor, distance: Any, normalize: bool, margin: Any) -> None:
    """In value and gradient; images without a positive are no anchors, but negatives of others."""
    options = {"soft_margin": True} if margin == "soft" else {} if margin is None else {"margin": margin}
    loss = create_metric_loss("triplet", distance=distance, normalize=normalize, **options)
    assert not loss.has_parameters
    x = features_of(labels)
    value, statistics = loss(x, labels)

    positives, negatives = brute_force(x, labels, distance, normalize)
    differences = torch.stack(positives) - torch.stack(negatives)
    if margin == "soft":
        terms = (1 + differences.exp()).log()
    else:
        terms = (differences + (0.3 if margin is None else margin)).clamp(min=0)
    expected = terms.mean()
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(result, x)[0] for result in (value, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0

    assert all(not statistic.requires_grad for statistic in statistics.values())
    torch.testing.assert_close(statistics["metric/hardest_positive"], torch.stack(positives).mean().detach())
    torch.testing.assert_close(statistics["metric/hardest_negative"], torch.stack(negatives).mean().detach())
    torch.testing.assert_close(statistics["metric/feature_norm"], x.detach().norm(dim=1).mean())


def test_images_without_a_loss_count_in_the_mean() -> None:
    x = torch.tensor([[0.0], [1.0], [1.1], [9.0], [9.5]])  # furthest of the own, nearest of the others
    labels = torch.tensor([0, 0, 1, 1, 1])
    terms = [1 - 1.1, 1 - 0.1, 8.4 - 0.1, 7.9 - 8.0, 8.4 - 8.5]
    value, _ = create_metric_loss(margin=0.0)(x, labels)
    assert value.item() == pytest.approx(sum(max(term, 0) for term in terms) / 5)


def test_order_of_the_batch_does_not_matter() -> None:
    loss, x = create_metric_loss(), features_of()
    order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(x[order], LABELS[order])[0], loss(x, LABELS)[0])


@pytest.mark.parametrize("options", [{}, {"soft_margin": True}, {"distance": "cosine"}, {"normalize": True}], ids=str)
@pytest.mark.parametrize("case", ["pairs", "all", "zeros", "large"])
def test_gradients_are_finite_where_features_coincide(case: str, options: dict[str, Any]) -> None:
    labels = torch.arange(8).repeat_interleave(4)
    x = features_of(labels, torch.float32).detach()
    if case == "pairs":
        x[1::2] = x[::2]
    elif case == "all":
        x[:] = x[0]
    elif case == "zeros":
        x[:] = 0
    else:
        x *= 1e4
        x[1::2] = x[::2]
    x.requires_grad_()
    value, statistics = create_metric_loss(**options)(x, labels)
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    if case == "all":
        expected = math.log(2) if options.get("soft_margin") else 0.3
        assert value.item() == pytest.approx(expected, abs=1e-6)
        assert statistics["metric/hardest_positive"].item() == pytest.approx(0, abs=1e-6)


def test_distances_of_equal_features_are_zero_in_large_batches() -> None:
    """Products of matrices, which torch.cdist takes for more than 25 rows, would give 0.03."""
    labels = torch.arange(32).repeat_interleave(2)
    x = torch.randn(64, 768, generator=torch.Generator().manual_seed(0))
    x[1::2] = x[::2]
    _, statistics = create_metric_loss()(x, labels)
    assert statistics["metric/hardest_positive"] == 0
    by_products = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist")
    assert by_products.diagonal().max() > 1e-3  # the danger is real


@pytest.mark.parametrize("name", ["triplet", "circle", "arc_face", "center"])
def test_distances_are_computed_in_full_precision_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    loss = create_metric_loss(name, num_classes=5, embedding_size=6)
    x = features_of(dtype=torch.bfloat16)
    expected, _ = loss(x.detach().float(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = loss(x, LABELS)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    value.backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_center_loss_is_half_the_squared_distance_to_the_own_centre() -> None:
    torch.manual_seed(0)
    loss = create_metric_loss("center", num_classes=5, embedding_size=6)
    assert loss.has_parameters
    (centers,) = loss.parameters()
    x = features_of(dtype=torch.float32)
    value, _ = loss(x, LABELS)
    expected = sum((x[i] - centers[label]).square().sum() / 2 for i, label in enumerate(LABELS)) / len(LABELS)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert centers.grad is not None
    assert (centers.grad[[1, 3]] == 0).all()  # identities that are not in the batch
    pull = (centers[2] - x[[3, 5]]).sum(dim=0) / len(LABELS)
    torch.testing.assert_close(centers.grad[2], pull.detach())


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("circle", "CircleLoss", {"m": 0.3, "gamma": 64}),
        ("CircleLoss", "CircleLoss", {}),
        ("multi_similarity", "MultiSimilarityLoss", {"alpha": 3}),
        ("sup_con", "SupConLoss", {}),
        ("supcon", "SupConLoss", {"temperature": 0.2}),
        ("nt_xent_loss", "NTXentLoss", {}),
        ("triplet_margin", "TripletMarginLoss", {"margin": 0.1}),
        ("contrastive", "ContrastiveLoss", {"pos_margin": 0.1}),
    ],
)
def test_losses_of_the_library(name: str, cls: str, options: dict[str, Any]) -> None:
    import pytorch_metric_learning.losses as library

    loss = create_metric_loss(name, num_classes=5, embedding_size=6, **options)
    x = features_of(dtype=torch.float32)
    assert torch.equal(loss(x, LABELS)[0], getattr(library, cls)(**options)(x, LABELS))
    assert not loss.has_parameters


@pytest.mark.parametrize("name", ["arcface", "arc_face", "ArcFaceLoss", "cosface", "proxy_anchor", "proxy_nca"])
def test_losses_that_learn(name: str) -> None:
    loss = create_metric_loss(name, num_classes=5, embedding_size=6)
    assert loss.has_parameters
    x = features_of(dtype=torch.float32)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.01)
    first = float("nan")
    for step in range(20):
        value, statistics = loss(x.detach(), LABELS)
        first = value.item() if step == 0 else first
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value.item() < first
    assert set(statistics) == {"metric/feature_norm", "metric/hardest_positive", "metric/hardest_negative"}
    # they need no pairs
    _, statistics = loss(x[:2], LABELS[:2])
    assert set(statistics) == {"metric/feature_norm"}


@pytest.mark.parametrize("name", ["triplet", "circle"])
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [2, 2, 2, 2]])
def test_batches_that_hold_no_comparison_are_refused(name: str, labels: list[int]) -> None:
    with pytest.raises(InputError, match=rf"4 images holds {len(set(labels))} identities: sample several"):
        create_metric_loss(name)(torch.randn(4, 3), torch.tensor(labels))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tripplet", {}, r"unknown metric loss 'tripplet'\. Did you mean 'triplet'\? Known: triplet, center, .*circle"),
        ("softmax", {}, "unknown metric loss 'softmax'"),
        ("cross_batch_memory", {}, "unknown metric loss"),
        ("", {}, "unknown metric loss ''"),
        ("triplet", {"magrin": 0.3}, r"no option 'magrin'\. Did you mean 'margin'\? .*margin, soft_margin, distance"),
        ("circle", {"gama": 3}, r"no option 'gama'\. Did you mean 'gamma'\?"),
        ("circle", {"mat_based_loss": True}, "no option 'mat_based_loss'"),
        ("triplet", {"margin": -0.1}, "margin=-0.1; it is a distance"),
        ("triplet", {"margin": "large"}, "margin='large'"),
        ("triplet", {"margin": 0.3, "soft_margin": True}, "soft_margin takes the place of margin=0.3"),
        ("triplet", {"distance": "manhattan"}, "distance='manhattan'; choose 'euclidean' or 'cosine'"),
        ("arcface", {}, "needs embedding_size, num_classes"),
        ("center", {"num_classes": 4}, "needs embedding_size"),
        ("ranked_list", {}, "needs Tn, margin"),
        ("large_margin_softmax", {"num_classes": 4, "embedding_size": 3, "margin": "x"}, "cannot be made with .*'x'"),
    ],
)
def test_what_cannot_be_made(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_metric_loss(name, **options)


def test_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(InputError, match="pip install pytorch-metric-learning"):
        create_metric_loss("triplet")
