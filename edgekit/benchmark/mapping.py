"""Which layer of a program each operator of a runtime computes.

Runtimes rename, fuse, split and reorder. Operators that multiply are recognized first: by the tensor that the file's proof
found to hold that layer's value, by the names of its weights, by its own name. All others are then placed by where they
stand: the multiplying layers next before them, and what kind of operator they are. What still matches nothing is put
under its kind in brackets, so that every operator is somewhere, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from edgekit.cost import LayerCost, cost_of, elements
from edgekit.export.lowering import DQ, DQ_CHANNEL, Q, weight_nodes
from edgekit.program import aten, layer_name
from edgekit.runtimes.profile import Operator

LAYOUT, QUANTIZE, OTHER = "(layout)", "(quantize)", "(other)"
_INPUT = -1
# First match decides: QLinearConv multiplies, QuantizeLinear does not.
_KINDS = (
    ("quantize", r"^(de)?quantize|^(quantized_decomposed\.)?(de)?quantize|^convert|^requantize|^dynamicquantize|^fakequantize"),
    ("multiply", r"conv|gemm|matmul|matrix multiply|attention|fully.?connected|innerproduct|^linear|^bmm|^mm\b|addmm|lstm|gru"),
    ("activation", r"relu|clamp|clip|sigmoid|swish|gelu|silu|tanh|^elu|logistic|prelu"),
    ("pool", r"pool|mean|reduce|reduction|^sum"),
    ("softmax", r"softmax"),
    ("norm", r"norm"),
    ("concatenate", r"concat|^cat\b"),
    ("pad", r"pad"),
    ("layout", r"shuffle|transpose|permute|flatten|squeeze|reorder|^split$|^copy|identity|^view|shape|cast|contiguous|expand"),
    ("resize", r"upsample|resize|interp"),
    ("slice", r"slice|crop|split|chunk|getitem|gather|select"),
    ("elementwise", r"add|sub|mul|div|binaryop|eltwise|minimum|maximum|unaryop|^scale"),
)  # fmt: skip
_JOINS = {
    aten.batch_norm.default, aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default,
    aten.leaky_relu.default, aten.elu.default, aten.gelu.default, aten.silu.default, aten.sigmoid.default,
    aten.tanh.default, aten.hardswish.default, aten.hardsigmoid.default,
}  # fmt: skip


def kind_of(operator_type: str) -> str:
    """What an operator does, of what any runtime or the program calls it; ``other`` for what is not known.

    Example:
        >>> kind_of("QLinearConv"), kind_of("Mean (ND) Reduce2"), kind_of("adaptive_avg_pool2d.default")
        ('multiply', 'pool', 'pool')
    """
    text = operator_type.lower()
    return next((kind for kind, pattern in _KINDS if re.search(pattern, text)), "other")


@dataclass
class Group:
    """A layer with what runtimes merge into it: its batch norm and its activation.

    Attributes:
        cost: Of the layer itself.
        nodes: Names of all its nodes in the program.
        reads: Elements that it reads for one input, its weights not counted.
        writes: Elements that it writes for one input.
        before: Positions of the multiplying groups next before it; -1 for the program's input.
    """

    cost: LayerCost
    nodes: list[str]
    reads: int = 0
    writes: int = 0
    before: frozenset[int] = frozenset()

    @property
    def kind(self) -> str:
        """What it does."""
        return "multiply" if self.cost.macs else kind_of(self.cost.op)


@dataclass
class Program:
    """A program's groups in order, and in which one each node is.

    Attributes:
        groups: In order.
        place: For each node of a group its position.
        weighted: Positions of the convolutions and linear layers, in the order in which a file's proof lists them.
        paths: Their names there.
    """

    groups: list[Group]
    place: dict[str, int]
    weighted: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


def program_groups(module: GraphModule) -> Program:
    """The layers of a program, each with the batch norm and the activation that follow it alone."""
    costs = {layer.name: layer for layer in cost_of(module).layers}
    groups: list[Group] = []
    place: dict[str, int] = {}
    before: dict[str, frozenset[int]] = {}
    for node in module.graph.nodes:
        # Weights, and what is computed of weights alone, come of no input.
        sources = [one for one in map(_data, node.all_input_nodes) if before.get(one.name)]
        above = frozenset().union(*(before[source.name] for source in sources))
        if node.op == "placeholder":
            before[node.name] = frozenset({_INPUT})
            continue
        before[node.name] = above
        if node.name not in costs:
            continue
        source = next((one for one in sources if one.name in place), None)
        if node.target in _JOINS and len(sources) == 1 and source is not None and _alone(source, node):
            groups[place[source.name]].nodes.append(node.name)
            place[node.name] = place[source.name]
            continue
        place[node.name] = len(groups)
        groups.append(Group(costs[node.name], [node.name], sum(map(elements, sources)), elements(node), above))
        if groups[-1].kind == "multiply":
            before[node.name] = frozenset({place[node.name]})
    weighted = weight_nodes(module)
    return Program(groups, place, [place[n.name] for n in weighted], [layer_name(n) for n in weighted])


def _data(node: Node) -> Node:
    """The node whose value passes through quantize and dequantize nodes."""
    while node.target in (Q, DQ, DQ_CHANNEL) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _alone(source: Node, reader: Node) -> bool:
    waiting = list(source.users)
    readers = set()
    while waiting:
        user = waiting.pop()
        if user.target in (Q, DQ):
            waiting += list(user.users)
        else:
            readers.add(user)
    return readers == {reader}


def map_nodes(program: Program, operators: Sequence[Operator]) -> list[int | str]:
    """For each node of the program that was run: the position of its group, or where else it is put."""
    return [program.place.get(op.name, _elsewhere(kind_of(op.type))) for op in operators]


def map_operators(
    program: Program, operators: Sequence[Operator], inputs: Iterable[str], clues: Mapping[str, int]
) -> list[int | str]:
    """For each operator of a file the position of the group that it computes, or where else it is put.

    Args:
        program: The groups.
        operators: As executed.
        inputs: Names of the file's inputs.
        clues: Positions of groups by the names of tensors, weights or operators that belong to them.
    """
    kinds = [kind_of(operator.type) for operator in operators]
    found: list[int | str | None] = [None] * len(operators)
    taken: set[int] = set()
    for position, (operator, kind) in enumerate(zip(operators, kinds, strict=True)):
        if kind == "multiply":
            known = next((clues[name] for name in _names(operator) if name in clues), None)
            if known is not None and known not in taken:
                found[position] = known
                taken.add(known)
    _in_order(program, kinds, found, taken)
    maker = {tensor: index for index, operator in enumerate(operators) for tensor in operator.outputs}
    readers: dict[str, list[int]] = {}
    for index, operator in enumerate(operators):
        for tensor in operator.inputs:
            readers.setdefault(tensor, []).append(index)
    above: dict[str, frozenset[int]] = {name: frozenset({_INPUT}) for name in inputs}
    for position, (operator, kind) in enumerate(zip(operators, kinds, strict=True)):
        upstream = frozenset().union(*(above.get(tensor, frozenset()) for tensor in operator.inputs))
        if found[position] is None:
            behind = _behind(operator, operators, kinds, maker)
            source = None if behind is None else found[behind]
            read_by = [index for tensor in operator.outputs for index in readers.get(tensor, ())]
            following = found[read_by[0]] if len(read_by) == 1 and kinds[read_by[0]] == "multiply" else None
            # A sum with a constant is a bias where the program has no sum of its own there.
            data = [tensor for tensor in operator.inputs if tensor in maker or tensor in above]
            joins = kind == "activation" or (kind == "elementwise" and len(data) == 1)
            found[position] = _place(program, kind, upstream, source if joins else None, following, taken)
        place = found[position]
        mine = upstream
        if kind == "multiply" and isinstance(place, int):
            mine = frozenset({place}).union(*(above.get(tensor, frozenset()) for tensor in _addends(operator)))
        above |= dict.fromkeys(operator.outputs, mine)
    return [OTHER if place is None else place for place in found]


def _behind(
    operator: Operator, operators: Sequence[Operator], kinds: Sequence[str], maker: Mapping[str, int]
) -> int | None:
    """The operator whose value this one reads first, whatever quantizes or turns it on its way."""
    while True:
        position = next((maker[tensor] for tensor in operator.inputs if tensor in maker), None)
        if position is None or kinds[position] not in ("quantize", "layout"):
            return position
        operator = operators[position]


def _addends(operator: Operator) -> tuple[str, ...]:
    """What ONNX Runtime's fused convolution adds to its sum: its fourth input."""
    return operator.inputs[3:4] if operator.type in ("Conv", "FusedConv") else ()


