"""The integer grids of ncnn, and how a program is moved to them.

ncnn quantizes what a weight is applied to, by a factor alone: there are no zero points. After a ReLU half of such a grid is
never used. Where nothing but integer layers reads such a tensor x, in [0, 2c], it is therefore handed on as c - x: its
producer's weights are negated, its bias is taken from c, and the result clamped to [-c, c]; its readers' weights are negated,
c times the sum of their weights is added to their biases, and they pad with c. That is the grid with all 255 levels, at no
cost in time. Through a max pooling x - c is handed on instead, to readers that don't pad: ncnn (20261020) pads int8 in packs
of eight with a wrong value when it is negative. In the program both are a zero point of -127.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.rewrite import finish
from edgekit.export.lowering import DQ, Q, dequantized_weight, weight_nodes
from edgekit.program import aten, attribute, set_attribute

# ncnn's quantize layer: round(x * scale), in [-127, 127].
SYMMETRIC_MAX = 127
_RELUS = (aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default)
# They hand values on: what is shifted before them is shifted behind them. Max pooling pads with the smallest number there is.
_CARRIERS = (
    aten.max_pool2d.default, aten.cat.default, aten.view.default, aten.reshape.default, aten.flatten.using_ints,
)  # fmt: skip


@dataclass(frozen=True)
class Shifted:
    """Tensors that are shifted together.

    Attributes:
        relus: The activations that make them.
        pairs: The dequantize nodes that integer layers read.
        negated: Whether c - x is handed on; otherwise x - c.
    """

    relus: tuple[Node, ...]
    pairs: tuple[Node, ...]
    negated: bool

    @property
    def sign(self) -> int:
        """s of what is handed on, s (x - c)."""
        return -1 if self.negated else 1

    @property
    def offset(self) -> float:
        """c: half of the range."""
        return float(self.pairs[0].args[1]) * SYMMETRIC_MAX  # type: ignore[arg-type]


def to_symmetric(module: GraphModule, in_float: list[Node]) -> None:
    """Moves activations to the grid that ncnn computes on, in place: only what a weight is applied to.

    Args:
        module: The quantized program.
        in_float: Layers that ncnn will compute in float.
    """
    quantized_layers = [node for node in weight_nodes(module) if node not in in_float]
    pairs = {n: n.args[0] for n in module.graph.nodes if n.target is DQ}
    for node, q in pairs.items():
        source, scale, zero_point = q.args[0], float(q.args[1]), int(q.args[2])
        into_weights = [user for user in node.users if user in quantized_layers and user.args[0] is node]
        if into_weights:
            step = scale * max(127 - zero_point, zero_point + 128) / SYMMETRIC_MAX
            bounds = (step, 0, -SYMMETRIC_MAX, SYMMETRIC_MAX, q.args[5])
            with module.graph.inserting_after(node):
                new_q = module.graph.call_function(Q, (source, *bounds))
            with module.graph.inserting_after(new_q):
                new_dq = module.graph.call_function(DQ, (new_q, *bounds))
            new_q.meta["val"], new_dq.meta["val"] = q.meta["val"], node.meta["val"]
            for user in into_weights:
                user.update_arg(0, new_dq)
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        if not q.users:
            module.graph.erase_node(q)
    finish(module)
    for group in _groups(module, lambda node: int(node.args[2]) == 0):
        for node in group.pairs:
            pair: Any = node.args[0]
            # The same range [0, 127 step] on 255 levels.
            grid = (float(node.args[1]) / 2, -SYMMETRIC_MAX, *node.args[3:])  # type: ignore[arg-type]
            pair.args, node.args = (pair.args[0], *grid), (pair, *grid)
    module.recompile()


def shifted(module: GraphModule) -> list[Shifted]:
    """The groups that :func:`to_symmetric` has shifted."""
    return _groups(module, lambda node: int(node.args[2]) == -SYMMETRIC_MAX)


def move(module: GraphModule, groups: list[Shifted]) -> dict[str, float]:
    """Writes the shifts into weights, biases and activations, in place, for the groups found in the module.

    Args:
        module: The program with its quantize/dequantize nodes.
        groups: What :func:`shifted` gave for it.

    Returns:
        The layers whose padding must be c, 127 when quantized, with it.
    """
    padded = {}
    for group in groups:
        c, sign = group.offset, group.sign
        for relu in group.relus:
            producer: Any = relu.args[0]
            bias, _ = _bias_and_sums(module, producer)
            _put(module, producer, sign * (bias - c), sign)
            relu.target, relu.args, relu.kwargs = aten.clamp.default, (producer, -c, c), {}
        for pair in group.pairs:
            for reader in list(pair.users):
                # w x = w c + w (x - c), with the sum of its own weights, before they are negated.
                bias, sums = _bias_and_sums(module, reader)
                _put(module, reader, bias + c * sums, sign)
                if group.negated:
                    padded[reader.name] = c
    module.recompile()
    return padded


def _bias_and_sums(module: GraphModule, layer: Node) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's bias, and the sum of the weights of each of its channels; float64, shape (channels,)."""
    weight: Any = layer.args[1]
    floats = attribute(module, str(weight.target)).detach() if _is_float(weight) else dequantized_weight(module, weight)
    sums = floats.double().flatten(1).sum(1)
    bias: Any = layer.args[2] if len(layer.args) > 2 else None
    return attribute(module, str(bias.target)).detach().double() if bias is not None else torch.zeros_like(sums), sums


