"""The kinds of files that a model can be exported as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dynavit.deployment.onnx import open_onnx, write_onnx
from dynavit.deployment.openvino import open_openvino, write_openvino
from dynavit.deployment.pt2 import open_pt2, write_pt2
from dynavit.deployment.target import Target
from dynavit.errors import InputError

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""Of the blocks; not every format has each."""


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of its name.
        runtime: what runs it here, to check it.
        write: from a :class:`~dynavit.deployment.deployed.Deployed`, an example ``(B, 3, H, W)``, a path, names of
            outputs, metadata, a :class:`~dynavit.deployment.target.Target` and batches of images to calibrate with.
        open: from the path to a function from images to all outputs.
        beside: endings of the files that go with it.
        cannot: precisions that it does not have, and why.
    """

    suffix: str
    runtime: str
    write: Callable[..., None]
    open: Callable[[Path], Callable[[Tensor], list[Tensor]]]
    beside: tuple[str, ...] = ()
    cannot: Mapping[str, str] = field(default_factory=dict)


FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        ".onnx",
        "onnxruntime",
        write_onnx,
        open_onnx,
        cannot={"bf16": "onnxruntime computes nothing in bf16 on a CPU, so that it could not be checked"},
    ),
    "openvino": Format(".xml", "OpenVINO", write_openvino, open_openvino, beside=(".bin",)),
    "pt2": Format(
        ".pt2",
        "torch.export",
        write_pt2,
        open_pt2,
        cannot={"int8": "torch quantises with another package, torchao"},
    ),
}
"""Formats by the name that ``--format`` gives them."""


def require_known(target: Target) -> Format:
    """Return the format of a target.

    Raises:
        InputError: there is none of its name, or no such precision.
    """
    if target.format not in FORMATS:
        raise InputError(f"--format {target.format}: choose from {', '.join(FORMATS)}.")
    if target.precision not in PRECISIONS:
        raise InputError(f"--precision {target.precision}: choose from {', '.join(PRECISIONS)}.")
    return FORMATS[target.format]


def require_target(target: Target) -> Format:
    """Return the format of a target, which has its precision.

    Raises:
        InputError: it does not have it, or :func:`require_known` raises one.
    """
    chosen = require_known(target)
    if target.precision in chosen.cannot:
        others = [precision for precision in PRECISIONS if precision not in chosen.cannot]
        raise InputError(
            f"--format {target.format} --precision {target.precision}: {chosen.cannot[target.precision]}; choose from "
            f"{', '.join(others)}, or another format."
        )
    return chosen


def open_exported(path: str | Path) -> Callable[[Tensor], list[Tensor]]:
    """Open a file that ``dynavit export`` wrote, in the runtime of its kind, on the CPU.

    Args:
        path: ending in ``.onnx``, ``.pt2``, or ``.xml`` with its ``.bin`` beside it.

    Returns:
        A function from images ``(B, 3, H, W)`` fp32 to all outputs, the answer first. It raises
        :class:`~dynavit.InputError` for images of another shape than the file takes.

    Raises:
        InputError: no such file, another ending, a missing package, or nothing that the runtime can read.
    """
    path = Path(path)
    for chosen in FORMATS.values():
        if path.suffix.lower() == chosen.suffix:
            return chosen.open(path)
    raise InputError(f"{path}: the name must end in {', '.join(chosen.suffix for chosen in FORMATS.values())}.")
