"""What one would do instead of pruning: give the dense model smaller images, or take another trained model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from dynavit.cost.macs import checked_size
from dynavit.data.transforms import image_size_of
from dynavit.errors import InputError
from dynavit.evaluation.variants import Variant
from dynavit.models import PrunedViT, create_model, prune
from dynavit.runs.open import Run, open_run

AUTO, NONE = "auto", "none"
_LEAST = 3  # patches that the smallest image is high


def parse_rivals(text: str) -> list[int] | None:
    """Return the heights that a setting names: None for ``auto``, an empty list for ``none``.

    Raises:
        InputError: neither of these nor whole numbers with commas between them.
    """
    words = [word.strip() for word in text.split(",")]
    if words in ([AUTO], [NONE]):
        return None if words == [AUTO] else []
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise InputError(
            f"--rivals {text} (evaluate.rivals): auto, none, or heights in pixels with commas between them, as 192,160."
        )
    return [int(word) for word in words]


def smaller_images(dense: PrunedViT, preprocessing: dict[str, Any], height: int) -> Variant:
    """Return a dense model on images of ``height`` pixels, their width in proportion.

    Args:
        dense: in eval mode.
        preprocessing: how images are prepared for it.
        height: a multiple of the patch size, below that of its images.

    Raises:
        InputError: another height.
    """
    own, patch = image_size_of(preprocessing), dense.adapter.patch_size
    if height % patch[0] or not 0 < height < own[0]:
        raise InputError(
            f"--rivals {height} (evaluate.rivals): give a multiple of {patch[0]} pixels, the patch size, below "
            f"{own[0]}, the height of the images."
        )
    size = height, max(round(own[1] * height / own[0] / patch[1]), 1) * patch[1]
    name = f"dense, {height} px" if height == size[1] else f"dense, {height}x{size[1]} px"
    about = {"rival": name, "image_size": list(size)}
    return Variant("rival", 1.0, at_size(dense, size), about=about, preprocessing={**preprocessing, "image_size": size})


def all_smaller_images(dense: PrunedViT, preprocessing: dict[str, Any]) -> list[Variant]:
    """Return a dense model on images of every smaller size, the largest first, one patch from each other."""
    height, step = image_size_of(preprocessing)[0], dense.adapter.patch_size[0]
    counts = range((height - 1) // step, _LEAST - 1, -1)
    return [smaller_images(dense, preprocessing, step * count) for count in counts]


def nearest(pruned: Sequence[float], offered: Sequence[float]) -> list[int]:
    """Return the places of what is offered nearest to each cost of pruned models, each once, ascending."""
    return sorted({min(range(len(offered)), key=lambda place: abs(offered[place] - cost)) for cost in pruned})


def untrained_rivals(dense: PrunedViT, names: Sequence[str]) -> list[Variant]:
    """Return what is timed where nothing is trained.

    Args:
        dense: in eval mode.
        names: heights of smaller images, and names of other timm models.

    Raises:
        InputError: an impossible height, or an unknown name.
    """
    preprocessing = {"image_size": checked_size(dense, None)}
    device, rivals = next(dense.parameters()).device, []
    for name in names:
        if name.isdecimal():
            rivals.append(smaller_images(dense, preprocessing, int(name)))
        else:
            model = create_model(name, stages=()).eval().to(device)
            about = {"rival": name, "image_size": list(checked_size(model, None))}
            rivals.append(Variant("rival", 1.0, model, about=about, preprocessing={"image_size": about["image_size"]}))
    return rivals


def trained_rival(path: str | Path, run: Run) -> Variant:
    """Return the model of another run, which has to know the same classes.

    Raises:
        InputError: no such run, or one of another task or of other classes.
    """
    other = open_run(path, device=str(run.device))
    if other.is_reid != run.is_reid:
        task = "re-identification" if other.is_reid else "classification"
        raise InputError(f"--rival-run {path}: a model for {task}, which the run that is evaluated is not.")
    if not run.is_reid and other.class_names != run.class_names:
        raise InputError(f"--rival-run {path}: its classes are not those of {run.path}, in the same order.")
    name, size = Path(path).resolve().name, list(image_size_of(other.preprocessing))
    about = {"rival": name, "rival_run": str(path), "image_size": size}
    ratios = list(other.model.keep_ratios) or 1.0
    return Variant("rival", ratios, other.model.eval(), about=about, preprocessing=other.preprocessing)


def at_size(dense: PrunedViT, size: tuple[int, int]) -> PrunedViT:
    """Return a dense model for images ``size`` pixels high and wide: positions are resampled, other weights shared."""
    if not hasattr(dense.backbone, "set_input_size"):
        return dense  # takes images of any size as it is
    shared = {id(weight): weight for weight in dense.backbone.parameters()}
    model = prune(deepcopy(dense.backbone, shared), stages=())
    model.neck, model.side, model.metadata = dense.neck, dense.side, dense.metadata
    model.set_input_size(img_size=size)
    return model.eval()
