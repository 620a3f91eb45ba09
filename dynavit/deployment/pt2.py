"""PT2: an ``ExportedProgram`` of torch, for AOTInductor, ExecuTorch and other tools of torch's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynavit.errors import InputError

METADATA = "dynavit.json"
"""The file within that holds preprocessing, class names and so on: ``torch.export.load(..., extra_files=...)``."""


def write_pt2(
    module: nn.Module, example: Tensor, path: Path, outputs: Sequence[str], metadata: Mapping[str, Any], dynamic: bool
) -> None:
    """Write a module as ``torch.export.save`` does; what it returns has no names.

    Args:
        module, example, path, outputs, metadata, dynamic: as for :func:`~dynavit.deployment.onnx.write_onnx`.

    Raises:
        InputError: torch cannot export it.
    """
    del outputs
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    try:
        with torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the exporter's errors have no common base
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"torch {torch.__version__} could not export this model ({reason[:200]}). Export is tested with torch 2.14."
        ) from error
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(dict(metadata))})


def open_pt2(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """Return a program that :func:`write_pt2` wrote as a function from images to all its outputs."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(images: Tensor) -> list[Tensor]:
        found = module(images)
        return [found] if isinstance(found, Tensor) else list(found)

    return run
