"""ONNX graphs in fewer bits: the blocks alone, since a score that rounding moves may decide otherwise.

In fp16 all of the blocks but LayerNorm and softmax; in int8 their linear layers. Scorers, selectors, reducers, the
patch embedding and the head stay fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dynavit.deployment.inputs import PRESENT, inputs_of
from dynavit.deployment.quiet import errors_only
from dynavit.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_BLOCKS = "'model.backbone.blocks."  # of a Deployed, as torch's exporter notes it at each node
_SCOPES = "pkg.torch.onnx.name_scopes"


def to_fp16(model: ModelProto) -> ModelProto:
    """Return a graph whose blocks compute in fp16; see the module's text."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    return convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, "LayerNormalization", "Softmax"],
        node_block_list=[node.name for node in model.graph.node if not _in_block(node)],
    )


def to_int8(model: ModelProto, calibration: Sequence[Tensor]) -> ModelProto:
    """Return a graph whose blocks' linear layers compute in int8; see the module's text.

    Activations have 8 bits without sign, in the range that they have on the images given; weights have one scale for
    each output.

    Args:
        model: in fp32.
        calibration: batches ``(B, 3, H, W)``.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self.batches = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            if batch is None:
                return None
            given = inputs_of(batch, None, PRESENT in names, Path(""))
            return {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}

    model, names = folded(model), [entry.name for entry in model.graph.input]
    layers = list(linear_layers(model))
    if not layers:  # quantize_static would take everything then
        raise InputError("no linear layer of a block was found in the graph, so there is nothing to quantise.")
    # "root", because it warns through logging itself that a graph already made smaller were better
    with TemporaryDirectory() as folder, errors_only("root"):
        path = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            path,
            Reader(),
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=layers,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)


def folded(model: ModelProto) -> ModelProto:
    """Return a graph in which transposed weights are weights; the exporter leaves those that something else reads."""
    import onnx
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in weights:
            order = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), None)
            turned = numpy_helper.to_array(weights[node.input[0]]).transpose(order)
            copy.graph.initializer.append(numpy_helper.from_array(turned.copy(), node.output[0]))
            copy.graph.node.remove(node)
    return copy


def linear_layers(model: ModelProto) -> Iterator[str]:
    """Yield the names of the nodes that are linear layers of blocks: products with weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights and _in_block(node):
            yield node.name


def _in_block(node: NodeProto) -> bool:
    return any(_BLOCKS in entry.value for entry in node.metadata_props if entry.key == _SCOPES)
