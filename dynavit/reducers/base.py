"""What a reducer is: it decides what becomes of the tokens that a selector did not keep.

Shapes: B batch, D width, k kept tokens, q dropped tokens, n patch-like tokens present.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class TokenSet:
    """Some of the patch-like tokens of a stage.

    Attributes:
        tokens: ``(B, m, D)``.
        logits: ``(B, m)`` fp32, the scorer's.
        mask: ``(B, m)`` fp32 of zeros and ones, which rows count; None: all do. That of kept tokens may
            carry a straight-through gradient, and where sizes are tracked that of dropped ones.
        size: ``(B, m)`` fp32, how many patches each token stands for, 0 for one that is dead; None: one each.
    """

    tokens: Tensor
    logits: Tensor
    mask: Tensor | None = None
    size: Tensor | None = None

    @property
    def counts(self) -> Tensor | None:
        """The mask as ``(B, m)`` bool, without a gradient; None: all rows count."""
        return None if self.mask is None else self.mask > 0.5


@dataclass(frozen=True)
class Reduced:
    """The outcome of one stage.

    Attributes:
        tokens: ``(B, k, D)``, the kept tokens, possibly changed.
        made: ``(B, m, D)``, new tokens to append; None: none.
        target: ``(B, q)`` int64, the slot that holds each dropped token now: ``0..k-1``, or ``k + j`` for
            made token ``j``. None: they are gone.
        size: ``(B, k)`` fp32, how many patches each kept token stands for now, 0 for those that do not count; None: the
            reducer does not track sizes.
    """

    tokens: Tensor
    made: Tensor | None = None
    target: Tensor | None = None
    size: Tensor | None = None


class Reducer(nn.Module):
    """Base class: turns kept and dropped tokens into those that go on.

    One ``forward`` serves both executions. In gather execution the two sets hold just their rows; in mask
    execution both hold all n tokens and their masks tell them apart, and rows of the result that are not
    kept are ignored. So nothing may depend on rows whose mask is 0, and an image that drops nothing gets a
    finite made token, which the caller hides.

    Attributes:
        name: what :func:`create_reducer` calls it.
        makes: tokens appended at each stage.
        reads_dropped: does something with the others; if not, kept tokens go on as they are and ``forward`` is not
            called.
        masks: works in mask execution.
        last_only: acts at the last stage only; earlier stages drop.
        keeps_places: row i of the result stands where kept token i stood; if not, the result stands nowhere.
        tracks_sizes: counts the patches that each token stands for; attention and pooling then count them as well.
        trains_scorer: the task loss reaches the logits of kept and dropped tokens through the tokens that it makes of
            them, so that scorers learn even where the selector passes no gradient.
    """

    name: str
    makes: int = 0
    reads_dropped: bool = True
    masks: bool = True
    last_only: bool = False
    keeps_places: bool = True
    tracks_sizes: bool = False
    trains_scorer: bool = False

    @abstractmethod
    def forward(self, kept: TokenSet, dropped: TokenSet) -> Reduced:
        """Reduce the tokens of one stage."""

    def leaves(self, k: int) -> int:
        """Return how many tokens there are after a stage that keeps k, those made included."""
        return k + self.makes

    def macs(self, k: int, q: int, dim: int) -> int:
        """Return the multiply-accumulates of one image: matrix products only.

        Args:
            k: kept tokens.
            q: dropped tokens.
            dim: token width D.
        """
        return 0
