"""Published methods, as far as they concern tokens: read from configurations, applied to any backbone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dynavit.adapters import create_adapter
from dynavit.config import load_config
from dynavit.errors import InputError
from dynavit.models import PrunedViT, prune
from dynavit.models.backbone import create_backbone
from dynavit.models.guides import check_unguided
from dynavit.models.pruning import PRUNING

_PARTS = tuple(name for name in PRUNING if name not in ("stages", "keep_ratio", "keep_ratios"))


@dataclass(frozen=True)
class Method:
    """How a token sequence is shortened, without how anything is trained.

    Attributes:
        name: of the configuration.
        stages: blocks (0-based) at which it is; None: the default ones.
        depth: blocks of the backbone that stages are of; None if that is unknown, and they are taken as they are.
        parts: how, as attributes of :class:`~dynavit.models.pruning.Pruning`.
        adaptive: by thresholds, so that images differ in their number of tokens.
    """

    name: str
    stages: tuple[int, ...] | None
    depth: int | None
    parts: dict[str, Any]
    adaptive: bool = False

    def apply(self, dense: PrunedViT) -> PrunedViT:
        """Return the backbone of a dense model, shared, shortened in this way; in eval mode, on its device.

        Raises:
            InputError: the backbone has too few blocks or cannot be pruned in this way; or something of the
                method has to be trained first.
        """
        model = prune(dense.backbone, stages=self.stages_in(dense.adapter.depth), **self.parts)
        if any(scorer.learned for scorer in model.scorers) and model.selector.needs_scores:
            raise InputError(f"its scorer, {model.scorers[0].name}, has to be trained first.")
        if list(model.reducer.parameters()):
            raise InputError(f"its reducer, {model.reducer.name}, has to be trained first.")
        check_unguided(model)
        return model.to(next(dense.parameters()).device).eval()

    def stages_in(self, depth: int) -> tuple[int, ...] | None:
        """Return the stages in a backbone of another depth: at the same part of it.

        Stages at every block of some part stay that.

        Raises:
            InputError: two of them would fall on one block.

        Example:
            >>> Method("evit", (3, 6, 9), 12, {}).stages_in(24)
            (6, 12, 18)
        """
        if not self.stages or self.depth in (None, depth):
            return self.stages
        assert self.depth is not None
        first, end = self.stages[0], self.stages[-1] + 1
        every_block = len(self.stages) > 1 and self.stages == tuple(range(first, end))
        if every_block:
            scaled = tuple(range(first * depth // self.depth, end * depth // self.depth))
        else:
            scaled = tuple(sorted({stage * depth // self.depth for stage in self.stages}))
        if not scaled or (len(scaled) < len(self.stages) and not every_block):
            raise InputError(f"its stages {list(self.stages)} of {self.depth} blocks are too many for {depth} blocks.")
        return scaled


def read_methods(paths: Iterable[str | Path]) -> list[Method]:
    """Read from configurations of trainings what concerns tokens, and nothing else.

    Raises:
        InputError: no configuration, one that is wrong, or two of one name.
    """
    methods = [_read(Path(path)) for path in paths]
    if not methods:
        raise InputError("there is no method to compare: give configurations, as --configs configs/methods/*.yaml")
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1 or name == "dense":
            raise InputError(f"{name}.yaml: the table has another row of this name; rename the file.")
    return methods


def _read(path: Path) -> Method:
    config = load_config(path)
    model = config.model
    depth = None
    if model.architecture is not None and model.stages is not None:
        with torch.device("meta"):  # its depth is all that is asked
            depth = create_adapter(create_backbone(model.architecture, **model.kwargs)).depth
    stages = None if model.stages is None else tuple(model.stages)
    parts = {name: getattr(model, name) for name in _PARTS}
    return Method(path.stem, stages, depth, parts, config.evaluate.adaptive)
