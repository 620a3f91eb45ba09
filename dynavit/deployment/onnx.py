"""ONNX files of models at one keep ratio."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dynavit.errors import InputError

OPSET = 20


def write_onnx(
    module: nn.Module, example: Tensor, path: Path, outputs: Sequence[str], metadata: Mapping[str, Any], dynamic: bool
) -> None:
    """Write a module as ONNX: input ``images`` ``(batch, 3, H, W)``; tokens are removed by TopK and Gather.

    Args:
        module: in eval mode, on the CPU.
        example: images ``(B, 3, H, W)``.
        path: file to write.
        outputs: their names.
        metadata: written into the file as JSON strings, one a key.
        dynamic: the batch may have any size; else that of the example alone.

    Raises:
        InputError: packages for ONNX are missing, or the exporter fails.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise InputError(f"{error.name} is missing: run `pip install onnx onnxscript onnxruntime`.") from None

    _export(module, example, path, outputs, dynamic)
    written = onnx.load(path)
    onnx.helper.set_model_props(written, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(written, path)


def open_onnx(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """Return an exported model as a function from images ``(B, 3, H, W)`` to all its outputs, the answer first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]

    return run


@contextmanager
def _errors_only(*names: str) -> Iterator[None]:
    """Let loggers say nothing but errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _export(module: nn.Module, example: Tensor, path: Path, outputs: Sequence[str], dynamic: bool) -> None:
    # torch's fused attention on CPU does not decompose with a mask: hence the plain backend
    shapes = {"images": {0: torch.export.Dim("batch")}} if dynamic else None
    quiet = _errors_only("torch.onnx", "onnxscript")
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings(), quiet, torch.no_grad():
        warnings.simplefilter("ignore")  # about torch's own internals
        try:
            torch.onnx.export(
                module,
                (example,),
                path,
                dynamo=True,
                input_names=["images"],
                output_names=list(outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        except OSError:
            raise
        except Exception as error:  # the exporter's errors have no common base
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"torch {torch.__version__} could not export this model ({reason[:200]}). Export is tested with "
                f"torch 2.14 and onnxscript 0.7: upgrade both."
            ) from error
