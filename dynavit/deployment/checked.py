"""Files that answer as the model does, or are not written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dynavit.deployment.deployed import Deployed
from dynavit.deployment.formats import FORMATS
from dynavit.deployment.verify import Verification, same_tokens, verify
from dynavit.errors import InputError
from dynavit.files import replacing
from dynavit.models import PrunedViT

BATCH_SIZES = (1, 2, 5)


def write_checked(
    model: PrunedViT,
    path: Path,
    images: Tensor,
    metadata: Mapping[str, Any],
    *,
    kind: str = "onnx",
    batch: int | None = None,
    with_tokens: bool = False,
    answer: str = "logits",
    classifies: bool = True,
    clear: Tensor | None = None,
) -> Verification:
    """Write a model at its present keep ratio, if what runs the file agrees with torch in answers and in tokens.

    Args:
        model: in eval mode, on the CPU.
        path: file to write; an existing one is replaced only by a checked one.
        images: ``(M, 3, H, W)`` to check with.
        metadata: written into the file.
        kind: one of :data:`~dynavit.deployment.formats.FORMATS`.
        batch: the file takes batches of this size alone; of any size if None.
        with_tokens: the file also gives the patches kept by each stage.
        answer: name of the output, where outputs have names.
        classifies: the largest output names a class, and has to stay the largest.
        clear: ``(M,)`` bool, of which images to compare answers; see :func:`~dynavit.deployment.verify.clear_choices`.

    Raises:
        InputError: packages are missing, the model has thresholds, the exported model differs, or the file cannot be
            written.
    """
    if model.thresholds is not None:
        raise InputError(
            "an exported model keeps the same number of tokens in every image, and this one has thresholds: call "
            "model.set_thresholds(None) to export it at its keep ratios."
        )
    sizes = BATCH_SIZES if batch is None else (batch,)
    telling = Deployed(model, with_tokens=True)
    with replacing(path) as partial, TemporaryDirectory() as elsewhere:
        written = Deployed(model, with_tokens)
        write(written, partial, images, metadata, kind, batch, answer)
        exported, plain = FORMATS[kind].open(partial), Deployed(model)
        found = verify(plain, lambda some: exported(some)[0], images, sizes, classifies=classifies, clear=clear)
        if not telling.with_tokens:
            return found
        if not with_tokens:
            twin = Path(elsewhere) / f"tokens{FORMATS[kind].suffix}"
            write(telling, twin, images, metadata, kind, batch, answer)
            exported = FORMATS[kind].open(twin)
        return replace(found, same_tokens=same_tokens(telling, exported, images, sizes))


def write(
    module: Deployed,
    path: Path,
    images: Tensor,
    metadata: Mapping[str, Any],
    kind: str,
    batch: int | None,
    answer: str = "logits",
) -> None:
    """Write a file without checking it; the arguments are those of :func:`write_checked`."""
    # an example of one image would bake a dynamic batch size in
    example = images[torch.arange(batch or 2) % len(images)]
    FORMATS[kind].write(module, example, path, module.names(answer), metadata, batch is None)
