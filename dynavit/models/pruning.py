"""How tokens are shortened: every option of pruning, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

from torch import nn

from dynavit.errors import InputError
from dynavit.models.counts import CountRule
from dynavit.reducers import Merge, Reducer, create_reducer
from dynavit.scorers import Scorer, create_scorer
from dynavit.selectors import Selector, create_selector

Placement = Literal["before", "inside"]
DEFAULT_KEEP_RATIO = 0.7


@dataclass(frozen=True)
class Pruning:
    """How a model shortens its tokens.

    Attributes:
        stages: prune at these blocks (0-based); a quarter, half and three quarters of the depth
            if None, as DynamicViT does; ``()`` prunes nowhere.
        keep_ratio: r keeps r, r^2, r^3 ... of the original patches over the stages; 0.7 by default. See
            :meth:`PrunedViT.set_keep_ratio`.
        keep_ratios: one ratio a stage, in place of ``keep_ratio``.
        selector: a registered name, ``{"name": ..., option: value}`` or an instance.
        scorer: what gives every token its logit, one instance a stage: a name or ``{"name": ..., option: value}``.
        reducer: what becomes of tokens not kept: likewise, or an instance; ``"merge"`` merges tokens without scores.
        placement: prune "before" a stage's block, or "inside" it, between its attention and its MLP.
        count_rule: what ratios mean, "original", "linear" or "current"; see :data:`dynavit.models.counts.CountRule`.
    """

    stages: Sequence[int] | None = None
    keep_ratio: float | None = None
    keep_ratios: Sequence[float] | None = None
    selector: str | Mapping[str, Any] | Selector = "topk"
    scorer: str | Mapping[str, Any] = "mlp"
    reducer: str | Mapping[str, Any] | Reducer | Merge = "drop"
    placement: Placement = "before"
    count_rule: CountRule = "original"

    def __post_init__(self) -> None:
        if self.keep_ratio is not None and self.keep_ratios is not None:
            raise InputError("give keep_ratio (one number) or keep_ratios (one a stage), not both.")

    @property
    def ratios(self) -> Any:
        """What :meth:`PrunedViT.set_keep_ratio` takes."""
        if self.keep_ratios is not None:
            return self.keep_ratios
        return DEFAULT_KEEP_RATIO if self.keep_ratio is None else self.keep_ratio

    def stages_of(self, depth: int) -> Sequence[int]:
        """Return the stages in a backbone of this many blocks: (3, 6, 9) of 12 by default.

        Raises:
            InputError: a single block has no quarters, and no stages are given.
        """
        if self.stages is not None:
            return self.stages
        if depth < 2:
            raise InputError(f"a backbone of {depth} block has no default stages: give stages=(0,), or () for none.")
        return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)} - {0}))

    def create_selector(self) -> Selector:
        """Build the selector, unless it is one."""
        return _created(self.selector, "selector", create_selector, Selector)

    def create_scorer(self, dim: int) -> Scorer:
        """Build the scorer of one stage, for tokens of width ``dim``."""
        return _created(self.scorer, "scorer", partial(create_scorer, dim=dim))

    def create_reducer(self, dim: int) -> Reducer | Merge:
        """Build the reducer, unless it is one, for tokens of width ``dim``."""
        return _created(self.reducer, "reducer", partial(create_reducer, dim=dim), Reducer, Merge)


PRUNING = tuple(option.name for option in fields(Pruning))


def _created(part: Any, noun: str, create: Callable[..., Any], *kinds: type[nn.Module]) -> Any:
    if kinds and isinstance(part, kinds):
        return part
    if isinstance(part, str):
        return create(part)
    if isinstance(part, Mapping) and isinstance(part.get("name"), str) and all(isinstance(key, str) for key in part):
        if "dim" in part:
            raise InputError(f"{noun}={dict(part)}: the width of the tokens is the backbone's; leave out dim.")
        return create(**part)
    shown = type(part).__name__ if isinstance(part, nn.Module) else repr(part)
    otherwise = f", or a {kinds[0].__name__}" if kinds else ""
    raise InputError(f"{noun}={shown}: give a name, or a mapping with 'name'{otherwise}.")
