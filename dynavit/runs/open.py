"""Opening what a training run, or ``save_pretrained``, wrote."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dynavit.checkpoints.state_dicts import check_numbers
from dynavit.config import Config, load_config, named_settings
from dynavit.data.pictures import convert_picture
from dynavit.data.transforms import Preparation, create_transforms, image_size_of, to_pixels
from dynavit.errors import InputError, did_you_mean
from dynavit.models import PrunedViT, load
from dynavit.models.features import features_and_logits
from dynavit.models.hub import WEIGHTS
from dynavit.runs.build import resolve_preprocessing
from dynavit.runs.processes import num_processes

_NEEDED, _KNOWN = ("image_size", "mean", "std"), tuple(inspect.signature(create_transforms).parameters)[:-1]
CONFIG_FILE, MODEL_FILE = "config.yaml", "config.json"


@dataclass(frozen=True)
class Run:
    """A trained model and what belongs to it.

    Attributes:
        path: its folder.
        model: in eval mode, on ``device``.
        config: the configuration it was trained with; None where the folder has none and no data were named.
        preprocessing: image size, mean, std, interpolation, crop fraction.
        preparation: what turns a picture into a tensor, made of the preprocessing.
        class_names: names of the classes, or their numbers.
    """

    path: Path
    model: PrunedViT
    config: Config | None
    preprocessing: dict[str, Any]
    preparation: Preparation
    class_names: tuple[str, ...]
    device: torch.device

    @property
    def is_reid(self) -> bool:
        """Whether the model answers with an embedding."""
        return self.model.neck is not None

    def require_classifier(self) -> None:
        """Refuse a model that can neither classify nor compare.

        Raises:
            InputError: it has no classifier.
        """
        if not self.is_reid and not self.model.num_classes:
            raise InputError(
                f"{self.path} has no classifier (num_classes=0): give it one with model.reset_classifier(N), and train "
                f"it with model.checkpoint={self.path}."
            )

    def require_one_spectrum(self) -> None:
        """Refuse a model that single pictures cannot be shown to.

        Raises:
            InputError: it sees several spectra of each sample.
        """
        if self.model.num_spectra > 1:
            raise InputError(
                f"{self.path} sees {self.model.num_spectra} spectra of each sample, and this works on single pictures: "
                f"evaluate and export it on its own data (without --images), or use dynavit.load and tensors."
            )

    def answer(self, images: Tensor, return_trace: bool = False) -> Any:
        """Run the model on images ``(B, C, H, W)`` of which no camera is known."""
        return self.model(images, return_trace=return_trace, **self.model.unknown_cameras(len(images)))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the classifier receives, and what it answers, of one forward; as :meth:`answer` otherwise."""
        return features_and_logits(self.model, images, **self.model.unknown_cameras(len(images)))

    def transform(self, image: Image.Image) -> Tensor:
        """Turn any picture into the ``(C, H, W)`` tensor that the model expects."""
        return self.preparation(convert_picture(image, self.preparation.channels))

    def pixels(self, image: Tensor) -> Any:
        """Undo the normalisation: ``(C, H, W)`` to ``(H, W, 3)`` uint8."""
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
        overrides: ``key.subkey=value`` settings in place of those in the folder's ``config.yaml``, or, where it has
            none, of the defaults. The ``config.yaml`` of ``RUN/best`` is that of ``RUN``.

    Raises:
        InputError: no such folder, no model in it, one that is broken or whose weights are not finite, or an
            impossible setting.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} does not exist: give the folder of a run, such as checkpoints/quickstart.")
    model = load(path)
    check_numbers(model.state_dict(), path / WEIGHTS)
    if keep_ratio is not None:
        _require_stages(model, path)
        model.set_keep_ratio(keep_ratio)
    chosen = choose_device(device)
    overridden = {key for override in overrides for key in named_settings(override)}
    settings, is_written = _configuration(path, model, overrides)
    metadata = model.metadata
    preprocessing = metadata.get("preprocessing", {})
    replaced = [key for key in _KNOWN if f"data.{key}" in overridden]
    if "preprocessing" in metadata:
        _check_preprocessing(preprocessing, model, path / MODEL_FILE)
    if not preprocessing or replaced:
        resolved = resolve_preprocessing(settings.data, model.backbone, squash=model.neck is not None)
        preprocessing = {**(preprocessing or resolved), **{key: resolved[key] for key in replaced}}
    preparation = create_transforms(**preprocessing)[1]
    config = settings if is_written or overridden & {"data.root", "data.name"} else None
    names = metadata.get("class_names") or [str(number) for number in range(model.num_classes)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path / MODEL_FILE}, metadata.class_names: {names!r} is no list of names.")
    if model.neck is None and len(names) != model.num_classes:
        raise InputError(
            f"{path / MODEL_FILE}, metadata.class_names: {len(names)} names, but the model has {model.num_classes} "
            f"classes. Correct it, or save the model again."
        )
    return Run(path, model.to(chosen), config, preprocessing, preparation, tuple(names), chosen)


