"""Re-ranking against the dense algorithm, written plainly from the paper and its code."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dynavit import InputError
from dynavit.metrics.reranking import expand_queries, rerank, rerank_blocks
from dynavit.metrics.retrieval import rank_gallery, retrieval_metrics


def dense_rerank(query: Tensor, gallery: Tensor, k1: int, k2: int, lambda_value: float) -> np.ndarray:
    """k-reciprocal encoding with sets and full matrices in double precision."""
    images = torch.cat([query, gallery]).double().numpy()
    distances = ((images[:, None] - images[None]) ** 2).sum(axis=2)
    distances = distances / distances.max(axis=1, keepdims=True)
    order = np.argsort(distances, axis=1, kind="stable")

    def reciprocal(image: int, k: int) -> set[int]:
        return {int(other) for other in order[image, : k + 1] if image in order[other, : k + 1]}

    half = int(np.around(k1 / 2))
    weights = np.zeros_like(distances)
    for image in range(len(images)):
        first = reciprocal(image, k1)
        members = set(first)
        for candidate in first:
            brought = reciprocal(candidate, half)
            if len(brought & first) > 2 / 3 * len(brought):
                members |= brought
        for member in members:
            weights[image, member] = np.exp(-distances[image, member])
        weights[image] /= weights[image].sum()
    if k2 > 1:
        weights = np.stack([weights[order[image, :k2]].mean(axis=0) for image in range(len(images))])
    result = np.zeros((len(query), len(gallery)))
    for q in range(len(query)):
        for g in range(len(gallery)):
            pair = weights[[q, len(query) + g]]
            jaccard = 1 - pair.min(axis=0).sum() / pair.max(axis=0).sum()
            result[q, g] = (1 - lambda_value) * jaccard + lambda_value * distances[q, len(query) + g]
    return result


def clusters(seed: int, queries: int = 20, gallery: int = 90, ids: int = 10) -> dict[str, Any]:
    """Elongated clusters that overlap: neighbours of neighbours know more than distance does."""
    random = torch.Generator().manual_seed(seed)
    identities = torch.arange(queries + gallery) % ids
    centres = torch.randn(ids, 8, generator=random)
    stretch = torch.randn(ids, 8, generator=random)
    along = torch.randn(queries + gallery, 1, generator=random)
    noise = torch.randn(queries + gallery, 8, generator=random)
    images = 2 * centres[identities] + along * stretch[identities] + 0.7 * noise
    return {
        "query": images[:queries],
        "gallery": images[queries:],
        "query_ids": identities[:queries],
        "gallery_ids": identities[queries:],
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("k1", "k2", "lambda_value"),
    [(20, 6, 0.3), (8, 3, 0.3), (7, 1, 0.0), (5, 6, 0.6), (1, 2, 0.5), (1, 1, 0.0)],
)
def test_the_dense_algorithm_agrees(seed: int, k1: int, k2: int, lambda_value: float) -> None:
    given = clusters(seed)
    query, gallery = given["query"], given["gallery"]
    expected = dense_rerank(query, gallery, k1, k2, lambda_value)
    got = rerank(query, gallery, k1, k2, lambda_value)
    assert got.dtype == torch.float32
    assert got.shape == (20, 90)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)


def test_lists_may_be_longer_than_the_data() -> None:
    given = clusters(0, queries=5, gallery=20, ids=4)
    query, gallery = given["query"], given["gallery"]
    for k1, k2 in ((24, 25), (25, 26), (60, 40)):
        expected = dense_rerank(query, gallery, k1, k2, 0.3)
        np.testing.assert_allclose(rerank(query, gallery, k1, k2).numpy(), expected, atol=2e-6)


def test_each_part_of_the_algorithm_matters() -> None:
    # so that agreement means something: other neighbours, no expansion of queries, another mixture
    given = clusters(0)
    query, gallery = given["query"], given["gallery"]
    base = rerank(query, gallery)
    for other in ({"k1": 19}, {"k2": 5}, {"k2": 1}, {"lambda_value": 0.2}, {"metric": "cosine"}):
        assert (rerank(query, gallery, **other) - base).abs().max() > 1e-2  # type: ignore[arg-type]


def test_images_on_a_line() -> None:
    line = torch.tensor([[0.0], [1.0], [2.1], [3.3], [50.0], [51.0], [52.1], [53.3]])
    for k1 in (2, 3):
        expected = dense_rerank(line[:2], line[2:], k1, 1, 0.0)
        np.testing.assert_allclose(rerank(line[:2], line[2:], k1, 1, 0.0).numpy(), expected, atol=1e-6)
        assert (expected[:, 2:] == 1).all()  # what shares nothing is as far as can be


def test_lambda_one_is_the_original_ranking() -> None:
    given = clusters(1)
    got = rerank(given["query"], given["gallery"], lambda_value=1.0)
    squares = torch.cdist(given["query"], given["gallery"]).square()
    everything = torch.cat([given["query"], given["gallery"]])
    farthest = torch.cdist(given["query"], everything).square().amax(dim=1, keepdim=True)
    torch.testing.assert_close(got, squares / farthest, rtol=1e-4, atol=1e-6)
    assert (
        retrieval_metrics(**given, metric=lambda query, gallery: got).summary() == retrieval_metrics(**given).summary()
    )


@pytest.mark.parametrize("chunk_size", [1, 7, 200])
def test_the_size_of_chunks_does_not_matter(chunk_size: int) -> None:
    given = clusters(2)
    whole = rerank(given["query"], given["gallery"])
    blocks = list(rerank_blocks(given["query"], given["gallery"], chunk_size=chunk_size))
    assert [len(block) for block in blocks][:-1] == [chunk_size] * (len(blocks) - 1)
    torch.testing.assert_close(torch.cat(blocks), whole, rtol=0, atol=2e-6)


def test_small_blocks_inside_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = clusters(2)
    whole = rerank(given["query"], given["gallery"])
    monkeypatch.setattr("dynavit.metrics.reranking._BLOCK", 1)  # one row at a time everywhere
    torch.testing.assert_close(rerank(given["query"], given["gallery"]), whole, rtol=0, atol=2e-6)


def test_cosine_is_the_euclidean_of_unit_features() -> None:
    given = clusters(3)
    query, gallery = normalize(given["query"]), normalize(given["gallery"])
    got = rerank(given["query"], given["gallery"], metric="cosine")
    np.testing.assert_allclose(got.numpy(), dense_rerank(query, gallery, 20, 6, 0.3), atol=2e-6)


def test_neighbours_of_neighbours_help_where_clusters_are_long() -> None:
    plain, better = 0.0, 0.0
    for seed in range(5):
        given = clusters(seed)
        plain += retrieval_metrics(**given).mean_ap / 5
        better += retrieval_metrics(**given, metric=rerank_blocks).mean_ap / 5
    assert better > plain + 2


def test_rankings_of_blocks_are_those_of_the_matrix() -> None:
    given = clusters(4)
    matrix = rerank(given["query"], given["gallery"])
    assert (
        retrieval_metrics(**given, metric=rerank).summary()
        == retrieval_metrics(**given, metric=rerank_blocks).summary()
    )
    assert (rank_gallery(**given, metric=rerank, top=5) == matrix.sort(dim=1, stable=True).indices[:, :5]).all()


def test_equal_images_give_numbers() -> None:
    # more copies than a list holds: a copy may be missing from its own list, its encoding is then empty
    same = torch.ones(60, 4)
    got = rerank(same[:20], same[20:], k1=5, k2=2)
    assert got.isfinite().all()
    assert got.min() >= 0
    assert got.max() <= 1


def test_memory_holds_no_square_matrix() -> None:
    import tracemalloc

    images = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    list(rerank_blocks(images[:10], images[10:100]))  # imports
    tracemalloc.start()  # counts numpy and scipy, which hold the encodings
    for _ in rerank_blocks(images[:100], images[100:]):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 4 / 2


def test_expanded_queries_are_means() -> None:
    given = clusters(5)
    query, gallery = given["query"], given["gallery"]
    got = expand_queries(query, gallery, n=3)
    for row in range(len(query)):
        unit, images = normalize(query[row], dim=0), normalize(gallery)
        nearest = (images @ unit).topk(3).indices
        mean = torch.stack([unit, *images[nearest]]).mean(dim=0)
        torch.testing.assert_close(got[row], normalize(mean, dim=0))
    everything = normalize(normalize(query) + normalize(gallery).sum(dim=0))
    torch.testing.assert_close(expand_queries(query, gallery, n=1000), everything)


def test_expanded_queries_find_more() -> None:
    given = clusters(6)
    expanded = {**given, "query": expand_queries(given["query"], given["gallery"], n=3)}
    assert retrieval_metrics(**expanded, metric="cosine").mean_ap > retrieval_metrics(**given, metric="cosine").mean_ap


def test_bad_input_is_refused() -> None:
    query, gallery = torch.zeros(2, 3), torch.zeros(4, 3)
    for wrong in ({"k1": 0}, {"k2": 0}, {"k1": 4, "k2": 6}, {"lambda_value": 1.1}, {"lambda_value": -0.1}):
        with pytest.raises(InputError, match="k2 from 1 to k1"):
            rerank(query, gallery, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\(2, 3\) and \(4, 2\)"):
        rerank(query, gallery[:, :2])
    with pytest.raises(InputError, match="metric='dot'"):
        rerank(query, gallery, metric="dot")
    with pytest.raises(InputError, match="n=0"):
        expand_queries(query, gallery, n=0)
