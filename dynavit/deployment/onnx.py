"""ONNX: a static keep ratio, a dynamic batch, checked before it is called a success."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dynavit.deployment.verify import Verification, verify
from dynavit.errors import InputError
from dynavit.files import replacing

OPSET = 20


def export_onnx(
    model: nn.Module,
    path: Path,
    images: Tensor,
    metadata: Mapping[str, Any],
    batch_sizes: tuple[int, ...] = (1, 2, 5),
    output: str = "logits",
    classifies: bool = True,
    clear: Tensor | None = None,
) -> Verification:
    """Write a model at its present keep ratio as ONNX, if onnxruntime agrees with torch.

    Input ``images`` ``(batch, 3, H, W)``, one output ``(batch, C)``; the batch is dynamic. Tokens are
    removed by TopK and Gather.

    Args:
        model: in eval mode, on the CPU.
        path: file to write; an existing one is replaced only by a checked one.
        images: ``(M, 3, H, W)`` to check with.
        metadata: written into the file as JSON strings, one a key.
        batch_sizes: at which the two are compared.
        output: name of the output.
        classifies: the largest output names a class, and has to stay the largest.
        clear: ``(M,)`` bool, which images to compare; see :func:`~dynavit.deployment.verify.clear_choices`.

    Raises:
        InputError: packages for ONNX are missing, the model has thresholds, the exported model differs, or the file
            cannot be written.
    """
    if getattr(model, "thresholds", None) is not None:
        raise InputError(
            "an exported model keeps the same number of tokens in every image, and this one has thresholds: call "
            "model.set_thresholds(None) to export it at its keep ratios."
        )
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise InputError(f"{error.name} is missing: run `pip install onnx onnxscript onnxruntime`.") from None

    with replacing(path) as partial:
        _export(model, images[torch.arange(2) % len(images)], partial, output)
        written = onnx.load(partial)
        onnx.helper.set_model_props(written, {key: json.dumps(value) for key, value in metadata.items()})
        onnx.save(written, partial)
        return verify(model, open_onnx(partial, output), images, batch_sizes, classifies=classifies, clear=clear)


def open_onnx(path: Path, output: str = "logits") -> Callable[[Tensor], Tensor]:
    """Return an exported model as a function from images ``(B, 3, H, W)`` to its output ``(B, C)``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([output], {"images": images.numpy()})[0])

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


def _export(model: nn.Module, example: Tensor, path: Path, output: str) -> None:
    # an example of one image would bake the batch size in, and torch's fused attention on CPU does
    # not decompose with a mask: hence two images, and the plain backend
    batch = torch.export.Dim("batch")
    quiet = _errors_only("torch.onnx", "onnxscript")
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings(), quiet, torch.no_grad():
        warnings.simplefilter("ignore")  # about torch's own internals
        try:
            torch.onnx.export(
                model,
                (example,),
                path,
                dynamo=True,
                input_names=["images"],
                output_names=[output],
                dynamic_shapes={"images": {0: batch}},
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
