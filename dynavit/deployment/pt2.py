"""PT2: an ``ExportedProgram`` of torch, for AOTInductor, ExecuTorch and other tools of torch's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynavit.deployment.deployed import Deployed
from dynavit.deployment.inputs import inputs_of, require_file, require_images
from dynavit.deployment.target import Target
from dynavit.errors import InputError

METADATA = "dynavit.json"
"""The file within that holds preprocessing, class names and so on: ``torch.export.load(..., extra_files=...)``."""


_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def write_pt2(
    module: Deployed,
    example: Tensor,
    path: Path,
    outputs: Sequence[str],
    metadata: Mapping[str, Any],
    target: Target,
    calibration: Sequence[Tensor] = (),
) -> None:
    """Write a module as ``torch.export.save`` does; what it returns has no names.

    In fp16 and bf16 the whole model is of that precision, scorers too; torch's kernels take the statistics of
    LayerNorm and the softmax of attention in fp32 themselves.

    Args:
        module, example, path, outputs, metadata, target: as for :func:`~dynavit.deployment.onnx.write_onnx`.
        calibration: of no use here.

    Raises:
        InputError: torch cannot export it.
    """
    del outputs, calibration
    inputs, batch = module.inputs(example), torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in inputs) if target.batch is None else None
    program_of = module if target.precision == "fp32" else _Low(module, _DTYPES[target.precision])
    try:
        with torch.no_grad():
            program = torch.export.export(program_of, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the exporter's errors have no common base
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"torch {torch.__version__} could not export this model ({reason[:200]}). Export is tested with torch 2.14."
        ) from error
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(dict(metadata))})


def open_pt2(path: Path) -> Callable[..., list[Tensor]]:
    """Return a program that :func:`write_pt2` wrote as a function from images to all its outputs.

    Of several spectra as in :func:`~dynavit.deployment.onnx.open_onnx`.

    Raises:
        InputError: torch cannot read the file.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            program = torch.export.load(file)
    except Exception as error:  # torch's errors have no common base
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{path} is no program that torch {torch.__version__} can load: {reason[:200]}") from None
    module = program.module()
    name, *others = program.graph_signature.user_inputs
    (given,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
    sizes = tuple(given.meta["val"].shape)

    def run(images: Tensor, present: Tensor | None = None) -> list[Tensor]:
        require_images(images, sizes, path)
        with torch.inference_mode():
            found = module(*inputs_of(images, present, bool(others), path))
        return [found] if isinstance(found, Tensor) else list(found)

    return run


class _Low(nn.Module):
    """A copy of a module that computes in another precision, with images and answers in fp32."""

    def __init__(self, module: Deployed, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = deepcopy(module).to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor, present: Tensor | None = None) -> Any:
        found = self.module(images.to(self.dtype), present)
        return found.float() if isinstance(found, Tensor) else (found[0].float(), *found[1:])
