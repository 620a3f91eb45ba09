"""The candidates, as options of :func:`dynavit.prune`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dynavit.models.pruning import quarters

_FREE = {"name": "topk", "gradient": "none"}
_BY_CLASS = {"selector": _FREE, "scorer": "class_attention", "reducer": "drop"}
_DISTINCT = {"name": "distinctness", "importance": "class_attention", "of": "keys"}


@dataclass(frozen=True)
class Candidate:
    """One way to shorten tokens.

    Attributes:
        name: of its row.
        options: of :func:`dynavit.prune`, without the ratio. The reducer is named: defaults change.
        at: at which blocks: "quarters" of the depth, "every" one, every one of the "first" three quarters, "early", at
            a sixth and a third, or "outset", at none and a third.
        attributes: of the model, set after.
        loss: settings other than the common ones.
    """

    name: str
    options: dict[str, Any]
    at: str = "quarters"
    attributes: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)

    def stages(self, depth: int) -> tuple[int, ...]:
        """Return its stages in a backbone of so many blocks."""
        blocks = {
            "quarters": quarters(depth),
            "every": range(depth),
            "first": range(depth * 3 // 4),
            "early": (depth // 6, depth // 3),
            "outset": (0, depth // 3),
        }
        return tuple(blocks[self.at])


def _scored_merging(scorer: Any) -> dict[str, Any]:
    return {"selector": _FREE, "scorer": scorer, "reducer": "merge_nearest"}


def _anchored(anchor: Any, **options: Any) -> dict[str, Any]:
    return {"selector": "topk", "scorer": {"name": "anchored", "anchor": anchor}, "reducer": "merge_nearest"} | options


def _gradients(anchor: Any, called: str) -> list[Candidate]:
    """Return scored merging with each way in which scores can learn: by no gradient, by masks, weights or a teacher."""
    weighted = {"selector": _FREE, "reducer": {"name": "merge_nearest", "weighted": True}}
    return [
        Candidate(f"{called}, merge", _scored_merging(anchor)),
        Candidate(f"{called}, merge, keep-or-merge", _anchored(anchor)),
        Candidate(f"{called}, merge, weighted", _anchored(anchor, **weighted)),
        Candidate(
            f"{called}, merge, taught", _anchored(anchor, selector=_FREE), loss={"score_distillation_weight": 0.5}
        ),
    ]


CANDIDATES = (
    Candidate("random, drop", {"selector": _FREE, "scorer": "random", "reducer": "drop"}),
    Candidate("class attention, drop", _BY_CLASS),
    Candidate(
        "EViT, fused",
        _BY_CLASS | {"reducer": {"name": "fuse", "normalize": False}, "placement": "inside", "count_rule": "current"},
    ),
    Candidate("class attention, squeeze", _BY_CLASS | {"reducer": "squeeze"}),
    Candidate("ToMe", {"reducer": "merge", "placement": "inside", "count_rule": "linear"}, at="every"),
    Candidate(
        "DynamicViT",
        {"selector": "ste", "scorer": "mlp", "reducer": "drop"},
        attributes={"mask_form": "identity", "execution": "mask"},
        loss={"keep_ratio_measure": "decisions"},
    ),
    Candidate("predictor, drop", {"selector": "topk", "scorer": "mlp", "reducer": "drop"}),
    Candidate("anchored, drop", _anchored("class_attention", reducer="drop")),
    *_gradients("class_attention", "class attention"),
    *_gradients(_DISTINCT, "distinctness"),
    Candidate("distinctness, merge, nine of twelve", _scored_merging(_DISTINCT) | {"count_rule": "linear"}, at="first"),
    Candidate(
        "distinctness, merge, every block inside",
        _scored_merging(_DISTINCT) | {"count_rule": "linear", "placement": "inside"},
        at="every",
    ),
    Candidate("distinctness, merge, early", _scored_merging(_DISTINCT), at="early"),
    Candidate("distinctness, merge, outset", _scored_merging(_DISTINCT), at="outset"),
    Candidate("distinctness of tokens, merge, outset", _scored_merging("distinctness"), at="outset"),
    Candidate(
        "distinctness of tokens by class attention, merge, outset",
        _scored_merging({"name": "distinctness", "importance": "class_attention"}),
        at="outset",
    ),
)
