"""Retrieval metrics against an evaluation written plainly, against scikit-learn and by hand."""

import contextlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from dynavit import InputError
from dynavit.metrics.distances import distance_blocks, sort_keys
from dynavit.metrics.retrieval import rank_gallery, retrieval_metrics


def plain_evaluation(
    distances: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    exclude: np.ndarray,
) -> tuple[list[float], list[float], list[int], list[list[int]]]:
    """Market-1501's evaluation, one query and one image at a time: AP, INP, first match and ranking."""
    precisions, penalties, firsts, rankings = [], [], [], []
    for q in range(len(query_ids)):
        ranking = []
        for g in sorted(range(len(gallery_ids)), key=lambda g: (distances[q, g], g)):
            own_camera = query_cameras[q] == gallery_cameras[g] and gallery_cameras[g] != -1
            if gallery_ids[g] == -1 or g == exclude[q] or (gallery_ids[g] == query_ids[q] and own_camera):
                continue
            ranking.append(g)
        rankings.append(ranking)
        ranks = [place for place, g in enumerate(ranking, start=1) if gallery_ids[g] == query_ids[q]]
        if ranks:
            precisions.append(sum(found / rank for found, rank in enumerate(ranks, start=1)) / len(ranks))
            penalties.append(len(ranks) / ranks[-1])
            firsts.append(ranks[0])
    return precisions, penalties, firsts, rankings


def problem(seed: int, queries: int = 40, gallery: int = 120, ids: int = 12, grid: float = 1.0) -> dict[str, Any]:
    """Clustered features with junk, distractors, unknown cameras and queries that are in the gallery.

    Features are multiples of ``grid``, so that fp32 computes their distances exactly in any order:
    integers have many equal distances, multiples of 1/64 have few.
    """
    random = np.random.default_rng(seed)
    query_ids = random.integers(1, ids + 1, queries)
    gallery_ids = random.integers(-1, ids + 1, gallery)  # -1 junk, 0 distractors
    centres = random.normal(size=(ids + 2, 6))
    query = 2 * centres[query_ids + 1] + random.normal(size=(queries, 6))
    images = 2 * centres[gallery_ids + 1] + random.normal(size=(gallery, 6))
    query, images = grid * (query / grid).round(), grid * (images / grid).round()
    exclude = np.full(queries, -1)
    for place in range(0, queries, 4):  # every fourth query is in the gallery
        exclude[place] = random.integers(gallery)
        images[exclude[place]], gallery_ids[exclude[place]] = query[place], query_ids[place]
    return {
        "query": torch.from_numpy(query).float(),
        "gallery": torch.from_numpy(images).float(),
        "query_ids": query_ids,
        "gallery_ids": gallery_ids,
        "query_cameras": random.integers(-1, 3, queries),
        "gallery_cameras": random.integers(-1, 3, gallery),
        "exclude": exclude,
    }


def squared_distances(query: Tensor, gallery: Tensor) -> np.ndarray:
    return (query[:, None].double() - gallery[None].double()).square().sum(dim=2).numpy()


def labels_of(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in ("query", "gallery")}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("grid", [1.0, 1 / 64])
def test_a_plain_evaluation_agrees(seed: int, grid: float) -> None:
    given = problem(seed, grid=grid)
    distances = squared_distances(given["query"], given["gallery"])
    if grid == 1:  # means something only with many equal distances
        assert np.mean([len(np.unique(row)) for row in distances]) < 0.7 * distances.shape[1]
    precisions, penalties, firsts, rankings = plain_evaluation(distances, **labels_of(given))
    result = retrieval_metrics(**given)
    assert result.average_precision.tolist() == pytest.approx([100 * value for value in precisions], abs=1e-10)
    assert result.mean_ap == pytest.approx(100 * np.mean(precisions), abs=1e-10)
    assert result.mean_inp == pytest.approx(100 * np.mean(penalties), abs=1e-10)
    assert result.cmc == {k: 100 * sum(first <= k for first in firsts) / len(firsts) for k in (1, 5, 10)}
    assert result.rank1_hit.tolist() == [first == 1 for first in firsts]
    assert result.num_queries == len(firsts) == len(result.query_ids)
    ranked = rank_gallery(**given, top=120)
    assert [[g for g in row if g >= 0] for row in ranked.tolist()] == rankings
    assert all(g == -1 for row, shown in zip(ranked.tolist(), rankings, strict=True) for g in row[len(shown) :])
    assert (rank_gallery(**given, top=7) == ranked[:, :7]).all()


