"""The network of an ONNX graph: its layers with weights are torch modules, the rest is computed by rules.

Constants are folded by ONNX's reference evaluator; lists of sizes (``Shape``, ``Gather``, ``Concat`` …) are carried as Python
integers, so a batch that the file fixed at 1 becomes free where its operators allow it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgekit.errors import SourceError, UnsupportedOperatorError
from edgekit.rules import into

if TYPE_CHECKING:
    import onnx

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
"""How each operator is computed."""
rule = into(RULES)
"""Registers an operator's rule: from the network, the node and its input values to its output."""


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
