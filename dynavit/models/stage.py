"""One stage of a forward: tokens are scored, chosen, and those not chosen dropped or reduced.

Shapes: B batch, n tokens present beside the prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.models.tokens import GatheredTokens, Tokens
from dynavit.models.trace import Trace
from dynavit.reducers import Merge, Reducer
from dynavit.scorers import BlockAttention, Scorer, StageView
from dynavit.selectors import Selection, Selector
from dynavit.selectors.functional import above

Attention = Callable[[Tensor | None], BlockAttention]


@dataclass(frozen=True)
class Stage:
    """What happens at one stage.

    Attributes:
        number: 0-based.
        scorer: gives each token its logit; None where the reducer chooses.
        selector, reducer: as in the model.
        threshold: keep the tokens whose logit is above it, in place of a number of them; None: a number.
        temperature, generator: for the selector.
        training: whether the model is.
    """

    number: int
    scorer: Scorer | None
    selector: Selector
    reducer: Reducer
    threshold: float | None
    temperature: float | Tensor
    generator: torch.Generator | None
    training: bool

    def __call__(self, tokens: Tokens, k: int | Tensor, attention: Attention, trace: Trace) -> None:
        """Shorten the tokens to ``k``, and those that the reducer makes; record in ``trace`` what happened.

        Args:
            tokens: changed.
            k: an int, or a tensor of shape ``()`` or ``(B,)``.
            attention: returns the attention of the stage's block at its input, under a mask.
            trace: appended to.

        Raises:
            InputError: images keep different numbers, which this execution or reducer cannot.
        """
        if isinstance(self.reducer, Merge):
            self._merge(self.reducer, tokens, k, attention)
            return
        logits = self._score(tokens, attention)
        selection = self._select(tokens, logits, k)
        trace.candidates.append(tokens.alive)
        trace.scores.append(logits)
        same = int(k) if isinstance(tokens, GatheredTokens) and self._rectangular(tokens, k) else None
        total, before = tokens.num_patches, tokens.mask
        tokens.select(selection, self.reducer, logits, k=same, soft=self.training and self.selector.soft)
        assert tokens.expected is not None
        assert tokens.probs is not None
        trace.expected.append(tokens.expected)
        present = selection.mask if isinstance(tokens, GatheredTokens) or before is None else before * selection.mask
        trace.decided.append(present.sum(dim=1) / total)
        trace.probs.append(tokens.probs)
        if selection.log_prob is not None:
            trace.log_prob = selection.log_prob if trace.log_prob is None else trace.log_prob + selection.log_prob
        for name, loss in selection.aux.items():
            trace.aux[name] = trace.aux[name] + loss if name in trace.aux else loss

    def _merge(self, reducer: Merge, tokens: Tokens, k: int | Tensor, attention: Attention) -> None:
        if isinstance(tokens.num_patches, Tensor):
            raise InputError("reducer 'merge' needs images of one size: it leaves as many tokens in each.")
        if isinstance(k, Tensor) and k.numel() != 1:
            raise InputError(
                "reducer 'merge' leaves as many tokens in every image: give one number of keep_counts a stage."
            )
        assert isinstance(tokens, GatheredTokens)
        if k < tokens.positions.shape[1]:
            keys = attention(tokens.attention_mask()).mean_keys()
            tokens.merge(reducer, keys[:, tokens.adapter.num_prefix_tokens :], int(k))

    def _score(self, tokens: Tokens, attention: Attention) -> Tensor:
        if not self.selector.needs_scores:
            return tokens.patches.new_zeros(tokens.positions.shape)
        assert self.scorer is not None
        seen = attention(tokens.attention_mask()) if self.scorer.needs_attention else None
        view = StageView(self.number, tokens.positions, seen)
        logits: Tensor = self.scorer(tokens.patches, tokens.mask, view)
        return logits

    def _select(self, tokens: Tokens, logits: Tensor, k: int | Tensor) -> Selection:
        if self.threshold is not None:
            keep = above(logits, tokens.alive, self.threshold)
            return Selection(keep, keep.float(), keep.float())
        selector = self.selector.at(self.number, tokens.positions)
        selection: Selection = selector(logits, tokens.alive, k, self.temperature, self.generator)
        return selection

    def _rectangular(self, tokens: Tokens, k: int | Tensor) -> bool:
        """Tell whether all images keep as many tokens; in training they have to."""
        differ = isinstance(k, Tensor) and k.numel() != 1
        if not self.training:
            return not differ and self.threshold is None and tokens.mask is None
        if differ:
            raise InputError(
                "keep_counts that differ by image leave no rectangular batch to train on: use execution='mask'."
            )
        return True