def _check_preprocessing(preprocessing: Any, model: PrunedViT, file: Path) -> None:
    """Refuse a saved model whose preparation of pictures cannot work.

    Raises:
        InputError: it says something that cannot work; the message names file and key.
    """
    try:
        if not isinstance(preprocessing, dict):
            raise InputError(f"it is {preprocessing!r}, where keys and values were expected.")
        for key in preprocessing:
            if key not in _KNOWN:
                raise InputError(f"there is no {key}.{did_you_mean(key, _KNOWN)} Known: {', '.join(_KNOWN)}.")
        if missing := [key for key in _NEEDED if key not in preprocessing]:
            raise InputError(f"{', '.join(missing)} is missing.")
        preparation = create_transforms(**preprocessing)[1]
        if preparation.channels != model.adapter.in_chans:
            raise InputError(
                f"mean={preprocessing['mean']}: give {model.adapter.in_chans} number(s), one for each channel of the "
                f"model."
            )
        size = image_size_of(preprocessing)
        if getattr(model.adapter.stem, "strict_img_size", False) and size != model.adapter.image_size:
            raise InputError(f"image_size={list(size)}: the model takes {list(model.adapter.image_size or ())} alone.")
    except InputError as error:
        raise InputError(f"{file}, metadata.preprocessing: {error} Correct it, or save the model again.") from None


def choose_device(name: str | None) -> torch.device:
    """Return the device of this name; without one CUDA, if there is any.

    Each of several processes has the GPU of its own number, which Accelerate takes, too. A GPU that is chosen by
    number becomes torch's current one, which timings wait for.

    Raises:
        InputError: there is no such device, or one GPU is named for several processes.
    """
    several = num_processes() > 1
    if several and name not in (None, "cpu"):
        raise InputError(
            f"--device {name}: each of {num_processes()} processes takes the GPU of its own number. Use cpu, or leave "
            f"it out."
        )
    gpu = f"cuda:{os.environ['LOCAL_RANK']}" if several else "cuda"
    chosen = name or (gpu if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(chosen)
        torch.ones(1, device=device).item()  # some devices hold no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise InputError(f"--device {chosen}: {reason}. Use cpu, or leave it out.") from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def _require_stages(model: PrunedViT, path: Path) -> None:
    if not model.stages:
        raise InputError(f"{path} holds a dense model without pruning stages, so it has no keep ratio to set.")


def _configuration(path: Path, model: PrunedViT, overrides: Sequence[str]) -> tuple[Config, bool]:
    """Return the settings of a model's training, or the defaults, and whether they were written there."""
    file = path / CONFIG_FILE
    above = path.resolve().parent
    if not file.is_file() and _same_model(path, above):  # as a training keeps its best model
        file = above / CONFIG_FILE
    if file.is_file():
        return load_config(file, overrides), True
    task = "classify" if model.neck is None else "reid"
    config = load_config(None, [f"task={task}", f"model.architecture={model.architecture}", *overrides])
    config.name = path.resolve().name
    return config, False


def _same_model(path: Path, other: Path) -> bool:
    """Whether two folders hold the same model, but for its weights."""
    try:
        return (path / MODEL_FILE).read_bytes() == (other / MODEL_FILE).read_bytes()
    except OSError:
        return False
