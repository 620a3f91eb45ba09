"""Loading a state dict of somebody else's into a timm model of the run's own size and classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from dynavit.checkpoints.convert import pooling_hint
from dynavit.checkpoints.formats import to_timm
from dynavit.checkpoints.state_dicts import StateDict, in_full_precision
from dynavit.errors import InputError
from dynavit.text import first_line, listed, spread


def load_matching(backbone: Any, state: StateDict, tell: bool) -> bool:
    """Load everything but a head of other classes into a timm model, resampling positions.

    Args:
        backbone: the model.
        state: weights as read, by any names that :func:`~dynavit.checkpoints.formats.to_timm` or timm itself knows.
        tell: warn of what was left out.

    Returns:
        Whether the head was left new.

    Raises:
        InputError: what does not fit is listed.
    """
    own = backbone.state_dict()
    try:
        fitted, problems, replaced = _matched(backbone, own, state)
    except InputError:
        fitted, problems, replaced = _matched_by_timm(backbone, own, state)
        if any(problems.values()):
            raise
    if any(problems.values()):
        by_timm = _matched_by_timm(backbone, own, state)
        if not any(by_timm[1].values()):
            fitted, problems, replaced = by_timm
    if any(problems.values()):
        hint = pooling_hint(problems["missing"], problems["unknown"], "model.kwargs.")
        summary = "; ".join(f"{kind}: {listed(spread(names), 5)}" for kind, names in problems.items() if names)
        raise InputError(f"{state.where} does not fit the architecture. {summary}.{hint}")
    backbone.load_state_dict(in_full_precision(fitted, own), strict=False)
    if tell:
        fitted.tell()
    return replaced


_Match = tuple[StateDict, dict[str, list[str]], bool]


def _matched(backbone: Any, own: Mapping[str, Tensor], state: StateDict) -> _Match:
    """Bring published names and other prefixes to timm's, then compare."""
    state, _, problems = to_timm(state, own)
    ours = {name: value for name, value in state.tensors.items() if name.startswith("backbone.")}
    left = ("scorers.*",) if len(ours) < len(state.tensors) else ()  # DynamicViT's, which belong to its stages
    tensors = {name.removeprefix("backbone."): value for name, value in ours.items()}
    fitted, more, replaced = _matched_by_timm(
        backbone, own, replace(state, tensors=tensors, left_out=(*state.left_out, *left))
    )
    return (
        fitted,
        {
            **more,
            "twice there": problems["twice there"],
            "missing": more["missing"] + problems["missing"],
            "unknown": more["unknown"] + problems["unknown"],
            "other shape": more["other shape"] + problems["of another shape"],
        },
        replaced,
    )


def _matched_by_timm(backbone: Any, own: Mapping[str, Tensor], state: StateDict) -> _Match:
    """Resample positions, as timm does, and compare names and shapes; what is of another head is taken out."""
    # resampling positions in half precision would round them once more
    half = {name: value.float() if value.is_floating_point() else value for name, value in state.tensors.items()}
    try:
        tensors = dict(checkpoint_filter_fn(half, cast(VisionTransformer, backbone)))
    except (
        RuntimeError,
        ValueError,
        AttributeError,
        IndexError,
        TypeError,
        KeyError,
    ) as error:  # a grid nobody can guess
        reason = first_line(error)
        raise InputError(
            f"{state.where} does not fit the architecture: its tensors cannot be resampled ({reason})."
        ) from None
    head = {name for name in tensors if name.startswith("head")}
    has_head = bool(head)
    if backbone.num_classes > 0:  # one that fits, or that the architecture does not know, is no other head
        head = {name for name in head if name in own and tensors[name].shape != own[name].shape}
    for name in head:
        del tensors[name]
    shapes = [
        f"{name} {tuple(value.shape)} != {tuple(own[name].shape)}"
        for name, value in tensors.items()
        if name in own and value.shape != own[name].shape
    ]
    missing = [name for name in own.keys() - tensors.keys() if not name.startswith("head")]
    problems = {"missing": missing, "unknown": list(tensors.keys() - own.keys()), "other shape": shapes}
    left = ("head of other classes",) if head else ()
    return replace(state, tensors=tensors, left_out=(*state.left_out, *left)), problems, bool(head) or not has_head
