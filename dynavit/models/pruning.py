"""How tokens are shortened: every option of pruning, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

from torch import nn

from dynavit.errors import InputError
from dynavit.models.counts import CountRule
from dynavit.parts import named_config
from dynavit.reducers import Merge, Reducer, create_reducer
from dynavit.scorers import Scorer, create_scorer
from dynavit.selectors import Selector, create_selector

Placement = Literal["before", "inside"]
DEFAULT_KEEP_RATIO = 0.7


@dataclass(frozen=True)
class Pruning:
    """How a model shortens its tokens.

    Attributes:
        stages: prune at these blocks (0-based); the first one and that at a third of the depth if None; ``()`` prunes
            nowhere.
        keep_ratio: r keeps r, r^2, r^3 ... of the original patches over the stages; 0.7 by default. See
            :meth:`PrunedViT.set_keep_ratio`.
        keep_ratios: one ratio a stage, in place of ``keep_ratio``.
        selector: a registered name, ``{"name": ..., option: value}`` or an instance; ``"topk"`` if None.
        scorer: what gives every token its logit, one instance a stage: a name or ``{"name": ..., option: value}``. If
            None, ``"distinctness"``, which learns nothing; or ``"mlp"`` for a selector, if given, that lets it learn.
        reducer: what becomes of tokens not kept: likewise, or an instance; ``"merge"`` merges tokens without scores.
            If None, ``"merge_nearest"``; or ``"drop"`` where the selector removes no token while it trains.
        placement: prune "before" a stage's block, or "inside" it, between its attention and its MLP.
        count_rule: what ratios mean, "original", "linear" or "current"; see :data:`dynavit.models.counts.CountRule`.
    """

    stages: Sequence[int] | None = None
    keep_ratio: float | None = None
    keep_ratios: Sequence[float] | None = None
    selector: str | Mapping[str, Any] | Selector | None = None
    scorer: str | Mapping[str, Any] | None = None
    reducer: str | Mapping[str, Any] | Reducer | Merge | None = None
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
        """Return the stages in a backbone of this many blocks: (0, 4) of 12 by default."""
        return sorted({0, depth // 3}) if self.stages is None else self.stages

    def create_selector(self) -> Selector:
        """Build the selector, unless it is one."""
        default = {"name": "topk", "gradient": "none"} if self.scorer is None else "topk"
        part = default if self.selector is None else self.selector
        return _created(part, "selector", create_selector, Selector)

    def scorer_for(self, selector: Selector) -> str | Mapping[str, Any]:
        """Return the scorer, as it is given or as it suits a selector."""
        learns = selector.trains_scorer or selector.needs_reward
        default = "mlp" if learns else "distinctness"
        return default if self.scorer is None else self.scorer

    def create_reducer(self, dim: int, selector: Selector) -> Reducer | Merge:
        """Build the reducer, unless it is one, for tokens of width ``dim``."""
        default = "drop" if selector.soft else "merge_nearest"
        part = default if self.reducer is None else self.reducer
        return _created(part, "reducer", partial(create_reducer, dim=dim), Reducer, Merge)


PRUNING = tuple(option.name for option in fields(Pruning))


def quarters(depth: int) -> list[int]:
    """Return the blocks at a quarter, half and three quarters of the depth, where DynamicViT and EViT prune.

    Example:
        >>> quarters(12)
        [3, 6, 9]
    """
    return sorted({depth * quarter // 4 for quarter in (1, 2, 3)} - {0})


def build_scorer(part: str | Mapping[str, Any], dim: int) -> Scorer:
    """Build the scorer of one stage, for tokens of width ``dim``."""
    return _created(part, "scorer", partial(create_scorer, dim=dim))


def _created(part: Any, noun: str, create: Callable[..., Any], *kinds: type[nn.Module]) -> Any:
    if kinds and isinstance(part, kinds):
        return part
    shown = type(part).__name__ if isinstance(part, nn.Module) else repr(part)
    config = named_config(part, f"{noun}={shown}", f", or a {kinds[0].__name__}" if kinds else "")
    if "dim" in config:
        raise InputError(f"{noun}={config}: the width of the tokens is the backbone's; leave out dim.")
    return create(**config)
