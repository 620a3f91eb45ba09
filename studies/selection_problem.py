"""Data and model of the selection study: which tokens are kept is the only way to the label.

Shapes: B images, N tokens, D token width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynavit.functional import masked_mean
from studies.layers import Pool

NUM_CLASSES = 8
NUM_TOKENS = 32
NUM_FOREGROUND = 4
_CONTENT, _MARKER = 16, 4
_DECOYS = 0.25


class HiddenForeground:
    """Sets of tokens of which four show the class, and more a decoy, which is another class.

    Each background token shows the decoy with probability 1/4, else any class. A token is content,
    its class with noise, and a marker that tells foreground from background, though not surely. The
    classifier sees the content alone, so that it cannot tell them apart by itself.

    Args:
        seed: of the classes and of every image drawn later.
        noise: standard deviation of the content's noise; class prototypes have 1.
        spread: standard deviation of a foreground marker; a background marker has 1.
    """

    def __init__(self, seed: int, noise: float = 0.5, spread: float = 2.5) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.noise = noise
        self.prototypes = self._normal(NUM_CLASSES, _CONTENT)
        self.spread = spread

    def batch(self, images: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw tokens ``(B, N, D)``, labels ``(B,)`` and the foreground ``(B, N)`` bool."""
        labels = torch.randint(NUM_CLASSES, (images,), generator=self.generator)
        decoy = torch.randint(NUM_CLASSES, (images, 1), generator=self.generator)
        shown = torch.randint(NUM_CLASSES, (images, NUM_TOKENS), generator=self.generator)
        shown = torch.where(torch.rand(shown.shape, generator=self.generator) < _DECOYS, decoy, shown)
        places = torch.rand(images, NUM_TOKENS, generator=self.generator).argsort(dim=1)
        foreground = places < NUM_FOREGROUND
        shown = torch.where(foreground, labels[:, None], shown)
        content = self.prototypes[shown] + self.noise * self._normal(images, NUM_TOKENS, _CONTENT)
        marker = self._normal(images, NUM_TOKENS, _MARKER) * torch.where(foreground, self.spread, 1.0).unsqueeze(-1)
        return torch.cat([content, marker], dim=-1), labels, foreground

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


class SelectiveClassifier(nn.Module):
    """A predictor that sees whole tokens; a classifier of the mean of the content of those kept."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.predictor = nn.Sequential(nn.Linear(_CONTENT + _MARKER, width), nn.GELU(), nn.Linear(width, 1))
        self.encoder = nn.Sequential(nn.Linear(_CONTENT, width), nn.GELU(), nn.Linear(width, width))
        self.head = nn.Linear(width, NUM_CLASSES)

    def scores(self, tokens: Tensor) -> Tensor:
        """Return one logit a token, ``(B, N)``."""
        return self.predictor(tokens).squeeze(-1)

    def classify(self, tokens: Tensor, mask: Tensor, pool: Pool = masked_mean) -> Tensor:
        """Return class logits ``(B, classes)`` from the tokens by their mask ``(B, N)``."""
        return self.head(pool(self.encoder(tokens[..., :_CONTENT]), mask))
