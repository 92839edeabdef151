"""How each ONNX operator is computed: one small rule per operator. What has no rule is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from edgekit.errors import SourceError
from edgekit.sources.onnx_network import Node, OnnxNetwork, rule


def _pads(node: Node, x: torch.Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial dimension."""
    spatial = len(kernel)
    mode = node.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = node.get("pads", [0] * 2 * spatial)
        return list(pads[:spatial]), list(pads[spatial:])
    before, after = [], []
    strides, dilations = node.get("strides", [1] * spatial), node.get("dilations", [1] * spatial)
    for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = 0 if mode == "VALID" else max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        before.append(less if mode != "SAME_LOWER" else more)
        after.append(more if mode != "SAME_LOWER" else less)
    return before, after


def _padded(x: torch.Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> torch.Tensor:
    flat = [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


@rule("Conv")
def convolution(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """With padding inside the convolution where both sides have the same."""
    layer: Any = network.layer(node)
    before, after = _pads(node, inputs[0], layer.kernel_size)
    if before == after:
        function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(before)]
        return function(inputs[0], layer.weight, layer.bias, layer.stride, before, layer.dilation, layer.groups)
    return layer(_padded(inputs[0], before, after))


@rule("ConvTranspose")
def transposed_convolution(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Symmetric padding alone."""
    layer: Any = network.layer(node)
    before, after = _pads(node, inputs[0], layer.kernel_size)
    if before != after or node.get("output_shape", None):
        raise SourceError(f"ConvTranspose at {node.name} pads unevenly", "Export it with equal padding on both sides.")
    more = tuple(node.get("output_padding", [0, 0]))
    return F.conv_transpose2d(
        inputs[0], layer.weight, layer.bias, layer.stride, tuple(before), more, layer.groups, layer.dilation
    )


@rule("Gemm", "BatchNormalization")
def layer_with_weights(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """The module itself."""
    if node.op == "BatchNormalization":
        layer: Any = network.layer(node)
        return F.batch_norm(inputs[0], layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
    x = inputs[0].T if node.get("transA", 0) else inputs[0]
    return network.layer(node)(x)


@rule("MatMul")
def product(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """A linear layer where the second factor is constant."""
    if node.outputs[0] in network.modules_of:
        return network.layer(node)(inputs[0])
    return torch.matmul(inputs[0], inputs[1])


@rule("MaxPool", "AveragePool")
def pool(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """In one or two dimensions."""
    x, kernel = inputs[0], node.get("kernel_shape", [])
    before, after = _pads(node, x, kernel)
    stride, ceil = node.get("strides", [1] * len(kernel)), bool(node.get("ceil_mode", 0))
    one = len(kernel) == 1
    if node.op == "MaxPool":
        inside = before == after and all(2 * pad <= k for pad, k in zip(before, kernel, strict=True))
        if not inside:
            x, before = _padded(x, before, after, float("-inf")), [0] * len(kernel)
        function: Any = F.max_pool1d if one else F.max_pool2d
        return function(x, kernel, stride, before, node.get("dilations", [1] * len(kernel)), ceil)
    counts = bool(node.get("count_include_pad", 0))
    if before != after:
        if not counts:
            raise SourceError(
                f"AveragePool at {node.name} pads unevenly", "Export it with equal padding on both sides."
            )
        x, before = _padded(x, before, after), [0] * len(kernel)
    function = F.avg_pool1d if one else F.avg_pool2d
    return function(x, kernel, stride, before, ceil, counts)


@rule("GlobalAveragePool", "GlobalMaxPool")
def global_pool(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Over all spatial dimensions."""
    return (
        F.adaptive_avg_pool2d(inputs[0], 1) if node.op == "GlobalAveragePool" else F.adaptive_max_pool2d(inputs[0], 1)
    )


_SIMPLE: dict[str, Callable[[Any], Any]] = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Identity": lambda x: x,
    "Dropout": lambda x: x, "Sqrt": torch.sqrt, "Exp": torch.exp, "Erf": torch.erf, "Neg": torch.neg, "Softplus": F.softplus,
}  # fmt: skip


@rule(*_SIMPLE)
def function(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Of one value; dropout does nothing in evaluation."""
    return _SIMPLE[node.op](inputs[0])


@rule("LeakyRelu", "Elu", "HardSigmoid", "Gelu")
def function_with_settings(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Of one value and attributes."""
    x = inputs[0]
    if node.op == "LeakyRelu":
        return F.leaky_relu(x, node.get("alpha", 0.01))
    if node.op == "Elu":
        return F.elu(x, node.get("alpha", 1.0))
    if node.op == "Gelu":
        return F.gelu(x, approximate=node.get("approximate", "none"))
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    # torch has it for 1/6 and 1/2 alone, which is what networks use.
    return (
        F.hardsigmoid(x)
        if math.isclose(alpha, 1 / 6, rel_tol=1e-5) and beta == 0.5
        else torch.clamp(alpha * x + beta, 0, 1)
    )


@rule("Clip")
def clip(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """ReLU and ReLU6 by their own names, which runtimes fuse."""
    low, high = (network.constant(node, position, name) for position, name in ((1, "min"), (2, "max")))
    low, high = (None if bound is None else float(bound) for bound in (low, high))
    if low == 0 and high == 6:
        return F.relu6(inputs[0])
    if low == 0 and (high is None or high > 3e38):
        return F.relu(inputs[0])
    return torch.clamp(inputs[0], low, high)


@rule("Add", "Sub", "Mul", "Div", "Pow")
def arithmetic(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Of two tensors, or of sizes."""
    a, b = inputs
    if not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
        pairs = _broadcast(a, b)
        made = [{"Add": x + y, "Sub": x - y, "Mul": x * y, "Div": x // y if y else 0}[node.op] for x, y in pairs]
        return made if isinstance(a, list) or isinstance(b, list) else made[0]
    operations: dict[str, Callable[[Any, Any], Any]] = {
        "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow,
    }  # fmt: skip
    return operations[node.op](a, b)


def _broadcast(a: Any, b: Any) -> list[tuple[Any, Any]]:
    first, second = (value if isinstance(value, list) else [value] for value in (a, b))
    length = max(len(first), len(second))
    return list(zip(first * (length // len(first)), second * (length // len(second)), strict=True))


@rule("Concat")
def concatenation(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Of tensors, or of sizes."""
    if all(not isinstance(value, torch.Tensor) for value in inputs):
        return [size for value in inputs for size in (value if isinstance(value, list) else [value])]
    return torch.cat(inputs, node.get("axis", 0))


@rule("Shape")
def shape(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Sizes as a list."""
    sizes = list(inputs[0].shape)
    return sizes[node.get("start", 0) : node.get("end", len(sizes))]


@rule("Gather")
def gather(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """From a list of sizes, or one slice of a tensor."""
    source, index = inputs[0], inputs[1]
    if isinstance(source, list):
        return [source[i] for i in index] if isinstance(index, list) else source[index]
    axis = node.get("axis", 0)
    if isinstance(index, int):
        return torch.select(source, axis, index)
    return torch.index_select(source, axis, torch.tensor(index))


@rule("Cast")
def cast(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Everything here is float32 or a size."""
    return inputs[0]


@rule("Reshape")
def reshape(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """A batch that the file fixed is left free where the rest of the shape holds one sample."""
    x, wanted = inputs[0], [*inputs[1]]
    wanted = [x.shape[i] if size == 0 and not node.get("allowzero", 0) else size for i, size in enumerate(wanted)]
    sample = math.prod(int(size) for size in x.shape[1:])
    if isinstance(wanted[0], int) and wanted[0] == 1 and len(wanted) > 1:
        rest = [size for size in wanted[1:] if not (isinstance(size, int) and size == -1)]
        fits = math.prod(rest) == sample or (len(rest) < len(wanted) - 1 and sample % math.prod(rest) == 0)
        wanted[0] = x.shape[0] if fits else 1
    elif isinstance(wanted[0], int) and wanted[0] == -1 and math.prod(wanted[1:]) == sample:
        wanted[0] = x.shape[0]
    return torch.reshape(x, wanted)


@rule("Flatten")
def flatten(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """From the axis on; for the batch that is axis 1."""
    axis = node.get("axis", 1)
    if axis != 1:
        raise SourceError(
            f"Flatten at {node.name} has axis {axis}", "edgekit takes networks whose first dimension is the batch."
        )
    return torch.flatten(inputs[0], 1)


@rule("Transpose")
def transpose(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Of all dimensions."""
    return inputs[0].permute(node.get("perm", list(range(inputs[0].dim()))[::-1]))


@rule("Squeeze", "Unsqueeze")
def squeeze(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Of tensors, or of sizes, which have one dimension at most."""
    x, axes = inputs[0], network.constant(node, 1, "axes")
    if not isinstance(x, torch.Tensor):
        return (x if isinstance(x, list) else [x]) if node.op == "Unsqueeze" else (x[0] if isinstance(x, list) else x)
    if axes is None:
        return torch.squeeze(x)
    for axis in sorted((int(a) for a in np.atleast_1d(axes)), reverse=node.op == "Squeeze"):
        x = torch.squeeze(x, axis) if node.op == "Squeeze" else torch.unsqueeze(x, axis)
    return x


@rule("Slice")
def part(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Of tensors, or of sizes."""
    starts, ends = (np.atleast_1d(network.constant(node, p, name)) for p, name in ((1, "starts"), (2, "ends")))
    axes, steps = network.constant(node, 3, "axes"), network.constant(node, 4)
    axes = range(len(starts)) if axes is None else np.atleast_1d(axes)
    steps = [1] * len(starts) if steps is None else np.atleast_1d(steps)
    x = inputs[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut = slice(int(start), None if int(end) > 2**31 else int(end), int(step))
        x = x[cut] if isinstance(x, list) else x[(slice(None),) * (int(axis) % x.dim()) + (cut,)]
    return x


@rule("Split")
def split(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Into given or equal parts."""
    axis, sizes = node.get("axis", 0), network.constant(node, 1, "split")
    if sizes is None:
        return torch.chunk(inputs[0], len(node.outputs), axis)
    return torch.split(inputs[0], [int(size) for size in sizes], axis)


@rule("Pad")
def pad(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """With a constant."""
    if node.get("mode", "constant") != "constant":
        raise SourceError(
            f"Pad at {node.name} has the mode {node.get('mode', '')}", "Only constant padding is known here."
        )
    pads = [int(p) for p in network.constant(node, 1, "pads")]
    value = network.constant(node, 2, "value")
    half = len(pads) // 2
    return _padded(inputs[0], pads[:half], pads[half:], 0.0 if value is None else float(value))


@rule("ReduceMean", "ReduceSum", "ReduceMax")
def reduction(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Over constant axes."""
    axes, keep = network.constant(node, 1, "axes"), bool(node.get("keepdims", 1))
    dimensions = [int(a) for a in axes] if axes is not None else list(range(inputs[0].dim()))
    if node.op == "ReduceMean":
        return torch.mean(inputs[0], dimensions, keep)
    return (torch.sum if node.op == "ReduceSum" else torch.amax)(inputs[0], dimensions, keep)


@rule("Softmax", "LogSoftmax")
def softmax(network: OnnxNetwork, node: Node, inputs: list[Any]) -> Any:
    """Along one axis."""
    return (F.softmax if node.op == "Softmax" else F.log_softmax)(inputs[0], node.get("axis", -1))
