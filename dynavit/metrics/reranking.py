"""Better rankings from the neighbours of neighbours, without labels.

k-reciprocal re-ranking: Zhong et al., CVPR 2017, arXiv 1701.08398; the sections named below are the
paper's. Average query expansion: Chum et al., "Total Recall", ICCV 2007.

The published code holds several (Q + G) x (Q + G) matrices, 35 GB each for MSMT17. What it uses of
them is sparse, so here only the lists of nearest neighbours and the non-zero weights are ever held.
Where paper and code differ, this does as the code does: weights are normalised to sum 1, distances
are squared Euclidean and divided by the largest of their row, and lists hold k1 + 1 images, the first
of which is the image itself.

Shapes: Q queries, G gallery images, N = Q + G, D features, K neighbours, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynavit.errors import InputError
from dynavit.metrics.distances import check_features, distance_blocks, key_index, prepare_features, sort_keys

_BLOCK = 1 << 22  # numbers held at once


def rerank(
    query: Tensor,
    gallery: Tensor,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    metric: str = "euclidean",
    chunk_size: int | None = None,
) -> Tensor:
    """Return re-ranked distances ``(Q, G)`` fp32; see :func:`rerank_blocks`, which does not hold them all."""
    return torch.cat(list(rerank_blocks(query, gallery, k1, k2, lambda_value, metric, chunk_size)))


def rerank_blocks(
    query: Tensor,
    gallery: Tensor,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    metric: str = "euclidean",
    chunk_size: int | None = None,
) -> Iterator[Tensor]:
    """Yield distances ``(b, G)`` that count shared k-reciprocal neighbours, in the order of queries.

    Pass it as the ``metric`` of :func:`~dynavit.metrics.retrieval_metrics`. Every image, query or
    gallery, may be a neighbour, so the result depends on the whole set of queries.

    Args:
        query: ``(Q, D)`` features.
        gallery: ``(G, D)`` features.
        k1: size of the neighbour lists that must hold each other.
        k2: how many nearest images' encodings are averaged (the image itself is the first); 1 for none.
        lambda_value: weight of the original distance: 1 leaves the ranking as it was.
        metric: "euclidean", or "cosine", which is the Euclidean of unit features.
        chunk_size: rows whose distances are held at once; by default about four million distances.

    Raises:
        InputError: bad features, or k1, k2 or lambda_value out of range.
    """
    check_features(query, gallery)
    if k1 < 1 or not 1 <= k2 <= k1 + 1 or not 0 <= lambda_value <= 1:
        raise InputError(
            f"k1={k1}, k2={k2}, lambda_value={lambda_value}: k1 is 1 or more, k2 from 1 to k1 + 1, "
            "lambda_value from 0 to 1."
        )
    images = prepare_features(torch.cat([query.float(), gallery.float()]), metric)
    nearest, farthest = _neighbours(images, k1 + 1, chunk_size)
    encoding = _encode(images, nearest, farthest, half=round(k1 / 2) + 1)
    if k2 > 1:
        encoding = _average(encoding, nearest[:, :k2].cpu().numpy())
    return _blend(images, len(query), encoding, farthest, lambda_value, chunk_size)


def expand_queries(features: Tensor, gallery: Tensor, n: int = 5) -> Tensor:
    """Replace each query by the mean of itself and its n nearest gallery images (average query expansion).

    Directions are what is averaged and compared: use the result with either metric after bringing the
    gallery to unit length, or with the cosine.

    Args:
        features: ``(Q, D)`` queries.
        gallery: ``(G, D)``.
        n: gallery images a query; fewer if the gallery holds fewer.

    Returns:
        ``(Q, D)`` fp32 of unit length.

    Raises:
        InputError: bad features, or n below 1.
    """
    check_features(features, gallery)
    if n < 1:
        raise InputError(f"n={n}: 1 or more.")
    expanded, images, start = prepare_features(features, "cosine"), prepare_features(gallery, "cosine"), 0
    for distances in distance_blocks(features, gallery, "cosine"):
        nearest = key_index(sort_keys(distances).topk(min(n, len(gallery)), largest=False).values)
        expanded[start : start + len(distances)] += images[nearest].sum(dim=1)
        start += len(distances)
    return F.normalize(expanded, dim=1)


def _neighbours(images: Tensor, k: int, chunk_size: int | None) -> tuple[Tensor, Tensor]:
    """Return the k nearest of each image, nearest first, and its largest distance: ``(N, K)``, ``(N,)``."""
    count = len(images)
    nearest, farthest = images.new_zeros(count, min(k, count), dtype=torch.int64), images.new_zeros(count)
    start = 0
    for distances in distance_blocks(images, images, "euclidean", chunk_size):
        part = slice(start, start + len(distances))
        nearest[part] = key_index(sort_keys(distances).topk(nearest.shape[1], largest=False, sorted=True).values)
        farthest[part] = distances.amax(dim=1)
        start = part.stop
    return nearest, farthest.clamp(min=torch.finfo(torch.float32).tiny)


def _encode(images: Tensor, nearest: Tensor, farthest: Tensor, half: int) -> Any:
    """Return the encodings of all images (section 3.3), each row of sum 1: a sparse ``(N, N)`` matrix."""
    from scipy.sparse import csr_matrix, vstack

    count, k = nearest.shape
    inner = nearest[:, :half]
    reciprocal, inner_reciprocal = _is_reciprocal(nearest), _is_reciprocal(inner)
    rows = max(1, _BLOCK // (k * k * inner.shape[1] + 64 * images.shape[1]))
    blocks = []
    for part in torch.arange(count, device=images.device).split(rows):
        members, belongs = _expanded_sets(part, nearest, inner, reciprocal, inner_reciprocal)
        row = torch.arange(len(part), device=part.device)[:, None].expand_as(members)
        pairs = torch.unique(row[belongs] * count + members[belongs])  # a set holds an image once
        row, column = pairs // count, pairs % count
        distances = (images[part[row]] - images[column]).square().sum(dim=1) / farthest[part[row]]
        weights = torch.exp(-distances)
        total = weights.new_zeros(len(part)).index_add_(0, row, weights)
        entries = (weights / total[row]).cpu().numpy(), (row.cpu().numpy(), column.cpu().numpy())
        blocks.append(csr_matrix(entries, shape=(len(part), count)))
    return vstack(blocks, format="csr")


def _is_reciprocal(lists: Tensor) -> Tensor:
    """Return ``(N, K)`` bool: whether an image is in the list of each image in its own list (section 3.2)."""
    result = torch.zeros_like(lists, dtype=torch.bool)
    for part in torch.arange(len(lists), device=lists.device).split(max(1, _BLOCK // lists.shape[1] ** 2)):
        result[part] = (lists[lists[part]] == part[:, None, None]).any(dim=2)
    return result


def _expanded_sets(
    part: Tensor, nearest: Tensor, inner: Tensor, reciprocal: Tensor, inner_reciprocal: Tensor
) -> tuple[Tensor, Tensor]:
    """Return candidates ``(b, K + K * half)`` for the sets R* of some images (section 3.2), and which belong.

    A reciprocal neighbour brings its own reciprocal neighbours, of half the list, if more than two
    thirds of them are already there.
    """
    listed, belongs = nearest[part], reciprocal[part]
    brought, bringable = inner[listed], inner_reciprocal[listed]  # (b, K, half)
    own = listed.masked_fill(~belongs, -1)
    shared = (brought[..., None] == own[:, None, None, :]).any(dim=3) & bringable
    accepted = belongs & (3 * shared.sum(dim=2) > 2 * bringable.sum(dim=2))
    members = torch.cat([listed, brought.flatten(1)], dim=1)
    return members, torch.cat([belongs, (bringable & accepted[..., None]).flatten(1)], dim=1)


def _average(encoding: Any, lists: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
    """Average the encodings of each image's nearest (local query expansion, section 3.4)."""
    from scipy.sparse import csr_matrix

    count, k = lists.shape
    shares = np.full(count * k, 1 / k, dtype=np.float32)
    return csr_matrix((shares, lists.reshape(-1), np.arange(0, count * k + 1, k)), shape=(count, count)) @ encoding


