"""Features of chosen blocks on the full grid of patches, as if no token had gone.

Shapes: B batch, P prefix tokens, N original patches on h rows of w, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dynavit.errors import InputError
from dynavit.models.guides import find_present
from dynavit.models.tokens import Tokens

if TYPE_CHECKING:
    from dynavit.models.pruned_vit import PrunedViT


def forward_intermediates(
    model: PrunedViT,
    images: Tensor,
    indices: int | Sequence[int] | None = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    output_fmt: Literal["NCHW", "NLC"] = "NCHW",
    intermediates_only: bool = False,
    cameras: Tensor | None = None,
    views: Tensor | None = None,
    guide: Tensor | None = None,
    present: Tensor | None = None,
) -> Any:
    """Return features of chosen blocks, one vector for every original patch.

    Where a patch was fused, squeezed or merged into another token it has that token's features; where it
    was dropped, or mixed by ``aggregate``, its own from before.

    This is timm's method, for a model that drops tokens.

    Args:
        model: in eval mode or training.
        images: ``(B, 3, H, W)``.
        indices: numbers of blocks, negative ones from the end; or how many of the last; all of them if None.
        return_prefix_tokens: return pairs of features and prefix tokens ``(B, P, D)``, where there are any.
        norm: apply the last norm to them.
        output_fmt: "NCHW" gives ``(B, D, h, w)``, "NLC" ``(B, N, D)``.
        intermediates_only: leave out the final tokens.
        cameras: as in the forward.
        views: as in the forward.
        guide: as in the forward.
        present: as in the forward. Of M spectra each image has its features, ``(B M, ...)``.

    Returns:
        The final tokens after the last norm ``(B, P + n, D)`` and the list of intermediate features; or only the
        list.

    Raises:
        InputError: a block that does not exist, or another format.
    """
    depth = model.adapter.depth
    if isinstance(indices, int) and not 1 <= indices <= depth:
        raise InputError(f"indices={indices}: how many of the last blocks, 1 to {depth}.")
    if indices is None or isinstance(indices, int):
        indices = range(depth - (depth if indices is None else indices), depth)
    wanted = [index + depth if index < 0 else index for index in indices]
    if any(not 0 <= index < depth for index in wanted):
        raise InputError(f"indices={list(indices)}: this backbone has blocks 0 to {depth - 1}.")
    if output_fmt not in ("NCHW", "NLC"):
        raise InputError(f"output_fmt={output_fmt!r}: 'NCHW' or 'NLC'.")
    if output_fmt == "NCHW" and isinstance(images, Mapping):
        raise InputError("images of different sizes are on no common grid: use output_fmt='NLC'.")
    num_prefix = model.adapter.num_prefix_tokens
    collected: list[Tensor] = []

    def collect(number: int, tokens: Tokens) -> None:
        if number in wanted:
            assert tokens.places is not None
            full = torch.cat([tokens.x[:, :num_prefix], tokens.places.grid(tokens.patches)], dim=1)
            collected.append(model.adapter.norm(full) if norm else full)

    present = find_present(model, images, present)
    tokens = model.embed(images, cameras, views, present, follow=True)
    assert tokens.places is not None
    tokens.places.remember(tokens.patches)
    model.run(tokens, model.request(tokens, guide=guide, present=present), after=collect)
    x = model.adapter.norm(tokens.x)
    features: list[Any] = [full[:, num_prefix:] for full in collected]
    if output_fmt == "NCHW":
        grid = model.adapter.grid_of((images.shape[-2], images.shape[-1]))
        features = [grid_features.transpose(1, 2).unflatten(2, grid).contiguous() for grid_features in features]
    if return_prefix_tokens and num_prefix:
        features = [(one, full[:, :num_prefix]) for one, full in zip(features, collected, strict=True)]
    return features if intermediates_only else (x, features)
