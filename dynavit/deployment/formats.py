"""The kinds of files that a model can be exported as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dynavit.deployment.onnx import open_onnx, write_onnx
from dynavit.deployment.pt2 import open_pt2, write_pt2


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of its name.
        runtime: what runs it here, to check it.
        write: from a module, an example ``(B, 3, H, W)``, a path, names of outputs, metadata, and whether the batch
            may have any size.
        open: from the path to a function from images to all outputs.
    """

    suffix: str
    runtime: str
    write: Callable[..., None]
    open: Callable[[Path], Callable[[Tensor], list[Tensor]]]


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", "onnxruntime", write_onnx, open_onnx),
    "pt2": Format(".pt2", "torch.export", write_pt2, open_pt2),
}
