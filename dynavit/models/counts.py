"""How many tokens each stage leaves.

Shapes: B batch, N original patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from dynavit.functional import num_keep

CountRule = Literal["original", "linear", "current"]
"""``original``: ratios of the N original patches, rounded down; a single one, r, means r, r^2, r^3 ... (DynamicViT).
``linear``: likewise, but a single one is what the last stage leaves, and every stage removes as many (ToMe).
``current``: ratios of the tokens that a stage finds, rounded up, and a single one holds for every stage (EViT); tokens
that the reducer made count as well."""


def stage_counts(num_patches: Any, keep_ratios: Sequence[float], rule: CountRule = "original", makes: int = 0) -> Any:
    """Return how many of its tokens each stage keeps.

    Args:
        num_patches: N, or ``(B,)`` int64 where images differ.
        keep_ratios: one a stage.
        rule: what they are ratios of.
        makes: tokens that the reducer adds after each stage that drops any.

    Returns:
        A list of S ints, or of S tensors ``(B,)``.

    Example:
        >>> stage_counts(196, (0.7, 0.49, 0.343))
        [137, 96, 67]
        >>> stage_counts(196, (0.7, 0.7, 0.7), "current", makes=1)
        [138, 98, 70]
    """
    counts = []
    present = num_patches
    for ratio in keep_ratios:
        if rule != "current":
            counts.append(num_keep(num_patches, ratio))
            continue
        kept = -(-present * round(ratio * 1000) // 1000)  # rounded up, so at least one
        counts.append(kept)
        present = kept + makes * (kept < present)  # nothing is made where nothing is dropped
    return counts
