"""What is read from and changed in an ONNX graph before a session runs it; this module runs on targets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .runtime import RunError, wants

# Operators that ONNX Runtime computes in integers, and which of their inputs is the weight.
_INTEGER_WEIGHT = {
    "QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3, "ConvInteger": 1, "MatMulInteger": 1, "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
}  # fmt: skip


def integer_weights(path: str) -> list[int]:
    """How many weights each integer convolution and product of an optimized graph has."""
    import onnx

    graph = onnx.load(path).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in _INTEGER_WEIGHT]
    return [sizes.get(node.input[_INTEGER_WEIGHT[node.op_type]], 0) for node in nodes]


def with_taps(content: bytes, taps: tuple[str, ...]) -> tuple[bytes, list[str]]:
    """The model with float intermediate values as outputs, and their names."""
    import onnx

    model = onnx.load_from_string(content)
    inferred = onnx.shape_inference.infer_shapes(model)
    floats = {
        value.name for value in inferred.graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    present = {output.name for output in model.graph.output}
    constants = {name for node in model.graph.node if node.op_type in ("Constant", "Cast") for name in node.output}
    produced = [name for node in model.graph.node for name in node.output if name in floats - present - constants]
    chosen = [name for name in produced if wants(taps, name)]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in chosen)
    return model.SerializeToString(), chosen


def for_tensorrt(content: bytes, precision: str) -> bytes:
    """The model as TensorRT takes quantized ones: signed activations without a zero point, biases in float.

    edgekit's files have uint8 activations, which x86 wants; a zero point of 128 there is one of 0 in int8, so every value
    stays the same (NVIDIA TensorRT developer guide, "Working with Quantized Types": zero points must be 0).

    Args:
        content: The file.
        precision: Of :class:`~.onnxruntime.OnnxRuntimeSettings`.

    Raises:
        RunError: If the file and the precision do not fit, or activations have other zero points.
    """
    import onnx

    model = onnx.load_from_string(content)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    activations = [node for node in pairs if node.input[0] not in constants]
    if precision != "int8":
        if activations:
            raise RunError(
                f"the file is quantized, and TensorRT computes it in integers: precision=int8, not {precision}"
            )
        return content
    if not activations:
        raise RunError(
            "precision=int8 needs a file with quantized activations, and this one has none (TensorRT would choose ranges by "
            "itself); quantize the bundle first: edgekit compress … --step quantize:symmetric=true"
        )
    zero = onnx.numpy_helper.from_array(np.array(0, np.int8), "zero_point_of_tensorrt")
    graph.initializer.append(zero)
    for node in activations:
        if len(node.input) > 2:
            _refuse_zero_point(onnx.numpy_helper.to_array(constants[node.input[2]]), node.input[0])
            node.input[2] = zero.name
    for node in [node for node in pairs if node.op_type == "DequantizeLinear" and node.input[0] in constants]:
        value = onnx.numpy_helper.to_array(constants[node.input[0]])
        if value.dtype == np.int32:
            scale = onnx.numpy_helper.to_array(constants[node.input[1]])
            bias = onnx.numpy_helper.from_array(value.astype(np.float32) * scale, node.output[0])
            graph.initializer.append(bias)
            graph.node.remove(node)
    return bytes(model.SerializeToString())


def _refuse_zero_point(zero_point: Any, name: str) -> None:
    middle = {np.dtype(np.uint8): 128, np.dtype(np.int8): 0}.get(zero_point.dtype)
    if middle is None or zero_point.ndim or int(zero_point) != middle:
        raise RunError(
            f"TensorRT's int8 has no zero points, and {name} has {zero_point} in {zero_point.dtype}; quantize with "
            "--step quantize:symmetric=true and export again"
        )
