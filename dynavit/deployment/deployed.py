"""What is written into a file: the model's answer to images, and where asked the patches that each stage kept."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from dynavit.cost.oracle import oracle
from dynavit.deployment.inputs import INPUT, PRESENT, all_present
from dynavit.models import PrunedViT


class Deployed(nn.Module):
    """A model as a function of images, without records; it is told that every camera is unknown.

    One of several spectra is a function of samples ``(B, M, 3, H, W)`` and of which spectra there are, ``(B, M)`` bool.

    Args:
        model: in eval mode, without thresholds. Its keep ratios are those of this moment; its weights must not change,
            because what is exported is kept.
        with_tokens: also return for each stage the positions of the patches it kept, ascending, ``(B, k)`` int64: of
            merged tokens the patch that survived.
    """

    def __init__(self, model: PrunedViT, with_tokens: bool = False) -> None:
        super().__init__()
        self.model = copy(model)
        self.with_tokens = with_tokens and bool(model.stages)

    @property
    def takes_present(self) -> bool:
        """Whether it is told which spectra there are."""
        return self.model.num_spectra > 1

    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return what it is called with, by name: images, and that all of their spectra are there."""
        return {INPUT: images, PRESENT: all_present(images)} if self.takes_present else {INPUT: images}

    def forward(self, images: Tensor, present: Tensor | None = None) -> Any:
        """Return the answer ``(B, C)``; with tokens a tuple of it and one tensor a stage."""
        told = self.model.unknown_cameras(images.shape[0])
        if present is not None:
            told = {**told, "present": present}
        if not self.with_tokens:
            return self.model(images, **told)
        answer, trace = self.model(images, return_trace=True, **told)
        patches = trace.source.shape[1]
        place = torch.arange(patches, device=images.device)
        counts = self.model.stage_counts(patches)
        # each patch once, so that no two are equal and the k least, sorted, need no stable sort, which ONNX lacks
        kept = [torch.where(stage.kept, place, patches) for stage in trace.stages]
        least = [
            positions.topk(count, dim=1, largest=False, sorted=True).values
            for positions, count in zip(kept, counts, strict=True)
        ]
        return answer, *least

    def names(self, answer: str) -> list[str]:
        """Return the names of what is returned: ``answer``, then ``tokens_1``, ``tokens_2``, ..."""
        stages = len(self.model.stages) if self.with_tokens else 0
        return [answer, *(f"tokens_{stage + 1}" for stage in range(stages))]


class Truncated(Deployed):
    """The same blocks on as few tokens without choosing them: what pruning could save at best, with wrong answers."""

    def forward(self, images: Tensor, present: Tensor | None = None) -> Any:
        """Return what :func:`~dynavit.cost.oracle.oracle` does."""
        return oracle(self.model, images)