def _blend(
    images: Tensor, queries: int, encoding: Any, farthest: Tensor, lambda_value: float, chunk_size: int | None
) -> Iterator[Tensor]:
    """Yield (1 - lambda) Jaccard + lambda original distance (section 3.5)."""
    query, gallery = images[:queries], images[queries:]
    holders = encoding[queries:].tocsc()  # column j: the gallery images whose encodings hold image j
    start = 0
    for distances in distance_blocks(query, gallery, "euclidean", chunk_size or max(1, _BLOCK // len(gallery))):
        stop = start + len(distances)
        jaccard = torch.from_numpy(_jaccard(encoding[start:stop], holders)).to(distances)
        original = distances / farthest[start:stop, None]
        yield (1 - lambda_value) * jaccard + lambda_value * original
        start = stop


def _jaccard(rows: Any, holders: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return Jaccard distances ``(b, G)`` of encodings, whose rows have sum 1 (section 3.3)."""
    size = (rows.shape[0], holders.shape[0])
    lists = holders[:, rows.indices]  # for each non-zero weight, the gallery images that share it
    lengths = np.diff(lists.indptr)
    smaller = np.minimum(np.repeat(rows.data, lengths), lists.data)
    row = np.repeat(np.repeat(np.arange(size[0]), np.diff(rows.indptr)), lengths)
    shared = np.bincount(row * size[1] + lists.indices, weights=smaller, minlength=size[0] * size[1])
    shared = shared.clip(max=1).reshape(size)  # rounding
    return 1 - shared / (2 - shared)
