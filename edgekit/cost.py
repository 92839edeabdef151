"""What a program costs: parameters, bytes, multiply-accumulates and memory accesses, per layer and in total.

Convention, for one input (batch 1): one MAC is one multiply-add of a convolution, a linear layer or a matrix product;
biases, batch norm, activations, pooling and additions count none. Memory access is the number of elements read and
written: inputs, output and weights of each operator (Ma et al., "ShuffleNet V2", ECCV 2018, section 2, equation 1).
Operators that move no data of their own (views, quantize and dequantize nodes, dropout) cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgekit.program import aten, attribute, codebook_of, layer_name, quantized, sparse_of, trainable
from edgekit.rules import into


@dataclass(frozen=True)
class LayerCost:
    """The cost of one operator.

    Attributes:
        name: Its node in the program.
        path: The layer's name in the user's modules.
        op: The ATen operator.
        parameters: Elements of its weights (for a quantized one too; scales and zero points are not counted).
        bytes: What its weights take as they are stored, scales included.
        macs: Multiply-accumulates for one input.
        memory_access: Elements read and written for one input.
        output_shape: With the batch given as -1; of a recurrent layer its outputs' alone, without the final states.
    """

    name: str
    path: str
    op: str
    parameters: int
    bytes: int
    macs: int
    memory_access: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """The cost of a program.

    Attributes:
        layers: In the order of the program.
        parameters: Total; a weight used twice counts once.
        bytes: Total, likewise.
        macs: Total for one input.
        memory_access: Total for one input.
        uncounted: Operators without a rule, whose MACs are missing in the total.
    """

    layers: tuple[LayerCost, ...]
    parameters: int
    bytes: int
    macs: int
    memory_access: int
    uncounted: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


MacsRule = Callable[[Node], int]
MACS: dict[Any, MacsRule] = {}
"""The MACs of each operator that multiplies."""
rule = into(MACS)
"""Registers how an operator's MACs are counted."""


@rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def convolution(node: Node) -> int:
    """Each output element is a sum over in / groups × kernel."""
    weight = _value(node.args[1]).shape
    return elements(node) * math.prod(weight[1:])


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def transposed_convolution(node: Node) -> int:
    """Each input element is spread over out / groups × kernel."""
    weight = _value(node.args[1]).shape
    return elements(node.args[0]) * math.prod(weight[1:])


@rule(aten.linear.default)
def linear(node: Node) -> int:
    """Each output element is a sum over the input features."""
    return elements(node) * int(_value(node.args[1]).shape[-1])


@rule(aten.matmul.default, aten.bmm.default, aten.mm.default)
def matrix_product(node: Node) -> int:
    """Each output element is a sum over the shared dimension."""
    return elements(node) * int(_value(node.args[0]).shape[-1])


@rule(aten.addmm.default)
def matrix_product_and_sum(node: Node) -> int:
    """As a matrix product of its second and third input."""
    return elements(node) * int(_value(node.args[1]).shape[-1])


@rule(aten.scaled_dot_product_attention.default)
def attention(node: Node) -> int:
    """Each query times each key, and each of these weights times a value."""
    query, key = node.args[0], node.args[1]
    return (elements(query) + elements(node)) * int(_value(key).shape[-2])


@rule(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
def recurrent(node: Node) -> int:
    """In each time step every weight of every layer is used once; the products of gates are element-wise."""
    source, _, weights, *_, batch_first = node.args
    steps = int(_value(source).shape[1 if batch_first else 0])
    return steps * sum(_value(weight).numel() for weight in weights if _value(weight).dim() == 2)


_SHAPES = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten.permute.default, aten.transpose.int, aten.expand.default, aten.unflatten.int,
    aten.select.int,
}  # fmt: skip
_MOVES_NOTHING = _SHAPES | {
    aten.dropout.default, aten.contiguous.default, aten.detach.default, aten.to.dtype, aten.index.Tensor,
    aten.sym_size.int, aten.zeros_like.default, aten.zeros.default, aten.masked_scatter.default,
    quantized.quantize_per_tensor.default,
    quantized.dequantize_per_tensor.default, quantized.quantize_per_channel.default,
    quantized.dequantize_per_channel.default,
}  # fmt: skip
# Known to multiply nothing; whatever is in none of these tables is reported as uncounted.
_NO_MACS = {
    aten.batch_norm.default, aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default,
    aten.leaky_relu.default, aten.elu.default, aten.gelu.default, aten.silu.default, aten.sigmoid.default,
    aten.tanh.default, aten.hardswish.default, aten.hardsigmoid.default, aten.softmax.int, aten.add.Tensor,
    aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.cat.default, aten.pad.default, aten.slice.Tensor,
    aten.mean.dim, aten.sum.dim_IntList, aten.max_pool2d.default, aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default, aten.layer_norm.default, aten.chunk.default, aten.split.Tensor,
    aten.split_with_sizes.default, aten.clone.default, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.vec, aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec,
}  # fmt: skip


