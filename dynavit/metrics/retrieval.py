"""Retrieval metrics of re-identification: mAP, mINP and rank-k accuracy.

The protocol of Market-1501 (Zheng et al., ICCV 2015): a query is answered by ranking the gallery, in
which images of the same identity *and* camera do not count, nor does junk (identity -1); distractors,
identities that no query has, stay and count as wrong. mINP: Ye et al., arXiv 2001.04193.

Distances are computed, ranked and forgotten block by block, so memory does not grow with the number
of queries. A ranking is never sorted out: the rank of a match is the number of gallery images that
are no farther, and all matches of a query are counted in one pass.

Shapes: Q queries, G gallery images, D features, b queries of a block, M most matches of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.metrics.distances import BLOCK, check_features, distance_blocks, key_index, sort_keys

Distance = Callable[[Tensor, Tensor], "Tensor | Iterable[Tensor]"]

UNKNOWN_CAMERA = -1
JUNK = -1
_REMOVED = torch.iinfo(torch.int64).max  # behind everything that has a distance


@dataclass(frozen=True)
class RetrievalResult:
    """What came of all queries that have a match; V of Q.

    Attributes:
        mean_ap: mean average precision, percent.
        mean_inp: mean inverse negative penalty, percent: matches over the rank of the last one.
        cmc: k to percent of queries with a match among the first k.
        average_precision: ``(V,)`` fp64 percent, one a query, in order; its mean is ``mean_ap``.
        rank1_hit: ``(V,)`` bool: the nearest image is a match.
        query_ids: ``(V,)`` int64, the identities, which :func:`~dynavit.metrics.paired_bootstrap`
            resamples.
        valid: ``(Q,)`` bool: which queries have a match and so are counted.
    """

    mean_ap: float
    mean_inp: float
    cmc: dict[int, float]
    average_precision: Tensor
    rank1_hit: Tensor
    query_ids: Tensor
    valid: Tensor

    @property
    def num_queries(self) -> int:
        """Queries counted."""
        return int(self.valid.sum())

    @property
    def num_left_out(self) -> int:
        """Queries without a valid match, which are not counted."""
        return len(self.valid) - self.num_queries

    def summary(self) -> dict[str, float]:
        """Return ``{"map": ..., "minp": ..., "rank1": ..., ...}`` in percent."""
        return {"map": self.mean_ap, "minp": self.mean_inp, **{f"rank{k}": value for k, value in self.cmc.items()}}


def retrieval_metrics(
    query: Tensor,
    gallery: Tensor,
    query_ids: Tensor | Sequence[int],
    gallery_ids: Tensor | Sequence[int],
    query_cameras: Tensor | Sequence[int] | None = None,
    gallery_cameras: Tensor | Sequence[int] | None = None,
    *,
    metric: str | Distance = "euclidean",
    ranks: Sequence[int] = (1, 5, 10),
    exclude: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> RetrievalResult:
    """Rank the gallery for each query and score the rankings.

    Average precision is the mean, over a query's matches, of the precision at each match's rank.
    Images at equal distance are ranked by their index.

    Args:
        query: ``(Q, D)`` features of any float dtype; distances are fp32, whatever autocast says.
        gallery: ``(G, D)`` features.
        query_ids: Q identities.
        gallery_ids: G identities; -1 is junk and ignored.
        query_cameras: Q cameras, -1 where unknown. Without cameras, or where either is unknown, no
            image is removed for having the query's camera.
        gallery_cameras: G cameras.
        metric: "euclidean", "cosine", or a function of ``(query, gallery)`` that returns distances
            ``(Q, G)`` or blocks ``(b, G)`` of them in the order of queries, such as
            :func:`~dynavit.metrics.rerank`.
        ranks: the k of rank-k.
        exclude: each query's own index in the gallery, -1 if it is not there: a query is not to find
            itself.
        chunk_size: queries whose distances are held at once; by default about four million distances.

    Raises:
        InputError: shapes that do not belong together, features or distances that are not numbers, an
            unknown metric, or no query with a match.

    Example:
        >>> query, gallery = torch.tensor([[0.0]]), torch.tensor([[0.1], [0.2], [0.3], [0.4]])
        >>> retrieval_metrics(query, gallery, query_ids=[7], gallery_ids=[7, 0, 0, 7]).summary()
        {'map': 75.0, 'minp': 50.0, 'rank1': 100.0, 'rank5': 100.0, 'rank10': 100.0}
    """
    if not ranks or min(ranks) < 1:
        raise InputError(f"ranks={tuple(ranks)}: one or more numbers from 1 up.")
    labels = _Labels.checked(query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras, exclude)
    scores = torch.zeros(4, len(query), dtype=torch.float64)  # allocated once: what is kept between blocks
    for rows, keys, matches in _ranked_blocks(query, gallery, labels, metric, chunk_size):
        scores[:, rows] = _score(_match_ranks(keys, matches).cpu(), matches.sum(dim=1).cpu())
    valid = scores[0] > 0
    if not valid.any():
        raise InputError(labels.why_no_match())
    _, precision, penalty, first = scores[:, valid]
    return RetrievalResult(
        mean_ap=100 * float(precision.mean()),
        mean_inp=100 * float(penalty.mean()),
        cmc={k: 100 * int((first <= k).sum()) / len(first) for k in ranks},
        average_precision=100 * precision,
        rank1_hit=first == 1,
        query_ids=labels.query_ids[valid],
        valid=valid,
    )


def rank_gallery(
    query: Tensor,
    gallery: Tensor,
    query_ids: Tensor | Sequence[int],
    gallery_ids: Tensor | Sequence[int],
    query_cameras: Tensor | Sequence[int] | None = None,
    gallery_cameras: Tensor | Sequence[int] | None = None,
    *,
    top: int = 10,
    metric: str | Distance = "euclidean",
    exclude: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Return the nearest gallery images of each query, as :func:`retrieval_metrics` ranks them.

    Args:
        top: how many.

    Returns:
        ``(Q, min(top, G))`` int64 gallery indices, the nearest first; -1 where no image is left.

    Raises:
        InputError: as :func:`retrieval_metrics`, except that a query need not have a match.
    """
    if top < 1:
        raise InputError(f"top={top}: 1 or more.")
    labels = _Labels.checked(query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras, exclude)
    nearest = torch.zeros(len(query), min(top, len(gallery)), dtype=torch.int64)
    for rows, keys, _ in _ranked_blocks(query, gallery, labels, metric, chunk_size):
        best = keys.topk(nearest.shape[1], dim=1, largest=False, sorted=True).values
        nearest[rows] = key_index(best).masked_fill(best == _REMOVED, -1).cpu()
    return nearest


