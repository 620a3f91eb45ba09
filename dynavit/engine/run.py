"""Opening what a training run, or ``save_pretrained``, wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dynavit.config import Config, load_config
from dynavit.data.samples import UNREADABLE
from dynavit.data.transforms import Transform, create_transforms, to_pixels, to_rgb
from dynavit.engine.build import resolve_preprocessing
from dynavit.errors import InputError
from dynavit.models import PrunedViT, load

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Run:
    """A trained model and what belongs to it.

    Attributes:
        path: its folder.
        model: in eval mode, on ``device``.
        config: the configuration it was trained with; None where the folder has none.
        preprocessing: image size, mean, std, interpolation, crop fraction.
        class_names: names of the classes, or their numbers.
    """

    path: Path
    model: PrunedViT
    config: Config | None
    preprocessing: dict[str, Any]
    class_names: tuple[str, ...]
    device: torch.device

    @cached_property
    def _evaluation_transform(self) -> Transform:
        return create_transforms(**self.preprocessing)[1]

    @property
    def is_reid(self) -> bool:
        """Whether the model answers with an embedding."""
        return self.model.neck is not None

    def answer(self, images: Tensor) -> Tensor:
        """Run the model on images ``(B, 3, H, W)`` of which no camera is known."""
        answer: Tensor = self.model(images, **self.model.unknown_cameras(len(images)))
        return answer

    def transform(self, image: Image.Image) -> Tensor:
        """Turn any picture into the ``(3, H, W)`` tensor that the model expects."""
        return self._evaluation_transform(to_rgb(image))

    def pixels(self, image: Tensor) -> Any:
        """Undo the normalisation: ``(3, H, W)`` to ``(H, W, 3)`` uint8."""
        return to_pixels(image, self.preprocessing["mean"], self.preprocessing["std"])


def open_run(
    path: str | Path,
    keep_ratio: float | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> Run:
    """Open a folder with a trained model.

    Args:
        path: the folder.
        keep_ratio: in place of the one trained with.
        device: name for torch; CUDA if there is one and None is given.
        overrides: ``key.subkey=value`` settings in place of those in the folder's ``config.yaml``.

    Raises:
        InputError: no such folder, or no model in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} does not exist: give the folder of a run, such as checkpoints/quickstart.")
    model = load(path)
    if keep_ratio is not None:
        _require_stages(model, path)
        model.set_keep_ratio(keep_ratio)
    chosen = choose_device(device)
    config = load_config(path / "config.yaml", overrides) if (path / "config.yaml").exists() else None
    metadata = model.metadata
    if "preprocessing" in metadata:
        preprocessing = metadata["preprocessing"]
    else:
        preprocessing = resolve_preprocessing((config or Config()).data, model.backbone, squash=model.neck is not None)
    names = metadata.get("class_names") or [str(number) for number in range(model.num_classes)]
    return Run(path, model.to(chosen), config, preprocessing, tuple(names), chosen)


def list_images(folder: str | Path) -> list[Path]:
    """Return all image files below a folder, or the one file given.

    Raises:
        InputError: no such folder, or none in it.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: --images takes a folder with pictures, or one picture.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not found:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(_IMAGE_SUFFIXES))}).")
    return found


def read_images(run: Run, paths: list[Path], batch_size: int) -> Iterator[tuple[list[Path], Tensor, list[str]]]:
    """Yield batches of paths and images ``(B, 3, H, W)``, with a message for each that cannot be read.

    Raises:
        InputError: not one image can be read.
    """
    readable = 0
    for first in tqdm(range(0, len(paths), batch_size), desc="images", leave=False, disable=None):
        good, images, problems = [], [], []
        for path in paths[first : first + batch_size]:
            try:
                with Image.open(path) as image:
                    images.append(run.transform(image))
                good.append(path)
            except UNREADABLE as error:
                problems.append(f"{path} cannot be read and is left out: {error}")
        readable += len(good)
        yield good, torch.stack(images).to(run.device) if images else torch.empty(0), problems
    if not readable:
        raise InputError(f"none of the {len(paths)} image files can be read; the first is {paths[0]}.")


def choose_device(name: str | None) -> torch.device:
    """Return the device of this name; without one CUDA, if there is any.

    Raises:
        InputError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=device).item()  # some devices hold no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise InputError(f"--device {name}: {reason}. Use cpu, or leave it out.") from None
    return device


def _require_stages(model: PrunedViT, path: Path) -> None:
    if not model.stages:
        raise InputError(f"{path} holds a dense model without pruning stages, so it has no keep ratio to set.")
