"""ncnn: through ONNX and pnnx; int8 model files are written here, from the bundle's scales."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgekit.compress.rewrite import (
    average_inside,
    circular_padding_to_concatenation,
    powers_to_products,
    resizing_to_products,
    strided_slice_to_pool,
)
from edgekit.compress.rewrite.resizing import ANTIALIASED
from edgekit.errors import ExportError, UnsupportedOperatorError
from edgekit.export.exporter import Exporter, Lowered
from edgekit.export.lowering import (
    deployed,
    dequantized_weight,
    narrow_weights,
    refuse_few_levels,
    refuse_other_activations,
    round_weights,
    strip_quantization,
    weight_nodes,
)
from edgekit.export.ncnn_grid import SYMMETRIC_MAX, move, shifted, shown, to_symmetric
from edgekit.export.ncnn_model import Layer, read_param, read_weights, write_param, write_weights
from edgekit.export.ncnn_repairs import mend
from edgekit.export.onnx import save, to_onnx
from edgekit.files import atomic_file
from edgekit.program import aten, attribute, duplicate, layer_name, quantized, shape_of

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

    from edgekit.bundle import Bundle

TIMEOUT_S = 1800
# int8_scale_term of ncnn's layers: 1 has scales for weights and input, 101 also for an int8 output.
SCALES, SCALES_AND_OUTPUT = 1, 101
PAD_VALUE = 18
PNNX_PARAM = "m.pnnx.param"
EXPRESSION = "pnnx.Expression"
_ONE_DIMENSION = "ncnn has no int8 kernels for convolutions of one dimension"


class NcnnExporter(Exporter):
    """Writes ``.ncnn.param``, ``.ncnn.bin`` and ``.ncnn.json`` (metadata), proved in ncnn."""

    name: ClassVar[str] = "ncnn"
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float16", "int8")
    activations: ClassVar[tuple[int, ...]] = (8,)
    runtime: ClassVar[str] = "ncnn"
    suffix: ClassVar[str] = ".ncnn.param"
    input_layout: ClassVar[str] = "NCHW"

    def lower(self, bundle: Bundle, precision: str) -> Lowered:
        module = deployed(bundle)
        refuse_few_levels(module, "ncnn")
        notes = []
        if bundle.weights == "codes":
            notes.append("ncnn has no shared weights: the file holds each as a float, and is no smaller")
        if bundle.weights == "sparse":
            notes.append("zeros are stored and multiplied like any number: this file is no smaller and no faster")
        if precision == "float16":
            round_weights(module, precision)
            notes.append("weights are stored in float16; the CPU computes in float32 unless it has float16 arithmetic")
        if strided_slice_to_pool(module):
            notes.append("strided slices are written as max pooling of kernel 1: exact")
        if resizing_to_products(module, ANTIALIASED):
            notes.append(
                "resizing with antialiasing, which ncnn does not have, is written as products with matrices, stored as weights"
            )
        average_inside(module)
        circular_padding_to_concatenation(module)
        powers_to_products(module)
        if precision == "int8":
            refuse_other_activations(module, "ncnn", self.activations)
            in_float = [n for n in weight_nodes(module) if _groups_of(n) > 1 or n.target is aten.conv1d.default]
            to_symmetric(module, in_float)
            depthwise = [node for node in in_float if _is_depthwise(node)]
            if depthwise:
                notes.append("every depthwise convolution computes in float: ncnn's int8 kernels for them take longer")
            notes += [
                f"{layer_name(node)} computes in float: "
                + ("ncnn has one weight scale for a group of channels" if _groups_of(node) > 1 else _ONE_DIMENSION)
                for node in in_float
                if node not in depthwise
            ]
            notes.append(
                "ncnn has no zero points: activations keep the bundle's ranges on a symmetric grid, coarser after a ReLU where "
                "it can't be shifted; everything but convolutions and linear layers computes in float"
            )
            if narrow_weights(module):
                notes.append("ncnn stores every weight in 8 bits: fewer bits make this file no smaller")
        moved = shown(module, shifted(module)) if precision == "int8" else {}
        return Lowered(module, precision, bundle.input_shape, tuple(notes), moved)

    def write(self, lowered: Lowered, path: Path, metadata: dict[str, Any]) -> list[Path]:
        module = duplicate(lowered.module)
        padded = move(module, shifted(module)) if lowered.precision == "int8" else set()
        scales = _input_scales(module) if lowered.precision == "int8" else {}
        weights = _int8_weights(module) if lowered.precision == "int8" else {}
        if lowered.precision == "int8":
            strip_quantization(module)
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            param, binary, origins = _pnnx(module, lowered, Path(folder))
            layers = read_param(param)
            if mend(layers, (Path(folder) / PNNX_PARAM).read_text(encoding="utf-8")):
                write_param(layers, param)
            _refuse_unknown(layers, module, origins)
            if lowered.precision == "int8":
                read_weights(layers, binary)
                _quantize_layers(layers, module, weights, scales, padded)
                write_param(layers, param)
                write_weights(layers, binary)
            files = [path, path.with_suffix(".bin"), path.with_suffix(".json")]
            for source, target in ((param, files[0]), (binary, files[1])):
                with atomic_file(target) as partial:
                    partial.write_bytes(source.read_bytes())
            with atomic_file(files[2]) as partial:
                partial.write_text(json.dumps(metadata), encoding="utf-8")
        return files


def _pnnx(module: GraphModule, lowered: Lowered, folder: Path) -> tuple[Path, Path, dict[str, list[str]]]:
    """Converts a float program with batch 1 by the pnnx program, in its own process and folder.

    Returns:
        Its two files, and the names of the nodes that each operator of ONNX (in lower case) came of.
    """
    spec = importlib.util.find_spec("pnnx")
    if spec is None or spec.origin is None:
        raise ExportError("pnnx is not installed", "pip install pnnx")
    model = to_onnx(module, lowered.input_shape, batch=1)
    save(model, folder / "model.onnx")
    names = {
        "pnnxparam": PNNX_PARAM, "pnnxbin": "m.pnnx.bin", "pnnxpy": "m_pnnx.py", "pnnxonnx": "m.pnnx.onnx",
        "ncnnparam": "m.ncnn.param", "ncnnbin": "m.ncnn.bin", "ncnnpy": "m_ncnn.py",
    }  # fmt: skip
    command = [
        str(Path(spec.origin).parent / "pnnx"),
        "model.onnx",
        f"inputshape=[1,{','.join(map(str, lowered.input_shape))}]",
        # Its default is 1, which halves the weights' precision without a word.
        f"fp16={int(lowered.precision == 'float16')}",
        *(f"{key}={value}" for key, value in names.items()),
    ]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"pnnx gave no result in {TIMEOUT_S} s and was stopped") from error
    param, binary = folder / names["ncnnparam"], folder / names["ncnnbin"]
    if done.returncode or not param.is_file() or not binary.is_file():
        how = (
            f"died by signal {-done.returncode}" if done.returncode < 0 else f"failed with exit code {done.returncode}"
        )
        lines = [line for line in (done.stderr + done.stdout).strip().splitlines() if line.strip()]
        said = lines[-1] if lines else "no message"
        suspects = sorted({node.op_type for node in model.graph.node if re.search(rf"\b{node.op_type}\b", said)})
        raise ExportError(
            f"pnnx {how}: {said}",
            f"{' and '.join(suspects) or 'An operator'} may have no ncnn form: write that part otherwise.",
        )
    origins: dict[str, list[str]] = {}
    for made in model.graph.node:
        origins.setdefault(made.op_type.lower(), []).append(made.name.removeprefix("node_"))
    return param, binary, origins


def _refuse_unknown(layers: list[Layer], module: GraphModule, origins: dict[str, list[str]]) -> None:
    """pnnx may exit with 0 and leave operators in the file that ncnn does not have; it keeps their torch or ONNX names."""
    import ncnn

    unknown = {layer.type: None for layer in layers if not _is_known(ncnn, layer.type)}
    # An expression is pnnx's own, and often no more than a constant that the operator behind it reads.
    types = [name for name in unknown if name != EXPRESSION] or list(unknown)
    if not types:
        return
    suspects = [node for name in types for node in _suspects(name, module, origins)]
    where = f" at {layer_name(suspects[0])} (node {suspects[0].name}, {suspects[0].target})" if suspects else ""
    raise UnsupportedOperatorError(
        f"ncnn has no operator {' and no '.join(types)}{where}",
        "Write that part of the model with operators that ncnn has, or leave ncnn out of --to.",
    )


def _suspects(layer_type: str, module: GraphModule, origins: dict[str, list[str]]) -> list[Node]:
    """The nodes that a layer type may come of: by the name that ONNX's operator has of them, or by resemblance."""
    short = re.split(r"[.:]", layer_type)[-1].lower()
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    return [n for n in nodes if n.name in origins.get(short, ())] or [n for n in nodes if _resembles(n, short)]


