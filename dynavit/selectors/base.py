"""What a selector is: logits in, a :class:`~dynavit.selectors.selection.Selection` out.

Shapes: B batch, N patch tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from dynavit.errors import InputError
from dynavit.functional import full_precision
from dynavit.selectors.functional import hard_topk
from dynavit.selectors.selection import Selection, SelectionRequest


class Selector(nn.Module):
    """Base class: a stateless rule that turns one logit per token into a decision.

    Subclasses implement :meth:`sample`, used while training. In eval every selector keeps exactly
    ``k`` tokens, those with the largest logits (:meth:`decide`): no noise, no temperature. So one
    checkpoint runs at any ratio, batches stay rectangular, and export is static.

    Attributes:
        budget: ``"k"`` keeps a given number of tokens; ``"expected"`` lets a budget loss on
            ``probs`` set their number during training.
        soft: the training forward uses a fractional mask and therefore removes no token.
        stochastic: the training forward draws noise.
        trains_predictor: the task loss reaches the logits through ``mask``.
        needs_reward: learns from a reward through ``log_prob`` instead.
        antithetic: draws noise in pairs: the second half of a training batch has to repeat the first.
        needs_scores: reads the logits at all; if not, the model never runs its scorers.
    """

    budget: Literal["k", "expected"] = "k"
    soft: bool = False
    stochastic: bool = False
    trains_predictor: bool = True
    needs_reward: bool = False
    antithetic: bool = False
    needs_scores: bool = True

    def forward(
        self,
        logits: Tensor,
        alive: Tensor,
        k: int | Tensor | None = None,
        temperature: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
        training: bool | None = None,
    ) -> Selection:
        """Select tokens.

        Args:
            logits: ``(B, N)`` raw scores of any float dtype; fp32 inside.
            alive: ``(B, N)`` bool, the tokens that earlier stages left.
            k: tokens to keep per image: an int, or an int64 tensor of shape ``()`` or ``(B,)``.
            temperature: smoothness of the gradient (and of a soft forward), above 0.
            generator: source of the noise; the global one if None.
            training: select as in training; the selector's own mode if None.

        Raises:
            InputError: ``k`` is missing where it is needed.
        """
        training = self.training if training is None else training
        if k is None and (self.budget == "k" or not training):
            when = "always" if self.budget == "k" else "in eval mode"
            raise InputError(f"{type(self).__name__} needs k, the number of tokens to keep, {when}.")
        with torch.autocast(logits.device.type, enabled=False):
            # a dead token's logit may be anything, NaN included: it must not reach sums or sorts
            logits = full_precision(logits).masked_fill(~alive, 0.0)
            if training:
                return self.sample(logits, SelectionRequest(alive, k, temperature, generator))
            assert k is not None
            return self.decide(logits, alive, k)

    @abstractmethod
    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        """Select during training.

        Args:
            logits: ``(B, N)`` fp32 (fp64, when given), finite on the alive tokens and 0 on others.
            request: which tokens are alive, how many to keep, and how to sample.
        """

    def decide(self, logits: Tensor, alive: Tensor, k: int | Tensor) -> Selection:
        """Select in eval: the ``k`` largest alive logits."""
        keep = hard_topk(logits, alive, k)
        return Selection(keep, keep.to(logits.dtype), logits.sigmoid() * alive)

    def order(self, logits: Tensor, k: int) -> Tensor:
        """Return all tokens ``(B, N)`` int64, those first that :meth:`decide` keeps where all are alive.

        This is all that inference needs; a selector with a ``decide`` of its own has to agree with it here.
        """
        return full_precision(logits).argsort(dim=1, descending=True)

    def at(self, stage: int, positions: Tensor) -> Selector:
        """Return the selector to call at a stage; itself, unless its rule depends on the place.

        Args:
            stage: 0-based number of the stage.
            positions: ``(B, n)`` original patch index of each of the ``n`` logits to come.
        """
        return self
