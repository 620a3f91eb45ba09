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
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dynavit.errors import InputError

Distance = Callable[[Tensor, Tensor], "Tensor | Iterable[Tensor]"]

METRICS = ("euclidean", "cosine")
UNKNOWN_CAMERA = -1
JUNK = -1
_REMOVED = torch.iinfo(torch.int64).max  # behind everything that has a distance
_BLOCK = 1 << 22  # distances held at once, about 30 bytes each with what is derived from them


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
        scores[:, rows] = _score(keys, matches).cpu()
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


def distance_blocks(query: Tensor, gallery: Tensor, metric: str, chunk_size: int | None = None) -> Iterator[Tensor]:
    """Yield fp32 distances ``(b, G)``, block by block: squared Euclidean, or one minus the cosine."""
    rows = chunk_size or max(1, _BLOCK // len(gallery))
    gallery = prepare_features(gallery, metric)
    squares = torch.cat([part.square().sum(dim=1) for part in gallery.split(4096)])
    for part in query.split(rows):
        part = prepare_features(part, metric)
        with _exact_fp32(part.device):
            products = part @ gallery.T
        if metric == "cosine":
            yield products.neg_().add_(1)
        else:
            yield products.mul_(-2).add_(squares).add_(part.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def prepare_features(features: Tensor, metric: str) -> Tensor:
    """Return fp32 features, of unit length for the cosine.

    Raises:
        InputError: an unknown metric.
    """
    if metric not in METRICS:
        raise InputError(f"metric={metric!r}: one of {', '.join(METRICS)}, or a function of (query, gallery).")
    features = features.detach().float()
    return F.normalize(features, dim=1) if metric == "cosine" else features


def sort_keys(distances: Tensor) -> Tensor:
    """Return int64 keys that order the images of each row by distance, then by index; no two are equal.

    The upper half of a key is the distance's bits, whose order as integers is that of the floats once
    negative ones are reversed; the lower half is the index.
    """
    bits = (distances.float() + 0.0).view(torch.int32)  # adding zero makes -0.0 equal 0.0, and a copy
    bits ^= (bits >> 31).bitwise_and_(0x7FFFFFFF)
    keys = bits.long().bitwise_left_shift_(32)
    return keys.add_(torch.arange(keys.shape[1], device=keys.device))


def key_index(keys: Tensor) -> Tensor:
    """Return the indices in :func:`sort_keys`."""
    return keys & 0xFFFFFFFF


def _score(keys: Tensor, matches: Tensor) -> Tensor:
    """Return ``(4, b)`` fp64: matches, average precision, inverse negative penalty, rank of the first match."""
    counts = matches.sum(dim=1, keepdim=True)
    rank = _match_ranks(keys, matches)
    found = torch.arange(1, rank.shape[1] + 1, device=rank.device)  # matches up to and with this one
    precision = (found / rank.double() * (found <= counts)).sum(dim=1, keepdim=True)
    last = rank.gather(1, counts.clamp(min=1) - 1)
    return torch.cat([counts, precision / counts, counts / last.double(), rank[:, :1]], dim=1).T


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
    rows = chunk_size or max(1, _BLOCK // len(gallery))
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


@contextmanager
def _exact_fp32(device: torch.device) -> Iterator[None]:
    """Switch off autocast and the TF32 and bf16 shortcuts of fp32 products that training may have on."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


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


def check_features(query: Tensor, gallery: Tensor) -> None:
    """Refuse what are not two sets of features.

    Raises:
        InputError: not ``(Q, D)`` and ``(G, D)`` floats, none at all, or not finite.
    """
    if (
        query.ndim != 2
        or gallery.ndim != 2
        or query.shape[1] != gallery.shape[1]
        or not query.numel() * gallery.numel()
    ):
        raise InputError(
            f"features must be (Q, D) and (G, D), one or more of each, not {tuple(query.shape)} and "
            f"{tuple(gallery.shape)}."
        )
    for name, features in {"query": query, "gallery": gallery}.items():
        if not features.is_floating_point():
            raise InputError(f"{name} features are {features.dtype}; floats are needed.")
        if not all(part.float().sum(dim=1).isfinite().all() for part in features.detach().split(4096)):
            raise InputError(f"{name} features hold values that are not finite; check the model and its precision.")


def _integers(name: str, values: Tensor | Sequence[int] | None, length: int, default: int = 0) -> Tensor:
    if values is None:
        return torch.full((length,), default)
    numbers = torch.as_tensor(values).detach().cpu()
    if numbers.shape != (length,) or numbers.is_floating_point() or numbers.is_complex():
        raise InputError(f"{name} must be {length} integers, not {tuple(numbers.shape)} of {numbers.dtype}.")
    return numbers.long()
