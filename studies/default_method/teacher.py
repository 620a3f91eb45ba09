"""What a large pretrained ViT says about crops of the training images, computed once and kept in a file.

Shapes: V views of each image, M images, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from dynavit.evaluation.linear_head import fit_linear_head
from studies.default_method.finetune import normalise

VIEWS = 5
SIZE = 112  # pixels; 64 patches
FOLDS = 4
_BATCH = 64


@dataclass(frozen=True)
class Views:
    """Crops of images, and what the teacher says about them.

    Attributes:
        pixels: ``(V, M, 3, S, S)`` uint8; the first view is the whole image.
        features: ``(V, M, D)`` fp16, the teacher's.
        logits: ``(V, M, C)`` fp32, by classifiers that were fitted without the image.
    """

    pixels: Tensor
    features: Tensor
    logits: Tensor

    @classmethod
    def made(
        cls, path: Path, files: Sequence[Path], labels: Sequence[int], make_teacher: Callable[[], Any], size: int
    ) -> Views:
        """Read the views from ``path``, or make them: ``size`` pixels, the same crops each time."""
        if not path.exists():
            pixels, features = _look(files, make_teacher(), size)
            logits = cross_fitted(features.float(), torch.tensor(labels))
            part = path.with_suffix(".part")
            save_file({"pixels": pixels, "features": features, "logits": logits}, part)
            part.replace(path)  # a file under its name is whole
        return cls(**load_file(path))


@torch.no_grad()
def _look(files: Sequence[Path], teacher: Any, size: int) -> tuple[Tensor, Tensor]:
    pixels = torch.empty(VIEWS, len(files), 3, size, size, dtype=torch.uint8)
    features = torch.empty(VIEWS, len(files), 2 * teacher.num_features, dtype=torch.float16)
    device = next(teacher.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for start in tqdm(range(0, len(files), _BATCH), desc="teacher", disable=None):
            images = [F.pil_to_tensor(Image.open(path).convert("RGB")) for path in files[start : start + _BATCH]]
            part = slice(start, start + len(images))
            for view in range(VIEWS):
                crops = [_crop(image, view) for image in images]
                pixels[view, part] = torch.stack([F.resize(crop, [size, size]) for crop in crops])
                large = torch.stack([F.resize(crop, [SIZE, SIZE]) for crop in crops])
                with torch.autocast(device.type, torch.bfloat16):
                    tokens = teacher.forward_features(normalise(large.to(device))).float().cpu()
                features[view, part] = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1).half()
    return pixels, features


def _crop(image: Tensor, view: int) -> Tensor:
    if view == 0:
        return image
    top, left, height, width = v2.RandomResizedCrop(1, scale=(0.25, 1.0)).make_params([image]).values()
    return F.crop(image, top, left, height, width)


def cross_fitted(features: Tensor, labels: Tensor) -> Tensor:
    """Return logits of every view by a classifier of the other images, whose labels it has not seen."""
    num_classes = int(labels.max()) + 1
    fold = torch.arange(len(labels)) % FOLDS
    logits = torch.empty(*features.shape[:2], num_classes)
    for number in range(FOLDS):
        seen = fold != number
        weight, bias = fit_linear_head(features[:2, seen].flatten(0, 1), labels[seen].repeat(2), num_classes, l2=1e-2)
        logits[:, ~seen] = features[:, ~seen] @ weight.T + bias
    return logits
