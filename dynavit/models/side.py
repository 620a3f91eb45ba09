"""Telling the model which camera and which viewpoint an image was taken from.

Shapes: B batch, D width of the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynavit.errors import InputError


class SideEmbedding(nn.Module):
    """One learned vector for each pair of camera and view, added to every token of the image.

    Side information embedding (SIE): He et al. 2021 (TransReID), https://arxiv.org/abs/2102.04378,
    section 3.3. It takes away the bias that a camera puts on all its images. A camera that is not
    known, -1, gets the mean over all cameras, and a view likewise.

    Args:
        num_cameras: cameras of the training data, numbered from 0.
        num_views: views, such as front, side and rear; 1 where they are not told apart.
        embed_dim: D.
        scale: what the vectors are multiplied by (lambda).

    Raises:
        InputError: an impossible value here; cameras or views that are missing, misshapen or out of
            range. A range is checked with that sentence on the CPU only, so that an accelerator need
            not wait; elsewhere indexing fails.
    """

    def __init__(self, num_cameras: int, num_views: int, embed_dim: int, scale: float = 3.0) -> None:
        super().__init__()
        for name, value in (("cameras", num_cameras), ("views", num_views)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"side embedding: {name}={value!r}; it is a whole number, at least 1.")
        self.num_cameras, self.num_views, self.scale = num_cameras, num_views, float(scale)
        self.table = nn.Parameter(torch.zeros(num_cameras, num_views, embed_dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def options(self) -> dict[str, Any]:
        """Return what builds another one of the same shape, as ``create_model(side=...)`` takes it."""
        return {"cameras": self.num_cameras, "views": self.num_views, "scale": self.scale}

    def unknown(self, batch: int) -> dict[str, Tensor]:
        """Return the arguments of the model for B images of which neither camera nor view is known."""
        numbers = torch.full((batch,), -1, device=self.table.device)
        return {"cameras": numbers, "views": numbers}

    def forward(self, cameras: Tensor | None, views: Tensor | None, batch: int) -> Tensor:
        """Return what is added to the tokens, ``(B, 1, D)``.

        Args:
            cameras: ``(B,)`` int64, -1 where unknown.
            views: likewise; may be left out where there is only one.
            batch: B.
        """
        if views is None and self.num_views == 1 and cameras is not None:
            views = torch.zeros_like(cameras)
        camera = self._checked("cameras", cameras, self.num_cameras, batch)
        view = self._checked("views", views, self.num_views, batch)
        # the means are one more row and one more column
        table = torch.cat([self.table, self.table.mean(dim=0, keepdim=True)], dim=0)
        table = torch.cat([table, table.mean(dim=1, keepdim=True)], dim=1)
        of_camera = table.index_select(0, camera)
        index = view[:, None, None].expand(-1, 1, table.shape[2])
        return self.scale * of_camera.gather(1, index)

    def _checked(self, name: str, numbers: Tensor | None, count: int, batch: int) -> Tensor:
        """Return the row of each image, the last one where it is unknown."""
        if numbers is None:
            raise InputError(
                f"this model was trained with {name} and needs them: call model(images, {name}=...) with a "
                f"LongTensor of {batch} numbers from 0 to {count - 1}, or of -1 where they are unknown."
            )
        if numbers.shape != (batch,) or numbers.dtype not in (torch.int64, torch.int32):
            raise InputError(
                f"{name} of shape {tuple(numbers.shape)} and {numbers.dtype} for {batch} images: give one whole "
                f"number an image."
            )
        if numbers.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = numbers.aminmax()
            if low < -1 or high >= count:
                raise InputError(
                    f"{name} from {low} to {high}: this model knows {count}, numbered from 0 to {count - 1}; give -1 "
                    f"for others."
                )
        numbers = numbers.to(self.table.device, torch.int64)
        return torch.where(numbers == -1, count, numbers)


def add_side(side: SideEmbedding | None, x: Tensor, cameras: Tensor | None, views: Tensor | None) -> Tensor:
    """Add what is known of camera and view to tokens ``(B, L, D)``.

    Raises:
        InputError: nothing in the model could be told.
    """
    if side is None:
        raise InputError(
            "this model has no side embedding: call it without cameras and views, or create it with "
            "side={'cameras': ...}."
        )
    return x + side(cameras, views, x.shape[0]).to(x.dtype)