def test_scikit_learn_agrees() -> None:
    given = problem(0, grid=1 / 64)
    given["gallery_ids"][given["gallery_ids"] == -1] = 0
    for name in ("exclude", "query_cameras", "gallery_cameras"):
        del given[name]
    result = retrieval_metrics(**given, metric="cosine")
    similarity = torch.nn.functional.cosine_similarity(given["query"][:, None], given["gallery"][None], dim=2)
    for row in range(len(similarity)):
        relevant = given["gallery_ids"] == given["query_ids"][row]
        expected = average_precision_score(relevant, similarity[row].numpy())
        assert float(result.average_precision[row]) == pytest.approx(100 * expected, abs=1e-8)


def test_a_worked_example() -> None:
    # distances are the gallery's coordinates
    query = torch.zeros(3, 1)
    gallery = torch.tensor([[0.0], [1], [2], [3], [4], [5], [6]])
    gallery_ids = [7, -1, 0, 7, 8, 7, 7]
    gallery_cameras = [1, 2, 2, 2, 1, 3, 1]
    # query 0, identity 7, camera 1: images 0 and 6 are its own camera's, 1 is junk. Left: 2 (wrong),
    #   3 (match, rank 2), 4 (wrong), 5 (match, rank 4): AP (1/2 + 2/4) / 2, INP 2/4
    # query 1, identity 8, camera 2: 0, 2, 3, 4 (match, rank 4): AP 1/4, INP 1/4
    # query 2, identity 8, camera 1: its only image is its own camera's: left out
    result = retrieval_metrics(
        query, gallery, [7, 8, 8], gallery_ids, [1, 2, 1], gallery_cameras, ranks=(1, 2, 3, 4, 100)
    )
    assert result.average_precision.tolist() == [50.0, 25.0]
    assert result.summary() == {
        "map": 37.5, "minp": 37.5, "rank1": 0.0, "rank2": 50.0, "rank3": 50.0, "rank4": 100.0, "rank100": 100.0
    }  # fmt: skip
    assert result.valid.tolist() == [True, True, False]
    assert (result.num_queries, result.num_left_out) == (2, 1)
    assert result.query_ids.tolist() == [7, 8]
    assert not result.rank1_hit.any()
    ranked = rank_gallery(query, gallery, [7, 8, 8], gallery_ids, [1, 2, 1], gallery_cameras)
    assert ranked.tolist() == [[2, 3, 4, 5, -1, -1, -1], [0, 2, 3, 4, 5, 6, -1], [0, 2, 3, 5, 6, -1, -1]]


def test_each_rule_of_the_protocol_changes_the_score() -> None:
    query, gallery = torch.zeros(1, 1), torch.tensor([[0.0], [1], [2]])

    def precision(ids: list[int], **rules: Any) -> float:
        return retrieval_metrics(query, gallery, [7], ids, **rules).mean_ap

    assert precision([7, 8, 7]) == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert precision([7, -1, 7]) == 100  # junk is not there
    assert precision([7, 0, 7]) == pytest.approx(100 * (1 + 2 / 3) / 2)  # a distractor is
    assert precision([7, 8, 7], exclude=[0]) == 50
    assert precision([7, 8, 7], query_cameras=[1], gallery_cameras=[1, 1, 2]) == 50
    assert precision([7, 8, 7], query_cameras=[1], gallery_cameras=[2, 1, 2]) > 50
    assert precision([7, 8, 7], query_cameras=[-1], gallery_cameras=[-1, 1, 2]) > 50  # unknown is not the same
    assert precision([7, 8, 7], query_cameras=[0], gallery_cameras=[0, 0, 1]) == 50  # camera 0 is a camera


def test_equal_distances_are_ranked_by_index() -> None:
    query, gallery = torch.ones(1, 4), torch.ones(5, 4)
    assert retrieval_metrics(query, gallery, [1], [1, 2, 2, 2, 2]).mean_ap == 100
    assert retrieval_metrics(query, gallery, [1], [2, 2, 2, 2, 1]).mean_ap == 20
    assert rank_gallery(query, gallery, [1], [2, 2, 2, 2, 1], exclude=[2]).tolist() == [[0, 1, 3, 4, -1]]


def test_a_duplicate_of_a_match_counts_as_a_second_match() -> None:
    query, gallery = torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [3.0]])
    once = retrieval_metrics(query, gallery, [1], [1, 0, 1])
    twice = retrieval_metrics(query, gallery[[0, 0, 1, 2]], [1], [1, 1, 0, 1])
    assert once.mean_ap == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert twice.mean_ap == pytest.approx(100 * (1 + 1 + 3 / 4) / 3)  # inflated: why evaluation takes images once


