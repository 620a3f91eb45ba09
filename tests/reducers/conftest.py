"""Random tokens and decisions, and the two forms in which a reducer may be given them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dynavit.reducers import Reducer, TokenSet, create_reducer

B, N, K, Q, D = 3, 14, 6, 5, 10  # so three of the tokens died at an earlier stage


def _weighted() -> Reducer:
    reducer = create_reducer("merge_nearest", D, weighted=True)
    reducer.beta.data.fill_(0.75)  # at 0 it is the plain one
    return reducer


SELECTING: dict[str, Callable[[], Reducer]] = {
    "drop": lambda: create_reducer("drop", D),
    "fuse": lambda: create_reducer("fuse", D),
    "fuse_raw": lambda: create_reducer("fuse", D, normalize=False),
    "squeeze": lambda: create_reducer("squeeze", D),
    "merge_nearest": lambda: create_reducer("merge_nearest", D),
    "merge_nearest_weighted": _weighted,
    "aggregate": lambda: create_reducer("aggregate", D, tokens=4),
}
"""Every reducer that works on a selector's decision."""


@dataclass(frozen=True)
class Stage:
    """A random decision over ``N`` tokens: ``K`` kept, ``Q`` dropped, the others dead."""

    tokens: Tensor
    logits: Tensor
    keep: Tensor
    drop: Tensor

    @property
    def kept_index(self) -> Tensor:
        return self.keep.nonzero()[:, 1].view(B, K)

    @property
    def dropped_index(self) -> Tensor:
        return self.drop.nonzero()[:, 1].view(B, Q)

    def gathered(self) -> tuple[TokenSet, TokenSet]:
        return self._rows(self.kept_index), self._rows(self.dropped_index)

    def masked(self) -> tuple[TokenSet, TokenSet]:
        return (
            TokenSet(self.tokens, self.logits, self.keep.to(self.logits.dtype)),
            TokenSet(self.tokens, self.logits, self.drop.to(self.logits.dtype)),
        )

    def _rows(self, index: Tensor) -> TokenSet:
        return TokenSet(self.tokens.gather(1, index.unsqueeze(2).expand(-1, -1, D)), self.logits.gather(1, index))


def make_stage(seed: int = 0, dtype: torch.dtype = torch.float32) -> Stage:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(B, N, generator=generator).argsort(dim=1)
    rank = order.argsort(dim=1)
    tokens = torch.randn(B, N, D, generator=generator, dtype=torch.float64)
    logits = torch.randn(B, N, generator=generator, dtype=torch.float64)
    return Stage(tokens.to(dtype), logits.to(dtype), rank < K, (rank >= K) & (rank < K + Q))


def make_reducer(name: str, seed: int = 0) -> Reducer:
    torch.manual_seed(seed)
    return SELECTING[name]()


@pytest.fixture(scope="session")
def stage_of() -> Callable[..., Stage]:
    """Function: seed and dtype to a random stage."""
    return make_stage


@pytest.fixture(scope="session")
def reducer_of() -> Callable[..., Reducer]:
    """Function: name in ``SELECTING`` to a new reducer, with the same parameters every time."""
    return make_reducer


@pytest.fixture(params=list(SELECTING))
def name(request: pytest.FixtureRequest) -> str:
    """Return every reducer that works on a selector's decision in turn."""
    return request.param