def cost_of(program: ExportedProgram | GraphModule) -> Cost:
    """Counts a program, float or quantized.

    Args:
        program: In ATen training IR, its nodes with ``meta["val"]``.
    """
    module = trainable(program) if isinstance(program, ExportedProgram) else program
    layers, uncounted = [], []
    counted: set[str] = set()
    for node in module.graph.nodes:
        if node.op != "call_function" or not hasattr(node.target, "_schema"):
            continue
        # A parameter whose shape is changed, such as a class token, is read there.
        if node.target in _MOVES_NOTHING and not (node.target in _SHAPES and node.args[0].op == "get_attr"):
            continue
        stored = _stored(node)
        parameters = sum(
            attribute(module, name).numel() for name, is_weight in stored if is_weight and name not in counted
        )
        size = sum(
            math.ceil(attribute(module, name).nbytes * _packing(module, node, name))
            for name, _ in stored
            if name not in counted
        )
        counted.update(name for name, _ in stored)
        macs_rule = MACS.get(node.target)
        if macs_rule is None and node.target not in _NO_MACS | _SHAPES:
            uncounted.append(f"{node.target} at {layer_name(node)}")
        inputs = [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), torch.Tensor)]
        layers.append(
            LayerCost(
                name=node.name,
                path=layer_name(node),
                op=str(node.target).removeprefix("aten."),
                parameters=parameters,
                bytes=size,
                macs=macs_rule(node) if macs_rule else 0,
                memory_access=elements(node) + sum(elements(source) for source in inputs),
                output_shape=_output_shape(node),
            )
        )
    return Cost(
        tuple(layers),
        sum(layer.parameters for layer in layers),
        sum(layer.bytes for layer in layers),
        sum(layer.macs for layer in layers),
        sum(layer.memory_access for layer in layers),
        tuple(uncounted),
    )


def _output_shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)) and MACS.get(node.target) is recurrent:
        value = value[0]
    return tuple(int(s) if isinstance(s, int) else -1 for s in value.shape) if isinstance(value, torch.Tensor) else ()


def _stored(node: Node) -> list[tuple[str, bool]]:
    """The tensors behind a node's weights: name, and whether it is a parameter (not a scale or a statistic)."""
    found = []
    for source in node.all_input_nodes:
        names = [str(source.target)] if source.op == "get_attr" else []
        if source.target is quantized.dequantize_per_channel.default:
            names = [str(tensor.target) for tensor in source.all_input_nodes if tensor.op == "get_attr"]
        sparse = sparse_of(source)
        for name in codebook_of(source) or sparse or names:
            extra = name.endswith(("_scale", "_zero_point", "_codebook", "running_mean", "running_var"))
            extra = extra or (sparse is not None and name == sparse[0])
            # Zero points of symmetric weights are all zero; no format stores them, and the bundle deflates them.
            if not name.endswith("_zero_point"):
                found.append((name, not extra))
    return found


# Weights of one and two bits have no greater one.
_FEW_LEVELS = 3


def _packing(module: GraphModule, node: Node, name: str) -> float:
    """What share of its bytes a tensor needs when it is packed: int8 tensors that hold fewer bits need fewer."""
    for source in node.all_input_nodes:
        if source.target is quantized.dequantize_per_channel.default and source.args[0].target == name:
            top = int(source.args[5])
            # Signs alone, or -3, -1, 1 and 3: the lowest bit is always set.
            always = top <= _FEW_LEVELS and bool((attribute(module, name) & 1).all())
            return (top.bit_length() + 1 - always) / 8
        if (sparse := sparse_of(source)) is not None and sparse[0] == name:
            return 1 / 8
        if (coded := codebook_of(source)) is not None and coded[0] == name:
            return math.ceil(math.log2(source.args[0].meta["val"].shape[0])) / 8
    return 1.0


def _value(node: Any) -> torch.Tensor:
    value: torch.Tensor = node.meta["val"]
    return value


def elements(node: Any) -> int:
    """Elements of a node's value for one input: the free batch counts as 1, a parameter as it is."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return sum(math.prod(int(size) if isinstance(size, int) else 1 for size in v.shape[1:]) for v in value)
    if not isinstance(value, torch.Tensor):
        return 0
    return math.prod(int(size) if isinstance(size, int) else 1 for size in value.shape)
