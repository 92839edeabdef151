"""XNNPACK's sparse kernels in a ``.tflite``: which 1×1 convolutions they will compute, and what stands in the way.

XNNPACK multiplies by what is not zero alone where a part of the graph can be computed channel by channel (NCHW): it begins
with a 3×3 convolution of stride 2 on 3 channels, holds 1×1 and depthwise convolutions, additions, products and elementwise
operators, and ends with a mean over space; and where more than 2/3 of all weights of its 1×1 convolutions and linear layers
are zeros (Elsen et al., "Fast Sparse ConvNets", CVPR 2020; the rules are those of XNNPACK's subgraph rewriting in 2026).
It has such kernels for ARM, and on x86 for processors without AVX alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Of the weights of a part, so many must be zeros.
LEAST_ZEROS = 2 / 3
_SAME = 0


@dataclass(frozen=True)
class SparsePath:
    """What XNNPACK makes of a graph whose weights are stored without their zeros.

    Attributes:
        stored: How many weights are stored so; XNNPACK looks for sparse kernels where there are any.
        layers: Names of the outputs of the 1×1 convolutions that its sparse kernels compute.
        dense: Those of the 1×1 convolutions that dense kernels compute.
        zeros: The share of zeros among the weights that count, those of the part with the most 1×1 convolutions; 0 without one.
        obstacles: What stands in the way of the dense ones, in words.
    """

    stored: int
    layers: tuple[str, ...]
    dense: tuple[str, ...]
    zeros: float
    obstacles: tuple[str, ...]


@dataclass(eq=False)
class _Node:
    """An operator with what XNNPACK looks at."""

    kind: str
    inputs: list[int]
    output: int
    operator: Any
    # Zeros around the input: of a PAD in front, which XNNPACK takes into the convolution.
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    channelwise: bool = False
    begins: bool = False
    ends: bool = False
    reason: str = ""
    part: int = field(default=-1)


def sparse_path(content: bytes) -> SparsePath:
    """What XNNPACK's rules make of a float32 ``.tflite``, on a processor that it has sparse kernels for."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    weights = _static(schema, model, graph)
    nodes = _nodes(schema, model, graph, weights)
    broken = _join(nodes, weights)
    pointwise = [node for node in nodes if node.kind == "CONV_2D" and _is_pointwise(graph, node)]
    counted = [node for node in nodes if node in pointwise or node.kind == "FULLY_CONNECTED"]
    parts = Counter(node.part for node in pointwise if node.part >= 0)
    total: Counter[int] = Counter()
    zeros: Counter[int] = Counter()
    for node in counted:
        values = weights.get(node.inputs[1])
        if values is not None:
            total[node.part] += values.size
            zeros[node.part] += int((values == 0).sum())
    sparse = {part for part in parts if 3 * zeros[part] > 2 * total[part]}
    names = {id(node): _name(graph, node) for node in nodes}
    misfits = [node for node in nodes if node.reason]
    layers = tuple(names[id(node)] for node in pointwise if node.part in sparse)
    dense = tuple(names[id(node)] for node in pointwise if node.part not in sparse)
    obstacles = [f"{names[id(node)]}: {node.reason}" for node in misfits]
    # What follows from a convolution that does not fit needs no word of its own.
    obstacles += [f"{names[id(nodes[number])]}: {why}" for number, why in broken.items() if not misfits]
    obstacles += [
        f"{zeros[part] / total[part]:.0%} of the weights that count are zeros, and more than {LEAST_ZEROS:.0%} must be"
        for part in parts
        if part not in sparse
    ]
    most = max(parts, key=lambda part: parts[part], default=-1)
    kinds = _kinds(schema)
    return SparsePath(
        stored=sum(_kind(model, kinds, operator) == "DENSIFY" for operator in graph.operators),
        layers=layers,
        dense=dense,
        zeros=zeros[most] / total[most] if most in parts else 0.0,
        obstacles=tuple(dict.fromkeys(obstacles)) if dense else (),
    )