def _put(module: GraphModule, layer: Node, bias: torch.Tensor, sign: int) -> None:
    """Gives a layer this bias, and the negative of its weight if the sign is negative."""
    new_bias = _new_attribute(module, layer, "bias", torch.nn.Parameter(bias.to(torch.float32)))
    layer.args = (*layer.args[:2], new_bias, *layer.args[3:])
    if sign > 0:
        return
    weight: Any = layer.args[1]
    if _is_float(weight):
        floats = attribute(module, str(weight.target)).detach()
        layer.update_arg(1, _new_attribute(module, layer, "weight", torch.nn.Parameter(-floats)))
        return
    values = _new_attribute(module, layer, "int8", -attribute(module, str(weight.args[0].target)))
    with module.graph.inserting_before(layer):
        negated = module.graph.call_function(weight.target, (values, *weight.args[1:]))
    negated.meta["val"] = weight.meta["val"]
    layer.update_arg(1, negated)


def _is_float(weight: Node) -> bool:
    return weight.op == "get_attr"


def _new_attribute(module: GraphModule, layer: Node, kind: str, value: torch.Tensor) -> Node:
    """A node that reads a new tensor, for the layer alone: what it had may be shared."""
    name, count = f"{layer.name}_moved_{kind}", 0
    while hasattr(module, name):
        count += 1
        name = f"{layer.name}_moved_{kind}_{count}"
    set_attribute(module, name, value)
    with module.graph.inserting_before(layer):
        node = module.graph.get_attr(name)
    node.meta["val"] = value.detach().to("meta")
    return node


def _groups(module: GraphModule, chosen: Callable[[Node], bool]) -> list[Shifted]:
    """Sets of tensors after ReLUs that nothing but integer layers reads, whose pairs are chosen and share one step."""
    layers = weight_nodes(module)
    found: list[Shifted] = []
    seen: set[Node] = set()
    for start in module.graph.nodes:
        if start in seen or not _is_relu_of_a_layer(start, layers):
            continue
        tensors, pairs, whole = {start}, [], True
        waiting = [start]
        while waiting:
            node = waiting.pop()
            if node.target in _CARRIERS:
                around = [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), torch.Tensor)]
            else:
                whole &= _is_relu_of_a_layer(node, layers)
                around = []
            for user in node.users:
                if user.target is Q:
                    pairs += [pair for pair in user.users if pair not in pairs]
                elif user.target in _CARRIERS:
                    around.append(user)
                elif user.target is not aten.sym_size.int:
                    whole = False
            for other in around:
                if other not in tensors:
                    tensors.add(other)
                    waiting.append(other)
        seen |= tensors
        whole = whole and bool(pairs) and all(pair.target is DQ and chosen(pair) for pair in pairs)
        readers = [layer for pair in pairs for layer in pair.users]
        pooled = any(node.target is aten.max_pool2d.default for node in tensors)
        pads = any(_padding(layer) for layer in readers)
        whole = whole and not (pads and pooled)
        if whole and len({pair.args[1] for pair in pairs}) == 1:
            relus = tuple(node for node in tensors if node.target in _RELUS)
            found.append(Shifted(relus, tuple(pairs), negated=not pooled))
    return found


def _is_relu_of_a_layer(node: Node, layers: list[Node]) -> bool:
    """An activation whose smallest value is 0, behind a layer that nothing else reads."""
    if node.target not in _RELUS or not isinstance(node.args[0], Node):
        return False
    low = node.args[1] if node.target in (aten.hardtanh.default, aten.clamp.default) and len(node.args) > 1 else 0
    if node.target is aten.hardtanh.default and len(node.args) < 2:
        low = -1
    return low == 0 and node.args[0] in layers and len(node.args[0].users) == 1


def _padding(layer: Node) -> bool:
    """Whether a convolution pads."""
    padding: Any = layer.args[4] if layer.target is aten.conv2d.default and len(layer.args) > 4 else (0,)
    return any(padding)