def _score(rank: Tensor, counts: Tensor) -> Tensor:
    """Return ``(4, b)`` fp64: matches, average precision, inverse negative penalty, rank of the first match.

    Args:
        rank: ``(b, M)`` ranks of matches, ascending, of which those after ``counts`` mean nothing.
        counts: ``(b,)`` matches of each query.
    """
    found = torch.arange(1, rank.shape[1] + 1)  # matches up to and with this one
    precision = (found / rank.double() * (found <= counts[:, None])).sum(dim=1)
    last = rank.gather(1, counts[:, None].clamp(min=1) - 1)[:, 0]
    return torch.stack([counts.double(), precision / counts, counts / last.double(), rank[:, 0].double()])


def _match_ranks(keys: Tensor, matches: Tensor) -> Tensor:
    """Return ranks ``(b, M)`` from 1 of each query's matches, nearest first; beyond its last, whatever."""
    counts = matches.sum(dim=1)
    row, column = matches.nonzero(as_tuple=True)
    place = torch.arange(len(row), device=keys.device) - (counts.cumsum(0) - counts)[row]
    matched = keys.new_full((len(keys), max(1, int(counts.max()))), _REMOVED)
    matched[row, place] = keys[row, column]
    matched = matched.sort(dim=1).values
    nearer_matches = torch.searchsorted(matched, keys)  # (b, G): how many matches are before this image
    images = keys.new_zeros(len(keys), matched.shape[1] + 1)
    images.scatter_add_(1, nearer_matches, keys.new_ones(1, 1).expand_as(keys))
    return images.cumsum(dim=1)[:, :-1]  # images with at most j matches before them end at match j


