"""ONNX: through torch.onnx (dynamo), quantized programs as Q/DQ that ONNX Runtime fuses into integer operators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from edgekit.compress.quantize.scheme import FLOAT_BITS
from edgekit.errors import ExportError, UnsupportedOperatorError
from edgekit.export.exporter import Exporter, Lowered
from edgekit.export.lowering import (
    HALVES,
    activation_bits,
    deployed,
    narrow_weights,
    pack_bits,
    refuse_other_activations,
    round_weights,
)
from edgekit.files import atomic_file
from edgekit.program import export_program, layer_name, quiet

if TYPE_CHECKING:
    import onnx
    from torch.fx import GraphModule

    from edgekit.bundle import Bundle

# onnx 1.23 writes IR version 14 by default, ONNX Runtime 1.31 reads 13 at most; 10 is read since 1.18 (2024), so by phones.
IR_VERSION = 10
OPSET = 20
# Since these there are tensors of so many bits.
OPSETS = {4: 21, 2: 25}
# MatMulNBits takes the columns of a weight in blocks of a power of two, 16 at least.
BLOCK = 32
# Distinct values that one byte can tell apart.
CODES = 256
# What the description of a sparse weight takes, in bytes.
SPARSE_OVERHEAD = 1500
INPUT, OUTPUT = "input", "output"
INT4_MAX = 7
# torch.onnx writes where each node came from into the file: as large as a small network's weights.
_INT32 = np.iinfo(np.int32)


class OnnxExporter(Exporter):
    """Writes ``.onnx`` with a free batch dimension, proved in ONNX Runtime."""

    name: ClassVar[str] = "onnx"
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float16", "bfloat16", "int8")
    activations: ClassVar[tuple[int, ...]] = (8, FLOAT_BITS)
    runtime: ClassVar[str] = "onnxruntime"
    suffix: ClassVar[str] = ".onnx"
    input_layout: ClassVar[str] = "NCHW"

    def lower(self, bundle: Bundle, precision: str) -> Lowered:
        module = deployed(bundle)
        notes: tuple[str, ...] = ()
        if precision in HALVES:
            round_weights(module, precision)
            notes = (f"weights are stored in {precision}; ONNX Runtime's CPU provider computes in float32",)
        if precision == "float32" and bundle.weights == "sparse":
            notes = ("zeros are stored as a bit each; ONNX Runtime spreads the weights out when it loads: no faster",)
        if precision == "float32" and bundle.weights == "codes":
            notes = ("shared weights are stored as byte codes and a table; ONNX Runtime looks them up when it loads",)
        if precision == "int8":
            refuse_other_activations(module, "ONNX Runtime", self.activations)
        if precision == "int8" and activation_bits(module) == FLOAT_BITS:
            notes = ("weights alone are integers: ONNX Runtime computes in float32, no faster than a float file",)
        elif precision == "int8":
            notes = ("activations are written as uint8 (zero point + 128): the same values, faster on x86",)
        if precision == "int8" and narrow_weights(module):
            notes += (
                "weights of up to 4 bits are stored as int4, of 2 bits as int2; ONNX Runtime unpacks them when it loads",
            )
        return Lowered(module, precision, bundle.input_shape, notes)

    def write(self, lowered: Lowered, path: Path, metadata: dict[str, Any]) -> list[Path]:
        model = to_onnx(lowered.module, lowered.input_shape)
        if lowered.precision == "int8":
            activations_to_uint8(model)
            biases_to_int32(model)
            if activation_bits(lowered.module) == FLOAT_BITS:
                linear_to_matmul_nbits(model)
                dequantize_to_product(model)
            weights_to_few_bits(model)
            weights_to_sparse(model)
        if lowered.precision in HALVES:
            weights_to_half(model, lowered.precision)
        if lowered.precision == "float32":
            weights_to_codes(model)
            weights_to_sparse(model)
        model.metadata_props.add(key="edgekit", value=json.dumps(metadata))
        save(model, path)
        return [path]


def to_onnx(module: GraphModule, input_shape: tuple[int, ...], *, batch: int | None = None) -> onnx.ModelProto:
    """A program as an ONNX model.

    Args:
        module: The program in ATen training IR.
        input_shape: Shape of one input without the batch.
        batch: A fixed batch, or None for a free one.

    Raises:
        UnsupportedOperatorError: If ONNX has no form of an operator; it is named with its layer.
    """

    example = torch.zeros(batch or 2, *input_shape)
    with quiet(), torch.no_grad():
        if batch is None:
            program = export_program(module, input_shape, origin="the lowered program")
        else:
            program = torch.export.export(module, (example,))
        try:
            exported = torch.onnx.export(
                program, (example,), dynamo=True, verbose=False, opset_version=OPSET, input_names=[INPUT],
                output_names=[OUTPUT], external_data=False,
            )  # fmt: skip
        except Exception as error:
            raise _unsupported(module, error) from error
    if exported is None:
        raise ExportError("torch.onnx.export gave no model")
    model: onnx.ModelProto = exported.model_proto
    model.ir_version = IR_VERSION
    model.producer_name = "edgekit"
    model.doc_string = ""
    _strip_origins(model)
    return model


def _unsupported(module: GraphModule, error: Exception) -> ExportError:
    """Names the operator that torch.onnx has no translation for."""
    text = str(error.__cause__ or error)
    for node in module.graph.nodes:
        if node.op == "call_function" and str(node.target) in text:
            return UnsupportedOperatorError(
                f"ONNX export refuses the operator {node.target} at {layer_name(node)} (node {node.name})",
                "Write that part of the model with operators that ONNX has, or leave ONNX out of --to.",
            )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return ExportError(f"torch.onnx.export failed: {first}")


def _strip_origins(model: onnx.ModelProto) -> None:
    del model.functions[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    del model.metadata_props[:]


def save(model: onnx.ModelProto, path: Path) -> None:
    """Checks a model and writes it in one piece."""
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the ONNX model is not valid: {error}") from error
    with atomic_file(path) as partial:
        partial.write_bytes(model.SerializeToString())


def activations_to_uint8(model: onnx.ModelProto) -> None:
    """Moves int8 activations to uint8: the zero point and every value grow by 128, so nothing else changes.

    ONNX Runtime's x86 kernels (VPMADDUBSW, VPDPBUSD) multiply unsigned activations with signed weights; signed
    activations make them nearly as slow as float.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    produced = {name for node in model.graph.node for name in node.output} | {i.name for i in model.graph.input}
    moved: dict[int, str] = {}
    for node in model.graph.node:
        if (
            node.op_type not in ("QuantizeLinear", "DequantizeLinear")
            or len(node.input) < 3
            or node.input[0] not in produced
        ):
            continue
        zero_point = numpy_helper.to_array(constants[node.input[2]])
        if zero_point.dtype != np.int8 or zero_point.ndim:
            continue
        value = int(zero_point) + 128
        if value not in moved:
            moved[value] = f"zero_point_uint8_{value}"
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.uint8), moved[value]))
        node.input[2] = moved[value]
    _drop_unused(model)


