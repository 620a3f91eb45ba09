"""Distances between features, block by block, and keys that order them.

Shapes: Q queries, G gallery images, D features, b queries of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from dynavit.errors import InputError

METRICS = ("euclidean", "cosine")
BLOCK = 1 << 22  # distances held at once, about 30 bytes each with what is derived from them


def distance_blocks(query: Tensor, gallery: Tensor, metric: str, chunk_size: int | None = None) -> Iterator[Tensor]:
    """Yield fp32 distances ``(b, G)``, block by block: squared Euclidean, or one minus the cosine."""
    rows = chunk_size or max(1, BLOCK // len(gallery))
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


@contextmanager
def _exact_fp32(device: torch.device) -> Iterator[None]:
    """Switch off autocast and the TF32 and bf16 shortcuts of fp32 products that training may have on."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        older: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:  # the flags above were set without it
        older = None
    try:
        if older is not None:  # torch refuses products where the two ways to say it disagree
            torch.set_float32_matmul_precision("highest")
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
