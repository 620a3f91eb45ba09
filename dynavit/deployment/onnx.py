"""ONNX files of models at one keep ratio."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dynavit.deployment.deployed import Deployed
from dynavit.deployment.inputs import PRESENT, inputs_of, require_file, require_images
from dynavit.deployment.onnx_precision import to_fp16, to_int8
from dynavit.deployment.quiet import errors_only
from dynavit.deployment.target import Target
from dynavit.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20

_graphs: WeakKeyDictionary[Deployed, dict[tuple[tuple[str, ...], int | None], ModelProto]] = WeakKeyDictionary()


def write_onnx(
    module: Deployed,
    example: Tensor,
    path: Path,
    outputs: Sequence[str],
    metadata: Mapping[str, Any],
    target: Target,
    calibration: Sequence[Tensor] = (),
) -> None:
    """Write a module as ONNX: input ``images`` ``(batch, 3, H, W)``; tokens are removed by TopK and Gather.

    Of M spectra ``images`` is ``(batch, M, 3, H, W)``, and a second input ``present`` ``(batch, M)`` bool.

    Args:
        module: in eval mode, on the CPU.
        example: images ``(B, 3, H, W)``.
        path: file to write.
        outputs: their names.
        metadata: written into the file as JSON strings, one a key.
        target: its batch size and precision; see :mod:`~dynavit.deployment.onnx_precision`.
        calibration: batches of images, for int8.

    Raises:
        InputError: packages for ONNX are missing, or the exporter fails.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise InputError(f"{error.name} is missing: run `pip install onnx onnxscript onnxruntime`.") from None

    written = export_graph(module, example, outputs, target.batch is None)
    if target.precision == "fp16":
        written = to_fp16(written)
    elif target.precision == "int8":
        written = to_int8(written, calibration)
    onnx.helper.set_model_props(written, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(written, path)


def export_graph(module: Deployed, example: Tensor, outputs: Sequence[str], dynamic: bool) -> ModelProto:
    """Return a module in fp32 as a graph of its own; the arguments are those of :func:`write_onnx`.

    It is exported once for all files that are made of it, as long as the module is there.
    """
    import onnx

    graphs = _graphs.setdefault(module, {})
    key = (tuple(outputs), None if dynamic else len(example))
    if key not in graphs:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "graph.onnx"
            _export(module, example, path, outputs, dynamic)
            graphs[key] = onnx.load(path)
    graph = onnx.ModelProto()
    graph.CopyFrom(graphs[key])
    return graph


def open_onnx(path: Path) -> Callable[..., list[Tensor]]:
    """Return an exported model as a function from images ``(B, 3, H, W)`` to all its outputs, the answer first.

    Of several spectra from samples and, if it is not all of them, which there are; see
    :func:`~dynavit.deployment.inputs.inputs_of`.

    Raises:
        InputError: onnxruntime is missing, or cannot read the file.
    """
    require_file(path)
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{error.name} is missing: run `pip install onnxruntime`.") from None

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # of what it does to the graph it warns, too
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise InputError(f"{path} is no model that onnxruntime can run: {str(error).splitlines()[0]}") from None
    names, sizes = [entry.name for entry in session.get_inputs()], session.get_inputs()[0].shape

    def run(images: Tensor, present: Tensor | None = None) -> list[Tensor]:
        require_images(images, sizes, path)
        given = inputs_of(images, present, PRESENT in names, path)
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, given, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return run


def _export(module: Deployed, example: Tensor, path: Path, outputs: Sequence[str], dynamic: bool) -> None:
    # torch's fused attention on CPU does not decompose with a mask: hence the plain backend
    inputs, batch = module.inputs(example), torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in inputs} if dynamic else None
    quiet = errors_only("torch.onnx", "onnxscript")
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings(), quiet, torch.no_grad():
        warnings.simplefilter("ignore")  # about torch's own internals
        try:
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                path,
                dynamo=True,
                input_names=[*inputs],
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
