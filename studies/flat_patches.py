"""Would a first step that merges flat patches, such as the bars of letterboxed images, cost nothing?

Two tokens that are equal when they enter the first block stay equal, and attention and pooling treat n equal tokens as
one that counts n times: merging them is exact. Patches without content are equal before positions are added, and not
after. So merging them is exact where they carry the same position, which no grid has, and an approximation elsewhere.
How good a one is measured here, beside what else can be done with as few tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from dynavit.evaluation.linear_head import set_linear_head
from dynavit.models import PrunedViT, prune
from dynavit.report.table import Column, markdown
from dynavit.selectors import create_selector
from studies.default_method.finetune import normalise
from studies.default_method.images import Photographs
from studies.default_method.parts import Sources, fit_head, large_vit, load_head

PATCH = 14
MERGED, DROPPED, DEFAULT, RANDOM = "flat patches merged", "flat patches dropped", "default method", "random"


def compare_flat_patches(sources: Sources, size: int = 112, count: int = 500) -> str:
    """Return a table: what the ViT-S/14 makes of letterboxed images whose flat patches are merged into one.

    Args:
        sources: photographs and weights; a classifier is fitted if ``sources.folder`` has none.
        size: pixels of the squares.
        count: of the images held out for choosing, the same ones each time.
    """
    fit_head(sources, size)
    photographs, backbone = Photographs.of(sources.photographs), large_vit(sources.weights, size)
    set_linear_head(backbone, **load_head(sources, size))
    labelled = list(zip(photographs.files["choose"], photographs.labels("choose"), strict=True))
    random.Random(0).shuffle(labelled)
    ways = {
        MERGED: prune(backbone, stages=(0,), selector="fixed", reducer="merge_nearest"),
        DROPPED: prune(backbone, stages=(0,), selector="fixed", reducer="drop"),
        DEFAULT: prune(backbone, stages=(0,)),
        RANDOM: prune(backbone, stages=(0,), selector="random", reducer="drop"),
    }
    shares, rows = [], {name: [0.0, 0.0, 0.0] for name in ("dense", *ways)}
    with torch.inference_mode():
        for path, label in labelled[:count]:
            image = letterboxed(Image.open(path).convert("RGB"), size)
            flat = flat_patches(image, PATCH)
            shares.append(flat.double().mean().item())
            dense = backbone(normalise(image[None]))
            for name, answer in {"dense": dense, **dict(_answers(ways, image, flat))}.items():
                same, cosine = answer.argmax() == dense.argmax(), F.cosine_similarity(answer, dense).item()
                for place, value in enumerate((float(answer.argmax() == label), float(same), cosine)):
                    rows[name][place] += value / count
    columns = [
        Column("way", list(rows), left=True),
        Column("top-1 (%)", [f"{100 * right:.1f}" for right, _, _ in rows.values()]),
        Column("same top-1 (%)", [f"{100 * same:.1f}" for _, same, _ in rows.values()]),
        Column("cosine of logits", [f"{near:.4f}" for _, _, near in rows.values()]),
    ]
    mean = 100 * sum(shares) / len(shares)
    return f"{count} letterboxed images of {size} px, {mean:.1f} % of whose patches are flat.\n\n{markdown(columns)}"


def _answers(ways: dict[str, PrunedViT], image: Tensor, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield what each way says with as many tokens: those that are not flat, and one flat one."""
    keep = ~flat
    if flat.any():
        keep[flat.nonzero()[0]] = True
    for name, model in ways.items():
        if name in (MERGED, DROPPED):
            model.selector = create_selector("fixed", decisions=[keep[None]]).eval()
        yield name, model.eval()(normalise(image[None]), keep_counts=[int(keep.sum())])


def letterboxed(image: Image.Image, size: int) -> Tensor:
    """Return the middle of an image, twice as wide as high, between black bars: ``(3, size, size)`` uint8."""
    middle = ImageOps.fit(image, (size, size // 2), Image.Resampling.BICUBIC)
    return pil_to_tensor(ImageOps.pad(middle, (size, size)))


def flat_patches(image: Tensor, patch: int) -> Tensor:
    """Return for each patch of an image ``(3, S, S)``, row by row, whether its pixels are all alike, ``(N,)`` bool."""
    patches = image.unfold(1, patch, patch).unfold(2, patch, patch).flatten(3)
    return (patches == patches[..., :1]).all(dim=3).all(dim=0).flatten()