@pytest.mark.parametrize("chunk_size", [1, 7, 39, 40, 1000])
def test_the_size_of_chunks_does_not_matter(chunk_size: int) -> None:
    given = problem(3)
    whole, parts = retrieval_metrics(**given), retrieval_metrics(**given, chunk_size=chunk_size)
    assert whole.summary() == parts.summary()
    assert (whole.average_precision == parts.average_precision).all()
    assert (whole.query_ids == parts.query_ids).all()
    assert (rank_gallery(**given) == rank_gallery(**given, chunk_size=chunk_size)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_float_are_compared_in_fp32(dtype: torch.dtype) -> None:
    given = problem(5, grid=1 / 64)
    given["query"], given["gallery"] = given["query"].to(dtype), given["gallery"].to(dtype)
    wide = {**given, "query": given["query"].float(), "gallery": given["gallery"].float()}
    assert retrieval_metrics(**given).summary() == retrieval_metrics(**wide).summary()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_autocast_and_fast_products_do_not_touch_distances(metric: str) -> None:
    random = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(64, 256, generator=random), torch.randn(512, 256, generator=random)
    expected = torch.cat(list(distance_blocks(query, gallery, metric)))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        fast = torch.backends.mkldnn.matmul.fp32_precision
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (query @ gallery.T).dtype == torch.bfloat16  # what would happen
            got = torch.cat(list(distance_blocks(query, gallery, metric, chunk_size=64)))
        assert torch.backends.mkldnn.matmul.fp32_precision == fast  # and nobody else is affected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    exact = torch.cdist(query.double(), gallery.double()).square()
    if metric == "cosine":
        exact = 1 - torch.nn.functional.normalize(query.double()) @ torch.nn.functional.normalize(gallery.double()).T
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["", "allow_tf32", "fp32_precision"])
def test_the_ways_to_ask_for_fast_products_agree_within_and_are_put_back(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch raises where its older and its newer flags say different things; CUDA's products ask both."""
    flags, others = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = torch.get_float32_matmul_precision(), flags.fp32_precision, others.fp32_precision

    def state() -> list[object]:
        newer = [flags.fp32_precision, others.fp32_precision]
        return newer if way == "fp32_precision" else [*newer, flags.allow_tf32, torch.get_float32_matmul_precision()]

    within: list[object] = []

    def autocast(*_: object, **__: object) -> contextlib.nullcontext[None]:
        within.append((flags.allow_tf32, torch.get_float32_matmul_precision()))
        return contextlib.nullcontext()

    try:
        if way:
            setattr(flags, way, {"allow_tf32": True, "fp32_precision": "tf32"}[way])
        asked = state()
        monkeypatch.setattr(torch, "autocast", autocast)
        list(distance_blocks(torch.ones(2, 3), torch.ones(4, 3), "euclidean"))
        assert within == [(False, "highest")]
        assert state() == asked
    finally:
        if way == "allow_tf32":
            torch.set_float32_matmul_precision(before[0])
        flags.fp32_precision, others.fp32_precision = before[1:]


def test_cosine_ignores_lengths_and_euclidean_does_not() -> None:
    query = torch.tensor([[1.0, 0.0]])
    gallery = torch.tensor([[100.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    assert rank_gallery(query, gallery, [1], [1, 1, 1], metric="cosine").tolist() == [[0, 1, 2]]
    assert rank_gallery(query, gallery, [1], [1, 1, 1], metric="euclidean").tolist() == [[1, 2, 0]]


def test_keys_order_as_distances_do() -> None:
    values = torch.tensor([[0.0, -0.0, 1e-45, -1e-45, 3.5, -3.5, float("inf"), -float("inf"), 3.5, 1e38]])
    order = sort_keys(values).argsort(dim=1)
    assert order.tolist() == values.sort(dim=1, stable=True).indices.tolist()
    assert len(sort_keys(values).unique()) == 10


def test_distances_may_come_from_anywhere() -> None:
    given = problem(6)
    matrix = torch.from_numpy(squared_distances(given["query"], given["gallery"]))
    expected = retrieval_metrics(**given).summary()
    assert retrieval_metrics(**given, metric=lambda query, gallery: matrix).summary() == expected
    assert retrieval_metrics(**given, metric=lambda query, gallery: matrix.split(9)).summary() == expected
    assert retrieval_metrics(**given, metric=lambda query, gallery: matrix.split(9), chunk_size=2).summary() == expected
    assert retrieval_metrics(**given, metric=lambda query, gallery: -matrix).summary() != expected
    broken = matrix.clone()
    broken[39, 5] = float("nan")
    with pytest.raises(InputError, match="queries 36 and after"):
        retrieval_metrics(**given, metric=lambda query, gallery: broken.split(9))
    with pytest.raises(InputError, match="of 18 queries; there are 40"):
        retrieval_metrics(**given, metric=lambda query, gallery: matrix[:18].split(9))
    with pytest.raises(InputError, match="after 36 rows"):
        retrieval_metrics(**given, metric=lambda query, gallery: torch.cat([matrix, matrix[:5]]).split(9))
    with pytest.raises(InputError, match=r"\(40, 119\) distances"):
        retrieval_metrics(**given, metric=lambda query, gallery: matrix[:, 1:])


def test_no_match_at_all_is_refused_with_the_reason() -> None:
    query, gallery = torch.zeros(3, 2), torch.zeros(4, 2)
    with pytest.raises(InputError, match=r"none of the 3 queries has a valid match.*: 2 have an identity.*, 1 only"):
        retrieval_metrics(query, gallery, [1, 8, 9], [1, -1, 0, 2], [1, 1, 1], [1, 1, 1, 1])
    with pytest.raises(InputError, match="3 have an identity"):
        retrieval_metrics(query, gallery, [-1, -1, -1], [-1, -1, 0, 2])
    assert rank_gallery(query, gallery, [-1, -1, -1], [-1, -1, 0, 2], top=2).tolist() == [[2, 3]] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery": torch.zeros(4, 3)}, r"\(3, 2\) and \(4, 3\)"),
        ({"query": torch.zeros(0, 2), "query_ids": []}, r"one or more of each"),
        ({"query": torch.zeros(3, 2).long()}, "floats are needed"),
        ({"query": torch.full((3, 2), float("nan"))}, "query features hold values that are not finite"),
        ({"gallery": torch.full((4, 2), float("inf")).half()}, "gallery features hold"),
        ({"query_ids": [1, 2]}, r"query_ids must be 3 integers, not \(2,\)"),
        ({"gallery_ids": [0.0, 1, 2, 3]}, "gallery_ids must be 4 integers"),
        ({"query_cameras": [1, 2, 3]}, "give both, or neither"),
        ({"query_cameras": [1, 2, 3], "gallery_cameras": [1]}, "gallery_cameras must be 4"),
        ({"exclude": [0, 4, 1]}, "exclude: gallery indices from 0 to 3"),
        ({"exclude": [0, -2, 1]}, "exclude: gallery indices from 0 to 3"),
        ({"metric": "manhattan"}, "metric='manhattan': one of euclidean, cosine"),
        ({"ranks": (0, 1)}, r"ranks=\(0, 1\)"),
        ({"chunk_size": 0}, "chunk_size=0"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    given = {
        "query": torch.zeros(3, 2),
        "gallery": torch.zeros(4, 2),
        "query_ids": [1, 2, 3],
        "gallery_ids": [1, 2, 3, 0],
    }
    with pytest.raises(InputError, match=message):
        retrieval_metrics(**{**given, **change})


def test_how_many_to_rank_must_be_positive() -> None:
    with pytest.raises(InputError, match="top=0"):
        rank_gallery(torch.zeros(1, 2), torch.zeros(1, 2), [1], [1], top=0)


MEASURE = """
import pathlib, re, sys, torch
from dynavit.metrics.retrieval import retrieval_metrics

def peak():  # getrusage would start from the peak of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])

queries, images = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)  # more of them hold memory of their own
small = torch.randn(8, 768)
retrieval_metrics(small, small, range(8), range(8))  # what the first call loads is not counted
query, gallery = torch.randn(queries, 768), torch.randn(images, 768)
query_ids, gallery_ids = torch.arange(queries) % (images // 20), torch.arange(images) % (images // 20)
before = peak()
retrieval_metrics(query, gallery, query_ids, gallery_ids)
print(peak() - before)
"""


def growth(queries: int, images: int) -> int:
    command = [sys.executable, "-c", MEASURE, str(queries), str(images)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed goes back at once
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_queries() -> None:
    few, many = growth(500, 40_000), growth(2000, 40_000)
    assert many < 256e6  # the matrix alone has 320 MB, its order 640 MB
    assert many < few + 64e6
