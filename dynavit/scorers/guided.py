"""A scorer that asks what other features of the image, or of something else, point at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynavit.errors import InputError
from dynavit.functional import NEVER, full_precision, masked_mean
from dynavit.numbers import checked_whole, is_finite_number
from dynavit.scorers.base import Scorer, StageView, create_inner, register_scorer

_WEIGHTS = {"logit": 0.0, "seps": 0.25, "laps": 1.0}
_FASTER = 10  # a single number has to move as fast as the logits that a layer makes
_LEAST_SPAN = 1e-3
_EDGE = 0.01


@register_scorer
class GuidedScorer(Scorer):
    """Score each patch token by itself, and by its similarity to guiding features.

    The features are the image's own, which is its class token or, without one, the mean of its patches; and those that
    the caller passes, ``model(images, guide=...)``, of other images of the same thing or of a text. With p the base
    scorer's logit, c_g the similarity to feature g, and n(.) what maps the smallest similarity of an image to 0 and the
    largest to 1, the forms are

    - ``"logit"``: ``p + sum_g w_g (n(c_g) - 1/2)`` with cosines, where w_g is learned, from 0 unless ``weight`` says
      otherwise: whether tokens like a feature matter or those unlike it, training has to tell. A guide moves a logit by
      half its weight at most, and in the mean hardly.
    - ``"seps"``: SEPS (https://arxiv.org/abs/2511.01390, eq. 2 and 3) with dot products and b the ``weight``:
      ``s = (1 - 2b) sigmoid(p) + b (sum_g n(c_g) + 2 n(c_own))``. A selector needs a logit, which is that of s over the
      largest value that s can have, squeezed to 0.01..0.99: of the order of s. Training starts farther from the dense
      model than with ``"logit"``.
    - ``"laps"``: LAPS (Fu et al. 2024, "Linguistic-Aware Patch Slimming"; so does the code of SEPS):
      ``sum_g c_g + c_own`` with cosines, where the own feature is the mean of the patches. It learns nothing and passes
      no gradient.

    Each image's similarities are those of its tokens not wholly hidden. A span below 0.001 counts as 0.001, so that
    tokens nearly alike get no large gradients.

    Args:
        dim: token width D.
        base: the scorer of p, a name or ``{"name": ..., option: value}``; ``light`` if None, and none with ``laps``.
        form: one of those above.
        guides: number G of features that the caller passes, ``(B, G, D)``.
        own: whether the image's own feature guides, too.
        weight: what w_g start from in ``logit``, 0 if None; b in ``seps``, 0.25 if None and below 0.5.
        learned_weights: whether weights are learned, in ``logit``.
        gradient: whether similarities pass a gradient to tokens and features.

    Raises:
        InputError: an impossible value here; or, when it is called, features that are missing or misshapen.
    """

    name = "guided"

    def __init__(
        self,
        dim: int,
        base: str | Mapping[str, Any] | None = None,
        form: Literal["logit", "seps", "laps"] = "logit",
        guides: int = 0,
        own: bool = True,
        weight: float | None = None,
        learned_weights: bool = True,
        gradient: bool = True,
    ) -> None:
        super().__init__()
        called = "scorer 'guided'"
        if form not in _WEIGHTS:
            raise InputError(f"{called}: form={form!r}; choose 'logit', 'seps' or 'laps'.")
        guides = checked_whole(f"{called}: guides", guides, 0)
        if not own and not guides:
            raise InputError(f"{called}: own=False, guides=0: nothing would guide; give a number of guides.")
        if form == "laps" and (base is not None or weight is not None):
            raise InputError(f"{called}: form='laps' adds plain cosines; leave out base and weight.")
        if weight is not None and not (is_finite_number(weight) and (form == "logit" or 0 < weight < 0.5)):
            limits = "a finite number" if form == "logit" else "a number above 0 and below 0.5"
            raise InputError(f"{called}: form={form!r}, weight={weight!r}; {limits}.")
        self.form, self.own, self.weight = form, own, weight
        self.learned_weights, self.gradient = learned_weights, gradient
        self.scorer = None
        if form != "laps":
            self.scorer = create_inner(f"{called}: base={base!r}", "light" if base is None else base, dim)
            if self.scorer.guides or isinstance(self.scorer, GuidedScorer):
                raise InputError(f"{called}: base={base!r} is guided itself; choose another scorer.")
            self.reads_like(self.scorer)
        self.base = base if base is None or isinstance(base, str) else dict(base)
        self.guides, self.reads_summary = guides, own and form != "laps"
        start = _WEIGHTS[form] if weight is None else float(weight)
        weights = torch.tensor([2 * start if form == "seps" else start] * own + [start] * guides)
        self.tenths: nn.Parameter | None = None
        self.fixed: Tensor
        if form == "logit" and learned_weights:
            self.tenths = nn.Parameter(weights / _FASTER)
        else:
            self.register_buffer("fixed", weights, persistent=False)
        self.learned = self.tenths is not None or (self.scorer is not None and self.scorer.learned)

    @property
    def weights(self) -> Tensor:
        """What each feature counts, fp32: the own one, if it does, then those given."""
        return full_precision(self.fixed if self.tenths is None else _FASTER * self.tenths)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        features, present = self._features(tokens, mask, view)
        with torch.autocast(tokens.device.type, enabled=False):
            similar = self._similarities(full_precision(tokens), full_precision(features))
            weights = self.weights * present
            if self.scorer is None:
                return (similar * weights.unsqueeze(1)).sum(dim=2)
            between = _spread(similar, mask)
        logits = self.scorer(tokens, mask, view)
        if self.form == "logit":
            return logits + ((between - 0.5) * weights.unsqueeze(1)).sum(dim=2)
        own_share = 1 - 2 * (_WEIGHTS["seps"] if self.weight is None else self.weight)
        score = own_share * logits.sigmoid() + (between * weights.unsqueeze(1)).sum(dim=2)
        share = score / (own_share + weights.sum(dim=1, keepdim=True))
        return torch.logit(share * (1 - 2 * _EDGE) + _EDGE)

    def _features(self, tokens: Tensor, mask: Tensor | None, view: StageView | None) -> tuple[Tensor, Tensor]:
        """Return the guiding features ``(B, F, D)`` and which of them there are, ``(B, F)`` of zeros and ones."""
        found = []
        if self.own:
            summary = None if view is None or self.form == "laps" else view.summary
            if summary is None:
                summary = tokens.mean(dim=1) if mask is None else masked_mean(tokens, mask)
            found.append(summary.unsqueeze(1))
        given = None if view is None else view.guide
        if self.guides:
            shape = (tokens.shape[0], self.guides, tokens.shape[2])
            if given is None or given.shape != shape:
                got = "nothing" if given is None else f"{tuple(given.shape)}"
                raise InputError(
                    f"guide: scorer {self.name!r} compares tokens with {self.guides} features an image; call "
                    f"model(images, guide=...) with a tensor of shape {shape}, got {got}."
                )
            found.append(given.to(tokens.dtype))
        features = torch.cat(found, dim=1)
        present = full_precision(features.new_ones(features.shape[:2]))
        if self.guides and view is not None and view.guide_present is not None:
            present = torch.cat([present[:, : int(self.own)], view.guide_present.to(present)], dim=1)
        return (features, present) if self.gradient and self.form != "laps" else (features.detach(), present)

    def _similarities(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Return the similarity of each token to each feature, ``(B, n, F)``."""
        if not self.gradient or self.form == "laps":
            tokens = tokens.detach()
        if self.form == "seps":
            return tokens @ features.transpose(1, 2) / tokens.shape[2]
        return F.normalize(tokens, dim=2, eps=1e-6) @ F.normalize(features, dim=2, eps=1e-6).transpose(1, 2)

    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        base = 0 if self.scorer is None else self.scorer.macs(n, num_prefix, num_heads, dim, folds)
        return base + n * dim * (self.guides + int(self.own))


def _spread(similar: Tensor, mask: Tensor | None) -> Tensor:
    """Map the similarities ``(B, n, F)`` of each image's visible tokens to 0 for the smallest, 1 for the largest."""
    low, high = similar, similar
    if mask is not None:
        hidden = (mask <= 0).unsqueeze(2)
        low, high = similar.masked_fill(hidden, -NEVER), similar.masked_fill(hidden, NEVER)
    least = low.amin(dim=1, keepdim=True)
    span = (high.amax(dim=1, keepdim=True) - least).clamp(min=_LEAST_SPAN)
    return ((similar - least) / span).clamp(0, 1)
