"""The integer grids of ncnn, and how a program is moved to them.

ncnn quantizes what a weight is applied to, by a factor alone: there are no zero points. After a ReLU half of such a grid is
never used. Such a tensor x, in [0, 2c], is therefore handed on as s (x - c), with s = -1 or 1: the layer that makes it is
multiplied by s and shifted through its bias, the ReLU becomes a clamp, layers that read it are multiplied by s and take
c times the sum of their weights into their biases, and pad with -s c. In a residual addition the layer that feeds it takes up
the difference of the two shifts. That is the bundle's own grid, all but its largest level, at no cost in time.

s is -1 wherever it can be: ncnn (20261020) pads int8 in packs of eight with a wrong value when it is negative. Through a max
pooling it has to be 1, and readers must not pad. In the program a shifted tensor is read with a zero point of -127.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
    aten.pad.default,
)  # fmt: skip
# Few values come out of them: these are shifted back.
_REDUCTIONS = (aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default)
_LARGEST = 3.0e38


@dataclass
class Shifted:
    """Tensors that are shifted together.

    Attributes:
        relus: The activations that make them.
        tensors: These and what hands their values on.
        pairs: The dequantize nodes that integer layers read.
        sums: Residual additions that read them.
        reductions: Means of them.
        negated: Whether s is -1.
    """

    relus: list[Node] = field(default_factory=list)
    tensors: set[Node] = field(default_factory=set)
    pairs: list[Node] = field(default_factory=list)
    sums: list[Node] = field(default_factory=list)
    reductions: list[Node] = field(default_factory=list)
    negated: bool = False

    @property
    def sign(self) -> int:
        """s."""
        return -1 if self.negated else 1

    @property
    def offset(self) -> float:
        """c: half of the range; 0 where no integer layer reads it."""
        return float(self.pairs[0].args[1]) * SYMMETRIC_MAX if self.pairs else 0.0  # type: ignore[arg-type]


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
            # The bundle's own grid, but for the largest of its 256 levels: one step of the symmetric grid is 255/127 of it.
            grid = (float(node.args[1]) * SYMMETRIC_MAX / 255, -SYMMETRIC_MAX, *node.args[3:])  # type: ignore[arg-type]
            pair.args, node.args = (pair.args[0], *grid), (pair, *grid)
    module.recompile()


def shifted(module: GraphModule) -> list[Shifted]:
    """The groups that :func:`to_symmetric` has shifted."""
    return _groups(module, lambda node: int(node.args[2]) == -SYMMETRIC_MAX)


def shown(module: GraphModule, groups: list[Shifted]) -> dict[str, tuple[int, float]]:
    """What the file will hold in place of a tensor x, by the name of the node: s and c of s (x - c)."""
    found: dict[str, tuple[int, float]] = {}
    for group in groups:
        found |= {node.name: (group.sign, group.offset) for node in (*group.tensors, *group.pairs)}
        for relu in group.relus:
            producer, other = _made_of(relu, weight_nodes(module))
            found[producer.name] = (group.sign, group.offset - _offset_of(other, groups))
            if group.negated and _is_layer_alone(other, weight_nodes(module)):
                found[other.name] = (-1, 0.0)
    return found


def move(module: GraphModule, groups: list[Shifted]) -> set[str]:
    """Writes the shifts into weights, biases and activations, in place, for the groups found in the module.

    Args:
        module: The program with its quantize/dequantize nodes.
        groups: What :func:`shifted` gave for it.

    Returns:
        The layers whose padding must be c, 127 when quantized.
    """
    padded: set[str] = set()
    layers = weight_nodes(module)
    for group in groups:
        c, sign = group.offset, group.sign
        for relu in group.relus:
            producer, other = _made_of(relu, layers)
            bias, _ = _bias_and_sums(module, producer)
            _put(module, producer, sign * (bias + _offset_of(other, groups) - c), sign)
            if group.negated and _is_layer_alone(other, layers):
                _put(module, other, -_bias_and_sums(module, other)[0], -1)
            ends = sorted(sign * (end - c) for end in (0.0, _upper_end(relu)))
            relu.target, relu.args, relu.kwargs = aten.clamp.default, (relu.args[0], *ends), {}
        for node in group.tensors:
            if node.target is aten.pad.default:
                node.args, node.kwargs = (*node.args[:2], "constant", -sign * c), {}
        for pair in group.pairs:
            for reader in list(pair.users):
                # w x = w c + w (x - c), with the sum of its own weights, before they are negated.
                bias, sums = _bias_and_sums(module, reader)
                _put(module, reader, bias + c * sums, sign)
                if group.negated:
                    padded.add(reader.name)
        for node in group.reductions:
            with module.graph.inserting_after(node):
                negative = module.graph.call_function(aten.mul.Tensor, (node, float(sign)))
            with module.graph.inserting_after(negative):
                back = module.graph.call_function(aten.add.Tensor, (negative, c))
            back.meta["val"] = negative.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(back, delete_user_cb=lambda user, first=negative: user is not first)
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
    """Sets of tensors after ReLUs that can be shifted, whose pairs are all chosen; each has one step."""
    layers = weight_nodes(module)
    groups: list[Shifted] = []
    for start in module.graph.nodes:
        if _is_root(start, layers) and not any(start in group.tensors for group in groups):
            groups.append(_closure(start, layers))
    found = []
    for linked in _linked(groups):
        readers = [layer for group in linked for pair in group.pairs for layer in pair.users]
        pooled = any(_pools(node) for group in linked for node in group.tensors)
        whole = bool(readers) and all(group.relus for group in linked) and not (pooled and any(map(_padding, readers)))
        whole = whole and all(pair.target is DQ and chosen(pair) for group in linked for pair in group.pairs)
        whole = whole and all(len({pair.args[1] for pair in group.pairs}) <= 1 for group in linked)
        tensors = {node for group in linked for node in group.tensors}
        for relu in [relu for group in linked for relu in group.relus]:
            _, other = _made_of(relu, layers)
            # What is added must be negated, too.
            whole &= pooled or other is None or other in tensors or _is_layer_alone(other, layers)
        if whole:
            for group in linked:
                group.negated = not pooled
            found += linked
    return found


def _closure(start: Node, layers: list[Node]) -> Shifted:
    """Everything that takes the shift of one activation's output; without an activation where that can't be."""
    group, waiting, whole = Shifted(tensors={start}), [start], True
    while waiting:
        node = waiting.pop()
        around: list[Node] = []
        if _is_root(node, layers):
            group.relus.append(node)
        elif node.target in _CARRIERS:
            around = [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), torch.Tensor)]
        else:
            whole = False
        for user in node.users:
            if user.target is Q:
                group.pairs += [pair for pair in user.users if pair not in group.pairs]
            elif user.target in _CARRIERS and _pads_with_zero(user):
                around.append(user)
            elif user.target in _REDUCTIONS and not _pads_means(user):
                group.reductions.append(user)
            elif user.target is aten.add.Tensor and _is_other_of_a_sum(node, user, layers):
                group.sums.append(user)
            else:
                whole &= user.target is aten.sym_size.int
        for other in around:
            if other not in group.tensors:
                group.tensors.add(other)
                waiting.append(other)
    if not whole:
        group.relus = []
    return group


def _linked(groups: list[Shifted]) -> list[list[Shifted]]:
    """The groups that are added to each other, together."""
    parts: list[list[Shifted]] = [[group] for group in groups]
    for group in groups:
        for total in group.sums:
            relu = next(iter(total.users))
            mine = next(part for part in parts if group in part)
            other = next((part for part in parts if any(relu in one.tensors for one in part)), None)
            if other is None:
                group.relus = []  # the sum is not shifted
            elif other is not mine:
                mine += other
                parts.remove(other)
    return parts


def _is_root(node: Node, layers: list[Node]) -> bool:
    """An activation whose smallest value is 0, behind a layer or a sum with a layer that nothing else reads."""
    if node.target not in _RELUS or not isinstance(node.args[0], Node):
        return False
    low = node.args[1] if node.target in (aten.hardtanh.default, aten.clamp.default) and len(node.args) > 1 else 0
    if node.target is aten.hardtanh.default and len(node.args) < 2:
        low = -1
    return low == 0 and _made_of(node, layers)[0] is not None


def _made_of(relu: Node, layers: list[Node]) -> tuple[Any, Any]:
    """The layer whose bias shifts an activation, and what is added to it; None where there is none."""
    source: Any = relu.args[0]
    if _is_layer_alone(source, layers):
        return source, None
    if source.target is aten.add.Tensor and len(source.users) == 1 and len(source.args) == 2 and not source.kwargs:
        for first, second in (source.args, source.args[::-1]):
            if _is_layer_alone(first, layers) and isinstance(second, Node):
                return first, second
    return None, None


def _is_layer_alone(node: Any, layers: list[Node]) -> bool:
    return isinstance(node, Node) and node in layers and len(node.users) == 1


def _is_other_of_a_sum(node: Node, total: Node, layers: list[Node]) -> bool:
    users = list(total.users)
    return len(users) == 1 and users[0].target in _RELUS and _made_of(users[0], layers)[1] is node


def _offset_of(node: Any, groups: list[Shifted]) -> float:
    """The shift of a tensor that is added; 0 where it has none."""
    return next((group.offset for group in groups if node in group.tensors), 0.0)


def _upper_end(relu: Node) -> float:
    if relu.target is aten.relu6.default:
        return 6.0
    high = relu.args[2] if len(relu.args) > 2 else None
    return _LARGEST if high is None else float(high)  # type: ignore[arg-type]


def _pools(node: Node) -> bool:
    """Whether a node takes the largest of several values."""
    kernel: Any = node.args[1] if node.target is aten.max_pool2d.default else (1,)
    return max(kernel) > 1


def _pads_means(node: Node) -> bool:
    return node.target is aten.avg_pool2d.default and len(node.args) > 3 and any(node.args[3])  # type: ignore[arg-type]


def _pads_with_zero(node: Node) -> bool:
    """Whether a padding is one with zeros; true for any other node."""
    if node.target is not aten.pad.default:
        return True
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return (len(node.args) < 3 or node.args[2] == "constant") and not value


def _padding(layer: Node) -> bool:
    """Whether a convolution pads."""
    padding: Any = layer.args[4] if layer.target is aten.conv2d.default and len(layer.args) > 4 else (0,)
    return any(padding)