def _names(operator: Operator) -> Iterable[str]:
    yield from operator.outputs
    # The first input is data: what it names is the layer before.
    yield from operator.inputs[1:]
    # ONNX Runtime calls a node after its output or first name, with a suffix for each pass that made it anew.
    plain = re.sub(r"(_nchwc|_token_\d+|_fused)+$", "", operator.name)
    yield from (operator.name, plain, plain.removeprefix("node_"))


def _in_order(program: Program, kinds: Sequence[str], found: list[int | str | None], taken: set[int]) -> None:
    """Multiplying operators without a clue, where as many layers are left: both keep the order of the program."""
    left = [index for index, kind in enumerate(kinds) if kind == "multiply" and found[index] is None]
    open_groups = [i for i, group in enumerate(program.groups) if group.kind == "multiply" and i not in taken]
    if len(left) == len(open_groups):
        for index, place in zip(left, open_groups, strict=True):
            found[index] = place
            taken.add(place)


def _place(
    program: Program,
    kind: str,
    upstream: frozenset[int],
    source: int | str | None,
    following: int | str | None,
    taken: set[int],
) -> int | str:
    if kind in ("layout", "quantize"):
        return _elsewhere(kind)
    best = _likeliest(program, kind, upstream, taken)
    if best is None and isinstance(source, int):
        return source
    if best is None and kind == "pad" and isinstance(following, int):
        return following
    if best is None and kind == "pool":  # ncnn's form of a strided slice
        best = _likeliest(program, "slice", upstream, taken)
    if best is None:
        return _elsewhere(kind)
    taken.add(best)
    return best


def _likeliest(program: Program, kind: str, upstream: frozenset[int], taken: set[int]) -> int | None:
    """The group of a kind whose layers before it are most like these; of equals one that has no operator yet."""
    of_kind = [position for position, group in enumerate(program.groups) if group.kind == kind]
    if len(of_kind) == 1 and of_kind[0] not in taken:
        return of_kind[0]
    scores = []
    for position, group in enumerate(program.groups):
        if group.kind == kind and group.before & upstream:
            likeness = len(group.before & upstream) / len(group.before | upstream)
            scores.append((likeness, position not in taken, -position))
    if not scores:
        return None
    likeness, _, position = max(scores)
    # Fused sums hide a layer before; a group that shares less than half is another one.
    return -position if likeness >= 0.5 else None


def _elsewhere(kind: str) -> str:
    return {"layout": LAYOUT, "quantize": QUANTIZE, "slice": LAYOUT, "pad": LAYOUT}.get(kind, OTHER)
