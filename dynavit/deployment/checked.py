"""Files that answer as the model does, or are not written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dynavit.deployment.deployed import Deployed
from dynavit.deployment.formats import FORMATS, require_target
from dynavit.deployment.inputs import repeated
from dynavit.deployment.judging import Judge
from dynavit.deployment.target import ONNX, Target
from dynavit.deployment.verify import Verification, clear_choices, require_same_answers, same_tokens, verify
from dynavit.errors import InputError
from dynavit.files import replacing_together
from dynavit.tables import Row


def write_checked(
    plain: Deployed,
    path: Path,
    images: Tensor,
    metadata: Mapping[str, Any],
    target: Target = ONNX,
    *,
    answer: str = "logits",
    classifies: bool = True,
    clear: Tensor | None = None,
    calibration: Sequence[Tensor] = (),
    telling: Deployed | None = None,
    judge: Judge | None = None,
    clock: Callable[[Callable[[Tensor], object]], list[Row]] | None = None,
) -> Verification:
    """Write a model, if what runs the file agrees with torch in answers and in tokens.

    Of fewer bits than fp32 the same numbers are not demanded, but the same tokens are, and what ``judge`` demands.

    Args:
        plain: the model, without tokens.
        path: file to write; an existing one is replaced only by a checked one.
        images: ``(M, 3, H, W)`` to check with.
        metadata: written into the file.
        target: what the file has to be.
        answer: name of the output, where outputs have names.
        classifies: the largest output names a class.
        clear: ``(M,)`` bool, of which images to compare answers; see :func:`~dynavit.deployment.verify.clear_choices`.
        calibration: batches of other images that int8 is fitted to.
        telling: the model with tokens, where it was exported before.
        clock: measures how fast the file is, before it takes its place.
        judge: of the file on labelled data; without one, a file with fewer bits has to give the same answers.

    Raises:
        InputError: packages are missing, the model has thresholds, the exported model differs, or the file cannot be
            written.
    """
    chosen = require_target(target)
    if plain.model.thresholds is not None:
        raise InputError(
            "an exported model keeps the same number of tokens in every image, and this one has thresholds: call "
            "model.set_thresholds(None) to export it at its keep ratios."
        )
    telling = telling or Deployed(plain.model, with_tokens=True)
    with replacing_together(path, *chosen.beside) as partial, TemporaryDirectory() as elsewhere:
        written = telling if target.with_tokens else plain
        write(written, partial, images, metadata, target, answer, calibration)
        exported = chosen.open(partial)
        tolerance = 1e-3 if target.precision == "fp32" else None
        found = verify(
            plain,
            lambda some: exported(some)[0],
            images,
            target.batch_sizes,
            tolerance,
            classifies=classifies,
            clear=clear,
        )
        for number in range(plain.model.num_spectra if plain.takes_present else 0):
            apart = _without(plain, exported, number, images, target, tolerance, classifies)
            found = replace(found, max_difference=max(found.max_difference, apart))
        if judge is not None:
            found = replace(found, judgement=judge(lambda some: exported(some)[0], target.batch))
        elif tolerance is None:
            require_same_answers(found)
        if clock is not None:
            found = replace(found, speeds=tuple(clock(exported)))
        if telling.with_tokens:
            if not target.with_tokens:
                twin = Path(elsewhere) / f"tokens{chosen.suffix}"
                write(telling, twin, images, metadata, target, answer, calibration)
                exported = chosen.open(twin)
            found = replace(found, same_tokens=same_tokens(telling, exported, images, target.batch_sizes))
    return found


def _without(
    plain: Deployed,
    exported: Callable[..., Sequence[Tensor]],
    number: int,
    images: Tensor,
    target: Target,
    tolerance: float | None,
    classifies: bool,
) -> float:
    """Compare answers where a spectrum is missing in every sample; return the largest difference."""
    model = copy(plain.model)
    model.absent = (number,)

    def present(some: Tensor) -> Tensor:
        return torch.arange(model.num_spectra).expand(some.shape[:2]) != number

    return verify(
        lambda some: plain(some, present(some)),
        lambda some: exported(some, present(some))[0],
        images,
        target.batch_sizes,
        tolerance,
        classifies=classifies,
        clear=clear_choices(model, images),
    ).max_difference


def write(
    module: Deployed,
    path: Path,
    images: Tensor,
    metadata: Mapping[str, Any],
    target: Target,
    answer: str = "logits",
    calibration: Sequence[Tensor] = (),
) -> None:
    """Write a file without checking it; the arguments are those of :func:`write_checked`.

    Raises:
        InputError: packages are missing, or the runtime's tools fail.
    """
    # an example of one image would bake a dynamic batch size in
    example = repeated(images, target.batch or 2)
    try:
        FORMATS[target.format].write(module, example, path, module.names(answer), metadata, target, calibration)
    except (InputError, OSError):
        raise
    except Exception as error:  # those of exporters and of what quantises have no common base
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"the model could not be written as {target.format} in {target.precision}: {reason[:200]}"
        ) from error
