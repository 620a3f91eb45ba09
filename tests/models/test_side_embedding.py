"""Camera and view embeddings: what is added to which token, unknown numbers, and refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dynavit import InputError, PrunedViT
from dynavit.models.side import SideEmbedding

Model = Callable[..., PrunedViT]
Images = Callable[..., Tensor]


@pytest.fixture
def side() -> SideEmbedding:
    """Three cameras, two views, five wide."""
    torch.manual_seed(0)
    return SideEmbedding(3, 2, 5, scale=2.0)


def test_every_pair_has_its_own_vector(side: SideEmbedding) -> None:
    pairs = torch.tensor(list(itertools.product(range(3), range(2))))
    output = side(pairs[:, 0], pairs[:, 1], 6)
    assert torch.equal(output, 2.0 * side.table.reshape(6, 1, 5))
    assert len({tuple(row) for row in output.flatten(1).tolist()}) == 6


def test_unknown_numbers_get_the_mean(side: SideEmbedding) -> None:
    cameras, views = torch.tensor([-1, 1, -1]), torch.tensor([1, -1, -1])
    output = side(cameras, views, 3)[:, 0] / 2.0
    expected = [side.table[:, 1].mean(dim=0), side.table[1].mean(dim=0), side.table.mean(dim=(0, 1))]
    torch.testing.assert_close(output, torch.stack(expected))


def test_gradient_goes_to_the_rows_that_were_used(side: SideEmbedding) -> None:
    side(torch.tensor([1, -1]), torch.tensor([0, 1]), 2).sum().backward()
    expected = torch.zeros(3, 2, 5)
    expected[1, 0] = 2.0
    expected[:, 1] = 2.0 / 3  # each camera's share of the mean
    torch.testing.assert_close(side.table.grad, expected)


def test_table_starts_small() -> None:
    torch.manual_seed(0)
    table = SideEmbedding(10, 2, 500).table
    assert table.std().item() == pytest.approx(0.02, rel=0.03)
    assert SideEmbedding(1, 1, 4).scale == 3.0


@torch.no_grad()
def test_the_vector_is_added_to_every_token_before_the_first_block(
    family: str, model_of: Model, images_for: Images
) -> None:
    model = model_of(family, side={"cameras": 4, "scale": 1.5}, stages=(), keep_ratio=1.0)
    assert model.side is not None
    images, cameras = images_for(model), torch.tensor([3, 0, 2])
    adapter = model.adapter
    x, context = adapter.embed(images)
    x = x + 1.5 * model.side.table[cameras]
    for number in range(adapter.depth):
        x = adapter.block(number, x, context, None)
    expected = adapter.head(adapter.norm(x), None, training=False, pre_logits=False)
    torch.testing.assert_close(model(images, cameras), expected)
    assert torch.equal(model.forward_head(model.forward_features(images, cameras=cameras)), model(images, cameras))
    # the camera matters; one that says nothing does not
    assert not torch.allclose(model(images, cameras.flip(0)), expected, atol=1e-3)
    model.side.table.zero_()
    silent = model(images, cameras)
    model.side = None
    assert torch.equal(silent, model(images))


@torch.no_grad()
def test_numbering_of_the_cameras_is_free(model_of: Model, images_for: Images) -> None:
    model = model_of("vit", side={"cameras": 3})
    assert model.side is not None
    images, cameras, order = images_for(model), torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])
    expected = model(images, cameras)
    unknown = model(images, torch.full((3,), -1))
    model.side.table.copy_(model.side.table[order])
    assert torch.equal(model(images, order.argsort()[cameras]), expected)
    torch.testing.assert_close(model(images, torch.full((3,), -1)), unknown)


def test_autocast_keeps_its_type(model_of: Model, images_for: Images) -> None:
    model = model_of("vit", side={"cameras": 3})
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images_for(model), torch.tensor([0, 1, 2])).dtype == torch.bfloat16
    model.bfloat16()
    assert model(images_for(model).bfloat16(), torch.tensor([0, 1, 2])).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("cameras", "views", "message"),
    [
        (None, [0, 0, 0], r"trained with cameras and needs them: .*from 0 to 3, or of -1"),
        ([0, 1, 2], None, r"trained with views and needs them: .*from 0 to 1"),
        (None, None, "needs them"),
        ([0, 1], [0, 0, 0], r"cameras of shape \(2,\) .* for 3 images"),
        ([[0, 1, 2]], [0, 0, 0], r"cameras of shape \(1, 3\)"),
        ([0.0, 1.0, 2.0], [0, 0, 0], r"torch.float32 for 3 images: give one whole number"),
        ([0, 1, 4], [0, 0, 0], r"cameras from 0 to 4: this model knows 4, numbered from 0 to 3; give -1"),
        ([0, 1, -2], [0, 0, 0], "cameras from -2 to 1"),
        ([0, 1, 2], [0, 0, 2], "views from 0 to 2: this model knows 2"),
    ],
)
def test_numbers_that_cannot_be(cameras: Any, views: Any, message: str, model_of: Model, images_for: Images) -> None:
    model = model_of("vit", side={"cameras": 4, "views": 2})
    numbers = [None if value is None else torch.tensor(value) for value in (cameras, views)]
    with pytest.raises(InputError, match=message):
        model(images_for(model), *numbers)


def test_views_may_be_left_out_where_there_is_one(model_of: Model, images_for: Images) -> None:
    model = model_of("vit", side={"cameras": 4})
    images, cameras = images_for(model), torch.tensor([0, 3, -1])
    assert torch.equal(model(images, cameras), model(images, cameras, torch.zeros(3, dtype=torch.int64)))


@pytest.mark.parametrize("given", ["cameras", "views"])
def test_models_without_side_embedding_refuse_cameras(given: str, model_of: Model, images_for: Images) -> None:
    model = model_of("vit")
    with pytest.raises(InputError, match=r"no side embedding: call it without cameras and views, or create it with"):
        model(images_for(model), **{given: torch.zeros(3, dtype=torch.int64)})
