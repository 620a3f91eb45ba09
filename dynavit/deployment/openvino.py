"""OpenVINO's files of models at one keep ratio: ``FILE.xml``, the graph, and ``FILE.bin``, its weights."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dynavit.deployment.deployed import Deployed
from dynavit.deployment.inputs import inputs_of, require_file, require_images
from dynavit.deployment.onnx import export_graph
from dynavit.deployment.onnx_precision import folded, linear_layers
from dynavit.deployment.quiet import errors_only
from dynavit.deployment.target import Target
from dynavit.errors import InputError

_ABOUT = "dynavit"  # where metadata stand in rt_info


def write_openvino(
    module: Deployed,
    example: Tensor,
    path: Path,
    outputs: Sequence[str],
    metadata: Mapping[str, Any],
    target: Target,
    calibration: Sequence[Tensor] = (),
) -> None:
    """Write a module, by way of ONNX, as OpenVINO's intermediate representation.

    In fp16 its weights have 16 bits; a CPU computes with them in fp32. In bf16 the file is that of fp32 and says that
    it is to be computed in bf16, which OpenVINO is told when a file is opened. In int8 the linear layers of the blocks
    are quantised by nncf; all else stays fp32.

    Args:
        module, example, path, outputs, metadata, target: as for :func:`~dynavit.deployment.onnx.write_onnx`; metadata
            stand in ``rt_info`` below ``dynavit``.
        calibration: batches of images, for int8.

    Raises:
        InputError: packages for OpenVINO are missing, or the exporter fails.
    """
    openvino = _import_openvino()
    try:
        import onnx
    except ImportError:
        raise InputError("onnx is missing: run `pip install onnx onnxscript onnxruntime`.") from None

    graph = export_graph(module, example, outputs, target.batch is None)
    if target.precision == "int8":
        graph = folded(graph)
    with TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        onnx.save(graph, source)
        model = openvino.Core().read_model(source)
        if target.precision == "int8":
            model = _to_int8(model, set(linear_layers(graph)), calibration)
    for key, value in {**metadata, "precision": target.precision}.items():
        model.set_rt_info(json.dumps(value), [_ABOUT, key])
    openvino.save_model(model, path, compress_to_fp16=target.precision == "fp16")


def open_openvino(path: Path) -> Callable[..., list[Tensor]]:
    """Return a model that :func:`write_openvino` wrote as a function from images to all its outputs, the answer first.

    Of several spectra as in :func:`~dynavit.deployment.onnx.open_onnx`.

    Raises:
        InputError: OpenVINO is missing, or cannot read the file.
    """
    require_file(path, ".bin")
    openvino = _import_openvino()
    core = openvino.Core()
    try:
        model = core.read_model(path)
        precision = json.loads(model.get_rt_info([_ABOUT, "precision"]).value)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{path} was not written by `dynavit export`, or is damaged: {reason[:200]}") from None
    settings = {
        # by itself OpenVINO computes in bf16 on a CPU that can
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)
    sizes = [size.get_length() if size.is_static else None for size in model.inputs[0].partial_shape]

    takes_present = len(model.inputs) > 1

    def run(images: Tensor, present: Tensor | None = None) -> list[Tensor]:
        require_images(images, sizes, path)
        given = inputs_of(images, present, takes_present, path)
        found = compiled([tensor.detach().cpu().numpy() for tensor in given])
        return [torch.from_numpy(found[output].copy()) for output in compiled.outputs]  # it uses their memory again

    return run


def _to_int8(model: Any, quantised: set[str], calibration: Sequence[Tensor]) -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # it else reports to its makers what it is used for
    try:
        import nncf
    except ImportError as error:
        raise InputError(f"{error.name} is missing: run `pip install nncf`.") from None

    takes_present = len(model.inputs) > 1
    given = [tuple(part.numpy() for part in inputs_of(batch, None, takes_present, Path(""))) for batch in calibration]
    others = [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_friendly_name() not in quantised and node.get_type_name() not in ("Constant", "Parameter", "Result")
    ]
    # it looks for CUDA, and shows bars of progress
    with errors_only("nncf", "torch.utils.cpp_extension"), redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset(given if takes_present else [images for (images,) in given]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=others, validate=False),
        )


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise InputError(f"{error.name} is missing: run `pip install openvino nncf onnx onnxscript`.") from None
    return openvino