def biases_to_int32(model: onnx.ModelProto) -> None:
    """Stores each bias as int32 with scale s_x s_w: the form that integer kernels add before they rescale.

    A bias that does not fit (its scale is tiny against it) stays in float.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}
    for node in list(model.graph.node):
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[2] not in constants:
            continue
        x, w = producer.get(node.input[0]), producer.get(node.input[1])
        if x is None or w is None or x.op_type != "DequantizeLinear" or w.op_type != "DequantizeLinear":
            continue
        name = node.input[2]
        bias = numpy_helper.to_array(constants[name]).astype(np.float64)
        # The product in float32, as runtimes form it.
        scale = numpy_helper.to_array(constants[x.input[1]]) * numpy_helper.to_array(constants[w.input[1]])
        rounded = np.round(bias / scale.astype(np.float64))
        if bias.dtype.kind != "f" or np.abs(rounded).max(initial=0) > _INT32.max:
            continue
        zeros = np.zeros(scale.shape, np.int32)
        for suffix, array in (
            ("_int32", rounded.astype(np.int32)),
            ("_scale", scale.astype(np.float32)),
            ("_zero", zeros),
        ):
            model.graph.initializer.append(numpy_helper.from_array(array, name + suffix))
        inputs = [f"{name}_int32", f"{name}_scale", f"{name}_zero"]
        dequantize = helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], axis=0)
        model.graph.node.insert(list(model.graph.node).index(node), dequantize)
        node.input[2] = f"{name}_dequantized"
    _drop_unused(model)


def linear_to_matmul_nbits(model: onnx.ModelProto) -> int:
    """Turns linear layers with int4 weights and float inputs into ONNX Runtime's MatMulNBits; returns how many.

    It keeps the weights packed in memory, too. Only where the columns come in whole blocks; all blocks of a row have the
    scale of its channel.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}
    made = 0
    for node in list(model.graph.node):
        weight = producer.get(node.input[1]) if node.op_type == "Gemm" else None
        if weight is None or weight.op_type != "DequantizeLinear" or weight.input[0] not in constants:
            continue
        values = numpy_helper.to_array(constants[weight.input[0]])
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0}.items() >= settings.items()
        rows, columns = values.shape
        if (
            not (plain and settings.get("transB"))
            or columns % BLOCK
            or np.abs(values.astype(np.int16)).max(initial=0) > INT4_MAX
        ):
            continue
        packed = pack_bits(values + np.int8(8), 4).reshape(rows, columns // BLOCK, BLOCK // 2)
        scales = numpy_helper.to_array(constants[weight.input[1]]).reshape(rows, 1)
        name = weight.input[0]
        model.graph.initializer.append(numpy_helper.from_array(packed, f"{name}_packed"))
        model.graph.initializer.append(
            numpy_helper.from_array(np.repeat(scales, columns // BLOCK, 1).astype(np.float32), f"{name}_block_scales")
        )
        inputs = [node.input[0], f"{name}_packed", f"{name}_block_scales", "", "", *node.input[2:]]
        replacement = helper.make_node(
            "MatMulNBits", inputs, list(node.output), name=node.name, domain="com.microsoft", K=columns, N=rows, bits=4,
            block_size=BLOCK,
        )  # fmt: skip
        position = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        model.graph.node.insert(position, replacement)
        model.graph.node.remove(weight)
        made += 1
    if made:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    _drop_unused(model)
    return made


def dequantize_to_product(model: onnx.ModelProto) -> None:
    """Writes the dequantization of constants as a cast and a product: these ONNX Runtime folds when it loads the file.

    It keeps DequantizeLinear for its integer kernels, and would unpack such a weight anew in each run.
    """
    from onnx import TensorProto, helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        rank = len(constants[node.input[0]].dims)
        scale = numpy_helper.to_array(constants[node.input[1]])
        spread, wide = f"{node.output[0]}_scale", f"{node.output[0]}_float"
        model.graph.initializer.append(numpy_helper.from_array(scale.reshape(-1, *[1] * (rank - 1)), spread))
        position = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        model.graph.node.insert(position, helper.make_node("Mul", [wide, spread], list(node.output)))
        model.graph.node.insert(position, helper.make_node("Cast", [node.input[0]], [wide], to=TensorProto.FLOAT))
    _drop_unused(model)


def weights_to_few_bits(model: onnx.ModelProto) -> int:
    """Stores int8 weights whose values fit into 4 or 2 bits as such with a cast behind them; returns how many.

    Four values that are not those of two bits, -3, -1, 1 and 3, are stored as their places in a table. ONNX Runtime folds
    casts and look-ups when it loads the file, so its int8 kernels compute as with the unpacked weights.
    """
    from onnx import TensorProto, helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = [n for n in model.graph.node if n.op_type in ("DequantizeLinear", "Cast") and n.input[0] in constants]
    casts, opset = [], 0
    for name in dict.fromkeys(node.input[0] for node in readers):
        values = numpy_helper.to_array(constants[name])
        largest = np.abs(values.astype(np.int16)).max(initial=0) if values.dtype == np.int8 else INT4_MAX + 1
        if values.ndim < 2 or largest > INT4_MAX:
            continue
        levels = np.unique(values)
        bits, kind = (2, TensorProto.INT2) if largest <= 1 or len(levels) <= 4 else (4, TensorProto.INT4)
        # From 0 to 3 to whoever reads two bits without a sign, from -2 to 1 with it: the same places, counted from the end.
        stored = np.searchsorted(levels, values) if bits == 2 and largest > 1 else values
        packed = helper.make_tensor(
            f"{name}_int{bits}", kind, values.shape, pack_bits(stored, bits).tobytes(), raw=True
        )
        opset = max(opset, OPSETS[bits])
        model.graph.initializer.remove(constants[name])
        model.graph.initializer.append(packed)
        if stored is values:
            casts.append(helper.make_node("Cast", [packed.name], [name], to=TensorProto.INT8))
            continue
        table = np.concatenate([levels, np.repeat(levels[-1:], 4 - len(levels))])
        model.graph.initializer.append(numpy_helper.from_array(table, f"{name}_levels"))
        casts.append(helper.make_node("Cast", [packed.name], [f"{name}_places"], to=TensorProto.INT32))
        casts.append(helper.make_node("Gather", [f"{name}_levels", f"{name}_places"], [name]))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    if casts:
        for used in model.opset_import:
            used.version = max(used.version, opset) if used.domain in ("", "ai.onnx") else used.version
    return sum(cast.op_type == "Cast" for cast in casts)


def weights_to_codes(model: onnx.ModelProto) -> int:
    """Stores float32 weights of few distinct values as uint8 codes and a table, exactly; returns how many.

    ONNX Runtime folds the lookup when it loads the file. Only where it makes the file smaller.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for tensor in list(model.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        table, codes = np.unique(values, return_inverse=True)
        if len(table) > CODES or 4 * len(table) + values.size + 300 > 4 * values.size:
            continue
        names = [f"{tensor.name}_{part}" for part in ("codes", "table", "wide")]
        model.graph.initializer.append(numpy_helper.from_array(codes.reshape(values.shape).astype(np.uint8), names[0]))
        model.graph.initializer.append(numpy_helper.from_array(table, names[1]))
        nodes.append(helper.make_node("Cast", [names[0]], [names[2]], to=TensorProto.INT32))
        nodes.append(helper.make_node("Gather", [names[1], names[2]], [tensor.name]))
        model.graph.initializer.remove(tensor)
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    return len(nodes) // 2


def weights_to_sparse(model: onnx.ModelProto) -> int:
    """Stores weights with many zeros as a bit for each and the values that are left, exactly; returns how many.

    The nodes that spread them out (the running count of ones is the place of a value) are folded by ONNX Runtime when it
    loads the file. Only where it makes the file smaller.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    for tensor in list(model.graph.initializer):
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.INT8) or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        ones = values.reshape(-1) != 0
        left = np.append(np.zeros(1, values.dtype), values.reshape(-1)[ones])
        packed = np.packbits(ones, bitorder="little")
        if left.nbytes + packed.nbytes + SPARSE_OVERHEAD > values.nbytes:
            continue
        name = tensor.name
        constants = {
            "values": left, "bits": packed[:, None], "shifts": np.arange(8, dtype=np.uint8), "one": np.array(1, np.uint8),
            "flat": np.array([-1]), "axis": np.array(0), "start": np.array([0]), "end": np.array([values.size]),
            "shape": np.array(values.shape),
        }  # fmt: skip
        model.graph.initializer.remove(tensor)
        model.graph.initializer.extend(numpy_helper.from_array(a, f"{name}_{part}") for part, a in constants.items())
        # From a byte to its bits, to 0 or the number of the value, to the value.
        for kind, inputs, output, settings in (
            ("BitShift", ("bits", "shifts"), "shifted", {"direction": "RIGHT"}),
            ("BitwiseAnd", ("shifted", "one"), "single", {}),
            ("Cast", ("single",), "numbers", {"to": TensorProto.INT32}),
            ("Reshape", ("numbers", "flat"), "row", {}),
            ("CumSum", ("row", "axis"), "count", {}),
            ("Mul", ("count", "row"), "places", {}),
            ("Slice", ("places", "start", "end"), "own", {}),
            ("Gather", ("values", "own"), "spread", {}),
            ("Reshape", ("spread", "shape"), "", {}),
        ):
            result = f"{name}_{output}" if output else name
            nodes.append(helper.make_node(kind, [f"{name}_{part}" for part in inputs], [result], **settings))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    return len({node.output[0] for node in nodes if node.op_type == "CumSum"})


def weights_to_half(model: onnx.ModelProto, precision: str) -> None:
    """Stores float32 weights in half precision with a cast behind them, which ONNX Runtime folds when it loads the file."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in list(model.graph.initializer):
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.ndim == 0:
            continue
        stored = torch.from_numpy(array.copy()).to(HALVES[precision]).view(torch.int16).numpy().tobytes()
        kind = TensorProto.DataType.Value(precision.upper())
        half = helper.make_tensor(f"{tensor.name}_half", kind, array.shape, stored, raw=True)
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(half)
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    for tensor in list(model.graph.initializer):
        if tensor.name not in used:
            model.graph.initializer.remove(tensor)
