"""The parts of the experiment: which dense model, at which size, trained how long, on which budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dynavit.commands.comparisons import compare_methods
from dynavit.config import LossConfig, OptimizerConfig
from dynavit.evaluation.linear_head import fit_linear_head, set_linear_head
from dynavit.models import prune
from studies.default_method.candidates import CANDIDATES
from studies.default_method.experiment import DENSE, Cell, Problem
from studies.default_method.finetune import Recipe, answers
from studies.default_method.images import HELD_OUT, Photographs
from studies.default_method.student import ARCHITECTURE, SHAPE, train_student
from studies.default_method.teacher import SIZE, Views

FREE_BUDGETS = (0.9, 0.7, 0.5, 0.35)
FREE_SIZE = 168  # pixels; 144 patches
TEACHER = "vit_small_patch14_dinov2"
STUDENT = Path(__file__).parent / "student.safetensors"


@dataclass(frozen=True)
class Sources:
    """What is not in the repository.

    Attributes:
        photographs: folder with ``train/CLASS`` and ``val/CLASS``.
        weights: of the ViT-S/14, a safetensors file.
        folder: for what is made of them.
        device: where the ViT-S/14 runs.
    """

    photographs: Path
    weights: Path
    folder: Path
    device: str = "cpu"


@dataclass(frozen=True)
class Part:
    """Trainings that are compared with each other.

    Attributes:
        name: of its folder.
        make: makes what is not there yet and takes long, before several processes read it.
        load: reads the problem from that, for a split of the images.
        recipe: of every training.
        names: candidates.
        budgets: that they are trained at.
        evaluated: that they are evaluated at.
        size: pixels of the images.
        dense: pixels of dense rows, smaller images among them.
    """

    name: str
    make: Callable[[Sources], object]
    load: Callable[[Sources, str], Problem]
    recipe: Recipe
    names: Sequence[str]
    budgets: Sequence[float]
    evaluated: Sequence[float]
    size: int
    dense: Sequence[int]

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Return the cells, seed by seed, so that a table is whole as early as can be."""
        cells = []
        for seed in seeds:
            cells += [Cell(DENSE, 1.0, pixels, seed) for pixels in self.dense]
            cells += [Cell(name, budget, self.size, seed) for budget in self.budgets for name in self.names]
        return cells


_LOSS = LossConfig(logit_distillation_weight=0.5, token_distillation_weight=0.5)
_RATES = OptimizerConfig(lr=1e-3, backbone_lr_scale=0.2)


def load_small(sources: Sources, split: str) -> Problem:
    """Return the small ViT, which :func:`make_student` wrote, and images of its size."""
    photographs = Photographs.of(sources.photographs)
    labels = torch.tensor(photographs.labels("train"))
    views = small_views(sources)
    student = timm.create_model(ARCHITECTURE, num_classes=len(photographs.classes), **SHAPE)
    student.load_state_dict({name: value.float() for name, value in load_file(STUDENT).items()})
    seen = whole_images(photographs.files[split], SHAPE["img_size"])
    dense = prune(student.eval(), stages=())
    return Problem(dense, views.pixels, labels, seen, torch.tensor(photographs.labels(split)))


def small_views(sources: Sources) -> Views:
    """Return views of the training images, and what the ViT-S/14 says of them."""
    photographs = Photographs.of(sources.photographs)
    path = sources.folder / "views.safetensors"
    make_teacher = partial(large_vit, sources.weights, SIZE, sources.device)
    return Views.made(path, photographs.files["train"], photographs.labels("train"), make_teacher, SHAPE["img_size"])


def make_student(sources: Sources, seed: int = 0) -> None:
    """Train the small ViT, and write it where :func:`load_small` finds it, in half precision."""
    photographs = Photographs.of(sources.photographs)
    views = small_views(sources)
    labels = torch.tensor(photographs.labels("train"))
    student = train_student(views, labels, seed, sources.folder / "student.pt")
    save_file({name: value.half().contiguous() for name, value in student.state_dict().items()}, STUDENT)


