"""An ``.onnx`` file as a network: one small rule per operator, and proof against ONNX Runtime before it is believed.

Layers with weights become torch modules named after the file's nodes, so that every later step finds them by name; the rest
is computed by functions. Constants are folded by ONNX's reference evaluator; lists of sizes (``Shape``, ``Gather``,
``Concat`` …) are carried as Python integers, so a batch that the file fixed at 1 becomes free where its operators allow it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.errors import SourceError, UnsupportedOperatorError

if TYPE_CHECKING:
    import onnx

# Beyond this, relative to the largest output, the rules and ONNX Runtime compute different networks.
_TOLERANCE = 1e-3
_PROOF_INPUTS = 4
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}


class Node:
    """One operator of the file.

    Attributes:
        op: Its type.
        name: As the file calls it, or its output.
        inputs: Names; empty for an optional input that is left out.
        outputs: Names.
        attributes: Python values.
    """

    def __init__(self, proto: onnx.NodeProto) -> None:
        import onnx

        self.op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
        self.name = proto.name or proto.output[0]
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        self.attributes: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        self.proto = proto

    def get(self, name: str, default: Any) -> Any:
        """An attribute, text decoded."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value


Rule = Callable[["OnnxNetwork", Node, list[Any]], Any]
RULES: dict[str, Rule] = {}
"""How each operator is computed; :func:`rule` adds one."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers an operator's rule: from the network, the node and its input values to its output."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


class OnnxNetwork(nn.Module):
    """The network of one ONNX graph.

    Args:
        model: With one input and one output; its constants are folded already.
        origin: What to call it in messages.

    Raises:
        UnsupportedOperatorError: If an operator has no rule; all of them are named.
    """

    def __init__(self, model: onnx.ModelProto, origin: str) -> None:
        from onnx import numpy_helper

        super().__init__()
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.nodes = _fold_constants([Node(proto) for proto in model.graph.node], self.constants, model)
        self.nodes = _fold_biases(self.nodes, self.constants)
        missing = sorted({f"{node.op} at {node.name}" for node in self.nodes if node.op not in RULES})
        if missing:
            quantized = any(node.op in _QUANTIZED for node in self.nodes)
            raise UnsupportedOperatorError(
                f"{origin} has operators that can't be brought over: {', '.join(missing[:6])}{' …' * (len(missing) > 6)}",
                "The file is quantized already: give the float model it was made from."
                if quantized
                else "Export the model again without them, or give it as a PyTorch factory.",
            )
        self.input = next(i.name for i in model.graph.input if i.name not in self.constants)
        self.output = model.graph.output[0].name
        self.modules_of: dict[str, str] = {}
        for node in self.nodes:
            made = _layer(node, self.constants)
            if made is not None:
                self.modules_of[node.outputs[0]] = self._add(node.name, made)
        # Operands of plain arithmetic.
        for node in self.nodes:
            for name in node.inputs:
                used = node.outputs[0] in self.modules_of
                if name in self.constants and not used and self.constants[name].dtype.kind == "f":
                    buffer = _identifier(f"constant_{name}")
                    if not hasattr(self, buffer):
                        self.register_buffer(buffer, torch.from_numpy(self.constants[name].astype(np.float32)))

    def _add(self, name: str, made: nn.Module) -> str:
        chosen = base = _identifier(name)
        count = 1
        while hasattr(self, chosen):
            count += 1
            chosen = f"{base}_{count}"
        self.add_module(chosen, made)
        return chosen

    def layer(self, node: Node) -> nn.Module:
        """The module that holds a node's weights."""
        found: nn.Module = getattr(self, self.modules_of[node.outputs[0]])
        return found

    def constant(self, node: Node, position: int, attribute: str = "") -> Any:
        """An input that must be constant, as a NumPy array; or the attribute that older operator sets had for it."""
        if attribute and attribute in node.attributes:
            return np.asarray(node.attributes[attribute])
        if len(node.inputs) <= position or not node.inputs[position]:
            return None
        if node.inputs[position] not in self.constants:
            raise SourceError(
                f"{node.op} at {node.name} takes a computed value as its input {position}, which must be constant",
                "Export the model again with fixed sizes.",
            )
        return self.constants[node.inputs[position]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values: dict[str, Any] = {self.input: x}
        for node in self.nodes:
            inputs = [self._value(name, values) for name in node.inputs]
            results = RULES[node.op](self, node, inputs)
            if len(node.outputs) > 1 and isinstance(results, (list, tuple)):
                values.update(zip(node.outputs, results, strict=False))
            else:
                values[node.outputs[0]] = results
        output: torch.Tensor = values[self.output]
        return output

    def _value(self, name: str, values: dict[str, Any]) -> Any:
        if name in values or not name:
            return values.get(name)
        if self.constants[name].dtype.kind == "f":
            return getattr(self, _identifier(f"constant_{name}"), None)
        return self.constants[name].tolist()


def load_onnx(path: Path, input_shape: Sequence[int] | None) -> tuple[OnnxNetwork, tuple[int, ...]]:
    """The network of a file and the shape of one input.

    Args:
        path: The ``.onnx`` file.
        input_shape: Without the batch, where the file leaves it open.

    Raises:
        SourceError: If the file is missing, damaged, or has more than one input or output.
        UnsupportedOperatorError: If an operator can't be brought over.
    """
    import onnx

    if not path.is_file():
        raise SourceError(f"{path} does not exist or is no file", "Check the path.")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        raise SourceError(
            f"{path} is damaged or no ONNX model: {str(error).strip().splitlines()[0]}", "Export it again."
        ) from error
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise SourceError(
            f"{path} has {len(inputs)} inputs and {len(model.graph.output)} outputs",
            "edgekit takes networks with one of each.",
        )
    sizes = [d.dim_value if d.HasField("dim_value") else 0 for d in inputs[0].type.tensor_type.shape.dim]
    shape = tuple(input_shape) if input_shape else tuple(sizes[1:])
    if not shape or any(size < 1 for size in shape):
        raise SourceError(f"{path} leaves its input shape open: {sizes}", "Set --input-shape, for example 3,224,224.")
    return OnnxNetwork(model, str(path)).eval(), shape


def prove(network: nn.Module, path: Path, shape: tuple[int, ...]) -> float:
    """Runs the file in ONNX Runtime, in a child process, and the network beside it.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        SourceError: If they differ by more than rounding, or the file can't be run.
    """
    from edgekit.errors import ExecutionError
    from edgekit.runtimes.runtime import Options
    from edgekit.runtimes.targets.target import target_for

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(_PROOF_INPUTS, *shape, generator=generator)
    with torch.no_grad():
        wanted = network(inputs).numpy()
    try:
        with target_for("local") as target, target.worker() as worker:
            worker.open(path, "onnxruntime", Options())
            # One at a time: the file may be fixed to a batch of one.
            found = np.concatenate([worker.run(x[None].numpy())[0] for x in inputs])
    except ExecutionError as error:
        raise SourceError(f"ONNX Runtime can't run {path}: {error.what}", "Export it again.") from error
    difference = float(np.abs(found.reshape(wanted.shape) - wanted).max() / max(1e-6, float(np.abs(found).max())))
    if not difference <= _TOLERANCE:
        raise SourceError(
            f"{path} was brought over wrongly: outputs differ from ONNX Runtime's by {difference:.2g} of the largest",
            "This is a bug of edgekit; please report the model. A PyTorch factory is the way around it.",
        )
    return difference


def _fold_constants(nodes: list[Node], constants: dict[str, np.ndarray], model: onnx.ModelProto) -> list[Node]:
    """Computes what depends on constants alone."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    left = []
    for node in nodes:
        if node.op == "Constant":
            made = next((v for k, v in node.attributes.items() if k.startswith("value")), None)
            array = onnx.numpy_helper.to_array(made) if isinstance(made, onnx.TensorProto) else np.asarray(made)
            constants[node.outputs[0]] = array.astype(np.float32) if array.dtype == np.float64 else array
        elif node.op in RULES and node.inputs and all(not n or n in constants for n in node.inputs):
            given = {name: constants[name] for name in node.inputs if name}
            opset = {used.domain: used.version for used in model.opset_import}
            evaluator = ReferenceEvaluator(node.proto, opsets=opset)  # type: ignore[arg-type]
            computed: Any = evaluator.run(None, given)
            constants.update(zip(node.outputs, computed, strict=True))
        else:
            left.append(node)
    return left


def _fold_biases(nodes: list[Node], constants: dict[str, np.ndarray]) -> list[Node]:
    """Makes an addition of constants behind a convolution or a product the bias of it."""
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    gone: set[int] = set()
    for node in nodes:
        plain = node.op in ("Conv", "MatMul") and len(node.inputs) == 2 and node.inputs[1] in constants
        after = readers.get(node.outputs[0], [])
        if not plain or len(after) != 1 or after[0].op != "Add" or id(after[0]) in gone:
            continue
        other = next((n for n in after[0].inputs if n != node.outputs[0]), "")
        weight = constants[node.inputs[1]]
        channels = weight.shape[0] if node.op == "Conv" else weight.shape[-1]
        bias = constants.get(other)
        if bias is None or bias.size != channels or weight.ndim < 2 or (node.op == "MatMul" and weight.ndim != 2):
            continue
        place = bias.ndim - (weight.ndim - 1 if node.op == "Conv" else 1)
        if place < 0 or bias.shape[place] != channels:
            continue
        constants[f"{other}_as_bias"] = bias.reshape(-1)
        node.inputs.append(f"{other}_as_bias")
        node.outputs = list(after[0].outputs)
        gone.add(id(after[0]))
    return [node for node in nodes if id(node) not in gone]


def _layer(node: Node, constants: dict[str, np.ndarray]) -> nn.Module | None:
    """The torch module of a node with constant weights; None for any other."""

    def value(position: int) -> torch.Tensor | None:
        name = node.inputs[position] if len(node.inputs) > position else ""
        return torch.from_numpy(np.array(constants[name], np.float32)) if name in constants else None

    weight = value(1)
    if weight is None:
        return None
    bias = value(2)
    if node.op in ("Conv", "ConvTranspose"):
        groups, dimensions = node.get("group", 1), weight.dim() - 2
        kinds: dict[tuple[str, int], Any] = {
            ("Conv", 1): nn.Conv1d, ("Conv", 2): nn.Conv2d, ("Conv", 3): nn.Conv3d, ("ConvTranspose", 2): nn.ConvTranspose2d,
        }  # fmt: skip
        if (node.op, dimensions) not in kinds:
            return None
        transposed = node.op == "ConvTranspose"
        channels = (
            (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
        )
        made = kinds[node.op, dimensions](
            *channels, tuple(weight.shape[2:]), stride=tuple(node.get("strides", [1] * dimensions)),
            dilation=tuple(node.get("dilations", [1] * dimensions)), groups=groups, bias=bias is not None,
        )  # fmt: skip
    elif node.op == "Gemm":
        weight = weight * node.get("alpha", 1.0)
        weight = weight if node.get("transB", 0) else weight.T.contiguous()
        bias = bias * node.get("beta", 1.0) if bias is not None else None
        bias = bias.reshape(-1).expand(weight.shape[0]).clone() if bias is not None else None
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    elif node.op == "MatMul" and weight.dim() == 2:
        weight = weight.T.contiguous()
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    elif node.op == "BatchNormalization":
        made = nn.BatchNorm2d(weight.shape[0], eps=node.get("epsilon", 1e-5))
        mean, variance = value(3), value(4)
        if bias is None or mean is None or variance is None:
            return None
        made.running_mean, made.running_var = mean, variance
    else:
        return None
    made.weight = nn.Parameter(weight)
    made.bias = nn.Parameter(bias) if bias is not None else None
    return made


def _identifier(name: str) -> str:
    """A name that torch takes for an attribute."""
    cleaned = re.sub(r"\W+", "_", name).strip("_") or "node"
    return f"n{cleaned}" if cleaned[0].isdigit() else cleaned


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
