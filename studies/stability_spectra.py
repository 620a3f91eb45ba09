"""The architecture of multi-modal re-identification in the stability study: three spectra that guide each other.

Shapes: B images, M spectra, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynavit.functional import num_keep
from dynavit.scorers import StageView
from studies.identities import NUM_IDENTITIES, NUM_TOKENS, TOKEN_DIM
from studies.stability_models import Decide, Outcome, TokenSelection, Weigh, constant_topk

NUM_SPECTRA = 3


class SpectraSelection(TokenSelection):
    """Three spectra of one image through one backbone; the tokens of each are scored by the others' features, too.

    DeMo (Wang et al. 2025, https://arxiv.org/abs/2412.10650) with the token selection that was ported into it: the
    class tokens, concatenated, are one feature, what is aggregated of the kept tokens of each the other. A spectrum is
    the image's tokens, turned by a rotation of its own and with noise of its own.

    Args:
        decide, weigh: as for :class:`~studies.stability_models.TokenSelection`.
        guided: scores are those of a guided scorer, to be put into ``scorers``, and not as the port has them.
    """

    NOISE = 0.5

    def __init__(self, decide: Decide, weigh: Weigh, guided: bool = False) -> None:
        super().__init__(decide, weigh)
        self.guided = guided
        drawn = torch.randn(NUM_SPECTRA, TOKEN_DIM, TOKEN_DIM, generator=torch.Generator().manual_seed(0))
        self.register_buffer("rotations", torch.linalg.qr(drawn).Q)
        self.heads = nn.ModuleList(nn.Linear(NUM_SPECTRA * self.backbone.dim, NUM_IDENTITIES) for _ in range(2))

    def forward(self, tokens: Tensor, generator: torch.Generator | None = None) -> Outcome:
        seen = torch.einsum("bnd,mde->bmne", tokens, self.rotations)
        seen = seen + self.NOISE * torch.randn(seen.shape, generator=generator)
        x = self.backbone(seen.flatten(0, 1))
        class_token, patches = x[:, 0], x[:, 1:]
        scores = self.spectral_scores(class_token, patches)
        decide = self.decide if self.training else constant_topk
        keep, mask = decide(scores, num_keep(NUM_TOKENS, self.KEEP_RATIO), generator)
        aggregated, weights = self.aggregate(patches, scores, keep, mask)
        features = [one.unflatten(0, (-1, NUM_SPECTRA)).flatten(1) for one in (class_token, aggregated)]
        logits = [head(feature) for head, feature in zip(self.heads, features, strict=True)]
        return Outcome(features, logits, [keep.float().mean()], masks=[weights])

    def spectral_scores(self, class_token: Tensor, patches: Tensor) -> Tensor:
        """Return ``(B M, N)``: the predictor's opinion and the similarity to the own class token and the others'."""
        by_sample = class_token.unflatten(0, (-1, NUM_SPECTRA))
        others = torch.stack([by_sample.roll(-shift, 1) for shift in range(1, NUM_SPECTRA)], dim=2).flatten(0, 1)
        if self.guided:
            positions = torch.arange(NUM_TOKENS).expand(patches.shape[:2])
            logits: Tensor = self.scorers(patches, None, StageView(0, positions, None, class_token, others))
            return logits
        features = torch.cat([class_token.unsqueeze(1), others], dim=1)
        similarity = functional.cosine_similarity(patches.unsqueeze(2), features.unsqueeze(1), dim=-1)
        low, high = similarity.amin(dim=1, keepdim=True), similarity.amax(dim=1, keepdim=True)
        own, *rest = ((similarity - low) / (high - low + 1e-6)).unbind(dim=2)
        weight = self.SIMILARITY_WEIGHT
        predicted = self.scorers(patches).squeeze(-1).sigmoid()
        return (1 - 2 * weight) * predicted + weight * (2 * own + sum(rest))
