"""Data of the stability study: a re-identification problem that two CPU cores learn in seconds.

Shapes: B images, N tokens, D token width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynavit.functional import take

NUM_IDENTITIES = 24
NUM_TOKENS = 32
NUM_FOREGROUND = 8
TOKEN_DIM = 32


class Identities:
    """Images as sets of tokens, a few of which show who it is.

    Each identity has ``NUM_FOREGROUND`` parts that share a component. An image holds the parts of
    its identity, with noise, at random places; every other token comes from a pool of bystanders,
    alike for all identities. Foreground carries a common marker by which a predictor can tell it.

    Args:
        seed: of the parts and of every image drawn later.
        common: share of a part that all parts of the identity have in common.
        noise: standard deviation of what differs between images; parts have 1.
        marker: standard deviation of the marker.
    """

    def __init__(self, seed: int, common: float = 0.9, noise: float = 1.5, marker: float = 0.5) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.noise = noise
        shared, own = (
            self._normal(NUM_IDENTITIES, 1, TOKEN_DIM),
            self._normal(NUM_IDENTITIES, NUM_FOREGROUND, TOKEN_DIM),
        )
        self.parts = common * shared + (1 - common**2) ** 0.5 * own
        self.bystanders = self._normal(4 * NUM_IDENTITIES, TOKEN_DIM)
        self.marker = marker * self._normal(TOKEN_DIM)

    def batch(self, identities: int = 8, images: int = 4) -> tuple[Tensor, Tensor]:
        """Draw a PK batch: tokens ``(B, N, D)`` and labels ``(B,)``, B = identities * images."""
        chosen = torch.randperm(NUM_IDENTITIES, generator=self.generator)[:identities]
        return self.images(chosen.repeat_interleave(images))

    def images(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Draw one image for each label ``(B,)``."""
        count = labels.shape[0]
        others = torch.randint(len(self.bystanders), (count, NUM_TOKENS - NUM_FOREGROUND), generator=self.generator)
        tokens = torch.cat([self.parts[labels] + self.marker, self.bystanders[others]], dim=1)
        tokens = tokens + self.noise * self._normal(*tokens.shape)
        places = torch.rand(count, NUM_TOKENS, generator=self.generator).argsort(dim=1)
        return take(tokens, places), labels

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)