def _kinds(schema: Any) -> dict[int, str]:
    return {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


def _kind(model: Any, kinds: dict[int, str], operator: Any) -> str:
    return kinds[model.operatorCodes[operator.opcodeIndex].builtinCode]


def _name(graph: Any, node: _Node) -> str:
    return str(graph.tensors[node.output].name.decode("utf-8", "replace"))


def _static(schema: Any, model: Any, graph: Any) -> dict[int, np.ndarray]:
    """The values of every constant float tensor, and of those that a DENSIFY fills in; other constants without values."""
    found: dict[int, np.ndarray] = {}
    for index, tensor in enumerate(graph.tensors):
        data = model.buffers[tensor.buffer].data
        if data is None:
            continue
        raw = bytes(bytearray(data))
        kind = np.float32 if tensor.type == schema.TensorType.FLOAT32 else np.uint8
        found[index] = np.frombuffer(raw, np.int32 if tensor.type == schema.TensorType.INT32 else kind)
    kinds = _kinds(schema)
    for operator in graph.operators:
        if _kind(model, kinds, operator) == "DENSIFY":
            output = int(operator.outputs[0])
            stored = found.get(int(operator.inputs[0]), np.zeros(0, np.float32))
            whole = np.zeros(int(np.prod(graph.tensors[output].shape)), np.float32)
            whole[: stored.size] = stored  # how many are zeros counts, not where
            found[output] = whole
    return found


def _nodes(schema: Any, model: Any, graph: Any, static: dict[int, np.ndarray]) -> list[_Node]:
    """The operators as XNNPACK sees them: constants filled in, zeros around an input taken into the convolution."""
    kinds = _kinds(schema)
    nodes: list[_Node] = []
    readers = Counter(int(i) for op in graph.operators for i in op.inputs if i >= 0)
    padded: dict[int, _Node] = {}
    for operator in graph.operators:
        kind = _kind(model, kinds, operator)
        inputs = [int(i) for i in operator.inputs if i >= 0]
        if kind == "DENSIFY":
            continue
        node = _Node(kind, inputs, int(operator.outputs[0]), operator)
        if kind == "PAD" and inputs[1] in static:
            rows = static[inputs[1]].reshape(-1, 2)
            if len(rows) == 4 and not rows[[0, 3]].any() and readers[node.output] == 1:
                node.pads = tuple(int(n) for n in (*rows[1], *rows[2]))  # type: ignore[assignment]
                padded[node.output] = node
        before = padded.get(inputs[0]) if inputs else None
        if before is not None and kind in ("CONV_2D", "DEPTHWISE_CONV_2D") and operator.builtinOptions.padding != _SAME:
            nodes.remove(before)
            node.inputs[0], node.pads = before.inputs[0], before.pads
        nodes.append(node)
    for node in nodes:
        _look(schema, graph, node, static)
    return nodes


_ELEMENTWISE = (
    "ABS", "CEIL", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "NEG", "RELU", "RELU6",
    "RELU_N1_TO_1", "ROUND", "RSQRT", "SQRT", "SQUARE", "TANH",
)  # fmt: skip


def _look(schema: Any, graph: Any, node: _Node, static: dict[int, np.ndarray]) -> None:
    """Whether an operator can be computed channel by channel, begins such a part, or ends one; or why it can't."""
    if any(graph.tensors[i].type != schema.TensorType.FLOAT32 for i in (node.inputs[0], node.output)):
        node.reason = "it does not compute in float32" if node.kind in ("CONV_2D", "DEPTHWISE_CONV_2D") else ""
        return
    if node.kind == "CONV_2D":
        _look_at_convolution(graph, node)
    elif node.kind == "DEPTHWISE_CONV_2D":
        _look_at_depthwise(graph, node)
    elif node.kind in ("MEAN", "SUM"):
        node.channelwise = node.ends = len(graph.tensors[node.inputs[0]].shape) == 4
    elif node.kind in ("ADD", "MUL"):
        flat = all(sum(int(n) > 1 for n in graph.tensors[i].shape) <= 1 for i in node.inputs if i in static)
        node.channelwise = flat and all(len(graph.tensors[i].shape) == 4 for i in node.inputs)
    elif node.kind in _ELEMENTWISE:
        node.channelwise = len(graph.tensors[node.inputs[0]].shape) == 4
    elif node.kind == "DEPTH_TO_SPACE":
        node.ends = True
    elif node.kind in ("FULLY_CONNECTED", "RESIZE_BILINEAR"):
        node.channelwise = True


def _is_pointwise(graph: Any, node: _Node) -> bool:
    return [int(n) for n in graph.tensors[node.inputs[1]].shape[1:3]] == [1, 1]


def _look_at_convolution(graph: Any, node: _Node) -> None:
    options, kernel = node.operator.builtinOptions, [int(n) for n in graph.tensors[node.inputs[1]].shape]
    channels = int(graph.tensors[node.inputs[0]].shape[-1])
    strides = options.strideH, options.strideW
    pads = _pads(node, kernel[1:3], strides)
    if kernel[3] != channels:
        node.reason = "it is a grouped convolution"
    elif (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        node.reason = "it is dilated"
    elif kernel[1:3] == [1, 1]:
        node.channelwise = strides == (1, 1) and not any(pads or (1,))
        node.reason = "" if node.channelwise else "a 1×1 convolution must have stride 1 and no padding"
    elif kernel[1:3] == [3, 3] and strides == (2, 2) and channels == 3 and pads == (1, 1, 1, 1):
        node.begins = True
    else:
        node.reason = (
            f"a {kernel[1]}×{kernel[2]} convolution with stride {strides[0]} on {channels} channels is dense; only the first, "
            "3×3 with stride 2 and padding 1 on 3 channels, may be"
        )


def _look_at_depthwise(graph: Any, node: _Node) -> None:
    options, kernel = node.operator.builtinOptions, [int(n) for n in graph.tensors[node.inputs[1]].shape[1:3]]
    strides = options.strideH, options.strideW
    pads = _pads(node, kernel, strides)
    node.channelwise = (
        kernel in ([3, 3], [5, 5])
        and strides in ((1, 1), (2, 2))
        and pads == (kernel[0] // 2,) * 4
        and options.depthMultiplier in (0, 1)
        and (options.dilationHFactor, options.dilationWFactor) == (1, 1)
    )
    if not node.channelwise:
        node.reason = (
            "a depthwise convolution must be 3×3 with padding 1 or 5×5 with padding 2, with stride 1 or 2, not dilated"
        )


def _pads(node: _Node, kernel: list[int], strides: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Zeros above, below, left and right of the input; None where they are left to TFLite, which XNNPACK does not take."""
    if node.operator.builtinOptions.padding != _SAME:
        return node.pads
    if strides != (1, 1):
        return None
    (top, bottom), (left, right) = (((n - 1) // 2, n // 2) for n in kernel)
    return top, bottom, left, right


def _join(nodes: list[_Node], static: dict[int, np.ndarray]) -> dict[int, str]:
    """Finds the parts that are computed channel by channel, and sets ``part`` of their nodes.

    A part is what hangs together of such operators. It is given up as a whole where one of them reads what is not made so,
    or something else reads what it makes for them; and without an operator that ends it.

    Returns:
        The nodes at which parts are broken off, with the reason.
    """
    broken: dict[int, str] = {}
    made_by = {node.output: number for number, node in enumerate(nodes)}
    read_by: dict[int, list[int]] = {}
    leader = list(range(len(nodes)))
    spoilt: set[int] = set()

    def root(number: int) -> int:
        while leader[number] != number:
            number = leader[number]
        return number

    def reads_by_channel(number: int) -> bool:
        return nodes[number].channelwise or nodes[number].ends

    # In the order of the graph, so that whoever reads from a spoilt operator is spoilt too.
    for number, node in enumerate(nodes):
        for value in node.inputs:
            if value in static:
                continue
            read_by.setdefault(value, []).append(number)
            if not reads_by_channel(number):
                continue
            producer = made_by.get(value)
            if producer is None or producer in spoilt or not (reads_by_channel(producer) or nodes[producer].begins):
                spoilt.add(number)
                if producer is None:
                    broken[number] = (
                        "it reads the input; the first must be a 3×3 convolution with stride 2 on 3 channels"
                    )
                elif producer not in spoilt:
                    broken[number] = f"it reads from {nodes[producer].kind}, which is not computed channel by channel"
            else:
                leader[root(number)] = root(producer)
    given_up = {root(number) for number in spoilt}
    while True:
        strange = {
            root(reader)
            for readers in read_by.values()
            for reader in readers
            if reads_by_channel(reader)
            and root(reader) not in given_up
            and any(not reads_by_channel(other) or root(other) in given_up for other in readers)
        }
        if not strange:
            break
        broken |= dict.fromkeys(strange, "something else reads what it makes")
        given_up |= strange
    ended = {root(number) for number, node in enumerate(nodes) if node.ends}
    for number, node in enumerate(nodes):
        if (reads_by_channel(number) or node.begins) and root(number) in ended - given_up:
            node.part = root(number)
        elif node.begins and root(number) not in ended | given_up:
            broken[number] = "no mean over space ends what it begins"
    return broken
