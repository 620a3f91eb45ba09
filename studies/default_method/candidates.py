"""The candidates, as options of :func:`dynavit.prune`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_FREE = {"name": "topk", "gradient": "none"}
_BY_CLASS = {"selector": _FREE, "scorer": "class_attention"}


@dataclass(frozen=True)
class Candidate:
    """One way to shorten tokens.

    Attributes:
        name: of its row.
        options: of :func:`dynavit.prune`, without the ratio.
        at: at which blocks: the default "quarters", "every" one, every one of the "first" three quarters, or "early",
            at a sixth and a third of the depth.
        attributes: of the model, set after.
        loss: settings other than the common ones.
    """

    name: str
    options: dict[str, Any]
    at: str = "quarters"
    attributes: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)

    def stages(self, depth: int) -> tuple[int, ...] | None:
        """Return its stages in a backbone of so many blocks."""
        blocks = {"every": range(depth), "first": range(depth * 3 // 4), "early": (depth // 6, depth // 3)}
        return tuple(blocks[self.at]) if self.at in blocks else None


def _scored_merging(scorer: str) -> dict[str, Any]:
    return {"selector": _FREE, "scorer": scorer, "reducer": "merge_nearest"}


def _anchored(anchor: str, reducer: str) -> dict[str, Any]:
    return {"selector": "topk", "scorer": {"name": "anchored", "anchor": anchor}, "reducer": reducer}


CANDIDATES = (
    Candidate("random, drop", {"selector": _FREE, "scorer": "random"}),
    Candidate("class attention, drop", _BY_CLASS),
    Candidate(
        "EViT, fused",
        _BY_CLASS | {"reducer": {"name": "fuse", "normalize": False}, "placement": "inside", "count_rule": "current"},
    ),
    Candidate("class attention, squeeze", _BY_CLASS | {"reducer": "squeeze"}),
    Candidate("ToMe", {"reducer": "merge", "placement": "inside", "count_rule": "linear"}, at="every"),
    Candidate(
        "DynamicViT",
        {"selector": "ste", "scorer": "mlp"},
        attributes={"mask_form": "identity", "execution": "mask"},
        loss={"keep_ratio_measure": "decisions"},
    ),
    Candidate("predictor, drop (today's default)", {"selector": "topk", "scorer": "mlp"}),
    Candidate("anchored, drop", _anchored("class_attention", "drop")),
    Candidate("class attention, merge", _scored_merging("class_attention")),
    Candidate("distinctness, merge", _scored_merging("distinctness")),
    Candidate(
        "distinctness, merge, nine of twelve", _scored_merging("distinctness") | {"count_rule": "linear"}, at="first"
    ),
    Candidate(
        "distinctness, merge, every block inside",
        _scored_merging("distinctness") | {"count_rule": "linear", "placement": "inside"},
        at="every",
    ),
    Candidate("distinctness, merge, early", _scored_merging("distinctness"), at="early"),
    Candidate("anchored on class attention, merge", _anchored("class_attention", "merge_nearest")),
    Candidate("anchored on distinctness, merge", _anchored("distinctness", "merge_nearest")),
)