def _resembles(node: Node, layer_type: str) -> bool:
    """Whether a layer type (in lower case) may come of this node: converters rename, ``gather`` to ``gatherelements``."""
    operator = str(node.target).split(".")[1].replace("_", "") if "." in str(node.target) else ""
    if len(operator) < 3:
        return operator == layer_type
    return operator in layer_type or layer_type.replace("_", "") in operator


def _is_known(ncnn: Any, layer_type: str) -> bool:
    if hasattr(ncnn, "layer_to_index"):
        return bool(ncnn.layer_to_index(layer_type) >= 0)
    return "." not in layer_type and "::" not in layer_type


def _groups_of(node: Node) -> int:
    return int(node.args[6]) if node.target is aten.conv2d.default and len(node.args) > 6 else 1  # type: ignore[arg-type]


def _is_depthwise(node: Node) -> bool:
    return _groups_of(node) == shape_of(node)[1] == shape_of(node.args[0])[1]  # type: ignore[arg-type]


def _input_scales(module: GraphModule) -> dict[str, float]:
    """For each quantized convolution or linear layer by node name: ncnn's factor for its input, 1 / step."""
    scales = {}
    for node in weight_nodes(module):
        source = node.args[0]
        if source.target is quantized.dequantize_per_tensor.default and _weight_dequantize(node) is not None:
            scales[node.name] = 1.0 / float(source.args[1])
    return scales