def fit_head(sources: Sources, size: int) -> None:
    """Fit a classifier of the ViT-S/14's class token to the whole training images, and write it to :func:`_head`."""
    path = _head(sources, size)
    if path.exists():
        return
    photographs, model = Photographs.of(sources.photographs), large_vit(sources.weights, size, sources.device)
    labels = torch.tensor(photographs.labels("train"))
    features = answers(model, whole_images(photographs.files["train"], size), bf16=True)
    weight, bias = fit_linear_head(features, labels, len(photographs.classes), l2=1e-2)
    save_file({"weight": weight, "bias": bias}, path)


def load_large(sources: Sources, split: str, size: int) -> Problem:
    """Return the ViT-S/14 with the classifier that :func:`fit_head` wrote, and whole images as its one view."""
    photographs, model = Photographs.of(sources.photographs), large_vit(sources.weights, size)
    set_linear_head(model, **load_head(sources, size))
    pixels, seen = (whole_images(photographs.files[name], size) for name in ("train", split))
    labels, seen_labels = (torch.tensor(photographs.labels(name)) for name in ("train", split))
    return Problem(prune(model, stages=()), pixels[None], labels, seen, seen_labels)


def load_head(sources: Sources, size: int) -> dict[str, Tensor]:
    """Return the weight and the bias that :func:`fit_head` wrote."""
    return load_file(_head(sources, size))


def _head(sources: Sources, size: int) -> Path:
    return sources.folder / f"head-{size}.safetensors"


def compare_training_free(sources: Sources, split: str) -> str:
    """Compare the methods that need no training on the ViT-S/14, and return the table."""
    images = Photographs.of(sources.photographs).linked(sources.folder / f"images-{split}", split)
    output = sources.folder / f"training-free-{split}"
    compare_methods(
        sources.weights,
        keep_ratios=FREE_BUDGETS,
        architecture=TEACHER,
        root=images,
        img_size=FREE_SIZE,
        limit=HELD_OUT,
        calibration_images=256,
        rounds=None,
        output=output,
        device=sources.device,
    )
    return (output / "methods.md").read_text()


def large_vit(weights: Path, size: int, device: str = "cpu") -> Any:
    """Return the ViT-S/14 for images of ``size`` pixels, in eval mode, without a classifier."""
    model: Any = timm.create_model(TEACHER, num_classes=0, img_size=size)
    state = {name: value.float() for name, value in load_file(weights).items()}
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return model.to(device).eval()


def whole_images(files: Sequence[Path], size: int) -> Tensor:
    """Return ``(M, 3, size, size)`` uint8."""
    images = [F.pil_to_tensor(Image.open(path).convert("RGB")) for path in files]
    return torch.stack([F.resize(image, [size, size]) for image in images])


_LARGE = Recipe(124, 64, replace(_RATES, backbone_lr_scale=0.03), _LOSS, bf16=True)  # one epoch
_WINNER = "distinctness of tokens, merge, outset"

SMALL = Part(
    "small",
    small_views,
    load_small,
    Recipe(120, 128, _RATES, _LOSS),
    [candidate.name for candidate in CANDIDATES],
    budgets=(0.7, 0.35),
    evaluated=(0.9, 0.7, 0.5, 0.35),
    size=64,
    dense=(64, 56, 48, 40, 32),
)
LARGE = Part(
    "large",
    partial(fit_head, size=112),
    partial(load_large, size=112),
    _LARGE,
    [_WINNER, "distinctness, merge, early", "ToMe", "class attention, squeeze"],
    budgets=(0.5,),
    evaluated=(0.9, 0.7, 0.5, 0.35),
    size=112,
    dense=(112, 98, 84, 70),
)
LARGER = Part(
    "larger",
    partial(fit_head, size=FREE_SIZE),
    partial(load_large, size=FREE_SIZE),
    _LARGE,
    [_WINNER],
    budgets=(0.43,),
    evaluated=(0.5, 0.47, 0.45, 0.43, 0.41, 0.39),
    size=FREE_SIZE,
    dense=(112,),
)
PARTS = {part.name: part for part in (SMALL, LARGE, LARGER)}