def _ranked_blocks(
    query: Tensor, gallery: Tensor, labels: _Labels, metric: str | Distance, chunk_size: int | None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield which queries, keys ``(b, G)``, largest where an image is removed, and matches ``(b, G)`` bool."""
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size={chunk_size}: 1 or more queries.")
    size = (len(query), len(gallery))
    given = metric(query, gallery) if callable(metric) else distance_blocks(query, gallery, metric, chunk_size)
    rows = chunk_size or max(1, BLOCK // len(gallery))
    done = 0
    for block in [given] if isinstance(given, Tensor) else given:
        if block.ndim != 2 or block.shape[1] != size[1] or done + len(block) > size[0]:
            raise InputError(f"metric returned {tuple(block.shape)} distances after {done} rows; {size} are needed.")
        for distances in block.split(rows):
            if distances.isnan().any():
                raise InputError(f"metric returned distances that are not numbers for queries {done} and after.")
            part = slice(done, done + len(distances))
            same, removed = labels.masks(part, distances.device)
            yield part, sort_keys(distances).masked_fill_(removed, _REMOVED), same & ~removed
            done = part.stop
    if done != size[0]:
        raise InputError(f"metric returned distances of {done} queries; there are {size[0]}.")


@dataclass(frozen=True)
class _Labels:
    """Who and where: what decides which images match and which are removed."""

    query_ids: Tensor
    gallery_ids: Tensor
    query_cameras: Tensor
    gallery_cameras: Tensor
    exclude: Tensor

    @classmethod
    def checked(
        cls,
        query: Tensor,
        gallery: Tensor,
        query_ids: Tensor | Sequence[int],
        gallery_ids: Tensor | Sequence[int],
        query_cameras: Tensor | Sequence[int] | None,
        gallery_cameras: Tensor | Sequence[int] | None,
        exclude: Tensor | Sequence[int] | None,
    ) -> _Labels:
        check_features(query, gallery)
        if (query_cameras is None) != (gallery_cameras is None):
            raise InputError("query_cameras and gallery_cameras: give both, or neither if cameras are not known.")
        sides = {"query": len(query), "gallery": len(gallery)}
        labels = cls(
            _integers("query_ids", query_ids, sides["query"]),
            _integers("gallery_ids", gallery_ids, sides["gallery"]),
            _integers("query_cameras", query_cameras, sides["query"], UNKNOWN_CAMERA),
            _integers("gallery_cameras", gallery_cameras, sides["gallery"], UNKNOWN_CAMERA),
            _integers("exclude", exclude, sides["query"], -1),
        )
        if labels.exclude.max() >= len(gallery) or labels.exclude.min() < -1:
            raise InputError(f"exclude: gallery indices from 0 to {len(gallery) - 1}, or -1 for none.")
        return labels

    def masks(self, part: slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return for some queries ``(b, G)`` which images show the same identity, which are removed."""
        gallery_ids, gallery_cameras = self.gallery_ids.to(device), self.gallery_cameras.to(device)
        same = self.query_ids[part, None].to(device) == gallery_ids
        same_camera = self.query_cameras[part, None].to(device) == gallery_cameras
        removed = same & same_camera & (gallery_cameras != UNKNOWN_CAMERA) | (gallery_ids == JUNK)
        own = self.exclude[part].to(device)
        rows = (own >= 0).nonzero()[:, 0]
        removed[rows, own[rows]] = True
        return same, removed

    def why_no_match(self) -> str:
        known = torch.isin(self.query_ids, self.gallery_ids[self.gallery_ids != JUNK])
        strangers, total = int((~known).sum()), len(known)
        return (
            f"none of the {total} queries has a valid match in the gallery: {strangers} have an identity that it does "
            f"not hold, {total - strangers} only images of the query's own camera or the query itself. Check the "
            "identities, or leave the cameras out if they are not different cameras."
        )


def _integers(name: str, values: Tensor | Sequence[int] | None, length: int, default: int = 0) -> Tensor:
    if values is None:
        return torch.full((length,), default)
    numbers = torch.as_tensor(values).detach().cpu()
    if numbers.shape != (length,) or numbers.is_floating_point() or numbers.is_complex():
        raise InputError(f"{name} must be {length} integers, not {tuple(numbers.shape)} of {numbers.dtype}.")
    return numbers.long()