def _weight_dequantize(node: Node) -> Node | None:
    weight = node.args[1]
    return weight if weight.target is quantized.dequantize_per_channel.default else None


def _int8_weights(module: GraphModule) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each quantized layer by node name: its int8 weights, their scales, and the float weights they stand for."""
    found = {}
    for node in weight_nodes(module):
        dequantize = _weight_dequantize(node)
        if dequantize is not None:
            values = attribute(module, str(dequantize.args[0].target)).numpy()  # type: ignore[union-attr]
            scales = attribute(module, str(dequantize.args[1].target)).numpy()  # type: ignore[union-attr]
            found[node.name] = (values, scales, dequantized_weight(module, dequantize).numpy())
    return found


def _quantize_layers(
    layers: list[Layer],
    module: GraphModule,
    weights: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    scales: dict[str, float],
    padded: set[str],
) -> None:
    """Puts int8 weights and scales into the layers that pnnx made in float; the weights tell which is which."""
    names = {node.name: layer_name(node) for node in module.graph.nodes if node.op == "call_function"}
    assigned: dict[str, str] = {}
    for layer in layers:
        if layer.type not in ("Convolution", "InnerProduct") and not _is_linear(layer):
            continue
        for name, (values, weight_scale, floats) in weights.items():
            if name in assigned or name not in scales or floats.size != layer.arrays[0].size:
                continue
            if not np.array_equal(floats.reshape(-1), layer.arrays[0]):
                continue
            assigned[name] = layer.name
            if layer.type == "Gemm":
                # ncnn's integer matrix products have no scale for each channel; its linear layers take rows, too.
                bias = len(layer.arrays) > 1
                layer.type, layer.params = "InnerProduct", {0: layer.params[8], 1: str(int(bias)), 2: str(floats.size)}
            layer.params[8] = str(SCALES)
            if name in padded:
                # It pads what it has quantized.
                layer.params[PAD_VALUE] = f"{SYMMETRIC_MAX}.0"
            # ncnn multiplies to quantize, so it stores 1 / step.
            layer.arrays[0] = values.reshape(-1)
            layer.arrays.append((1.0 / weight_scale.astype(np.float64)).astype("<f4"))
            layer.arrays.append(np.array([scales[name]], "<f4"))
            break
    missing = [names[name] for name in weights if name not in assigned and name in scales]
    if missing and any(layer.type == "MultiHeadAttention" for layer in layers):
        raise ExportError(
            f"ncnn's converter made one attention layer of {', '.join(missing)}, which has no int8 form of theirs",
            f"Keep them in float: quantize:keep_float=[{','.join(missing)}].",
        )
    if missing:
        raise ExportError(
            f"ncnn's converter changed the weights of {', '.join(missing[:5])}, so their int8 form can't be placed",
            "Please report this network; its float32 export is not affected.",
        )
    _keep_int8_between(layers)


def _is_linear(layer: Layer) -> bool:
    """Whether a matrix product is what a linear layer computes on rows: the input times a constant's transpose."""
    if layer.type != "Gemm" or {0, 1} & set(layer.params):
        return False
    transposed = not layer.integer(2) and layer.integer(3)
    constant = layer.integer(5) and not layer.integer(4)
    # A constant third operand has a number for each column, or is none.
    return bool(transposed and constant and (layer.integer(10) == 4 or len(layer.arrays) == 1))


def _keep_int8_between(layers: list[Layer]) -> None:
    """Lets a quantized layer hand int8 to the next ones where at most a ``Split`` stands between them.

    The values are the same as when the next layers quantize them themselves, but nothing passes through float.
    """
    for layer in layers:
        if layer.type != "Convolution" or 8 not in layer.params:
            continue
        after = _readers(layers, layer.outputs[0])
        if all(reader.type == "Convolution" and 8 in reader.params for reader in after):
            factors = {float(_input_scale_of(reader)[0]) for reader in after}
            if len(factors) == 1:
                layer.params[8] = str(SCALES_AND_OUTPUT)
                layer.arrays.append(_input_scale_of(after[0]))


def _readers(layers: list[Layer], blob: str) -> list[Layer]:
    """The layers that read a blob, also through ``Split``: ncnn has a blob for each reader."""
    found: list[Layer] = []
    for layer in layers:
        if blob in layer.inputs:
            parts = layer.outputs if layer.type == "Split" else ()
            found += [reader for part in parts for reader in _readers(layers, part)] if parts else [layer]
    return found


def _input_scale_of(layer: Layer) -> np.ndarray:
    bias = layer.integer(5)
    return layer.arrays[2 + bias]
