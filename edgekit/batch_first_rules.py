"""How each operator is computed when tensors lie elsewhere than the user's code has them; one rule per operator.

A rule takes the rewriter and a node, writes what it needs into the graph, and returns what the node stands for.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch.fx import Node

from edgekit.layout import Atom, Group, Layout, UnfitError, Value, aligned, sizes_of, viewed, whole
from edgekit.program import aten
from edgekit.rules import into

Rule = Callable[["Rewriter", Node], Value | list[Value]]
RULES: dict[Any, Rule] = {}
"""How each operator is computed on tensors that lie elsewhere; one may raise UnfitError to be left as it is written."""
rule = into(RULES)
"""Registers a rule for operators."""


class Rewriter:
    """What the nodes of a graph stand for while it is rewritten.

    Args:
        layout: Writes new nodes.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._values: dict[Node, Value | list[Value]] = {}

    def value(self, node: Any) -> Value:
        """What a node of the original graph stands for."""
        if not isinstance(node, Node):
            raise UnfitError
        known = self._values.get(node)
        return known if isinstance(known, Value) else whole(node)

    def results(self, node: Node) -> list[Value]:
        """What an operator with several results stands for."""
        known = self._values.get(node)
        if not isinstance(known, list):
            raise UnfitError
        return known

    def visit(self, node: Node) -> None:
        """Computes a node of the original graph by its rule, or as it is written."""
        self.layout.before = node
        found = RULES.get(node.target)
        # Where nothing has moved yet, only a view or a transpose begins to move something.
        moved = any(source in self._values for source in node.all_input_nodes)
        if found is not None and (moved or found in _FREE):
            try:
                self._values[node] = found(self, node)
                return
            except UnfitError:
                pass
        self.as_written(node)

    def as_written(self, node: Node) -> None:
        """Gives an operator its inputs as the user's code has them."""
        self.layout.before = node
        for source in node.all_input_nodes:
            known = self._values.get(source)
            if isinstance(known, Value):
                node.replace_input_with(source, self.layout.arrange(known, known.logical))

    def batch_first(self, value: Value, last: Group) -> tuple[Node, list[Group]]:
        """The tensor as (batch, others …, last), the others in the order in which they lie."""
        groups: list[Group] = []
        for held in value.physical:
            lead = tuple(atom for atom in held if atom not in last and atom.size != (1, 0))
            groups += [(atom,) for atom in lead if atom.is_batch]
            groups += [rest] if (rest := tuple(atom for atom in lead if not atom.is_batch)) else []
        groups.sort(key=lambda group: not group[0].is_batch)
        return self.layout.arrange(value, [*groups, last]), groups


@rule(
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default, aten.contiguous.default,
    aten.clone.default,
)  # fmt: skip
def view(rewriter: Rewriter, node: Node) -> Value:
    """The same elements in the same order."""
    return viewed(rewriter.value(node.args[0]), sizes_of(node))


@rule(aten.permute.default)
def permutation(rewriter: Rewriter, node: Node) -> Value:
    """Dimensions change places."""
    value = rewriter.value(node.args[0])
    return value.seen_as([value.logical[d] for d in node.args[1]])


@rule(aten.transpose.int)
def transposition(rewriter: Rewriter, node: Node) -> Value:
    """Two dimensions change places."""
    value = rewriter.value(node.args[0])
    order = list(range(len(value.logical)))
    a, b = node.args[1], node.args[2]
    order[a], order[b] = order[b], order[a]
    return value.seen_as([value.logical[d] for d in order])


_FREE = (view, permutation, transposition)


@rule(aten.select.int)
def selection(rewriter: Rewriter, node: Node) -> Value:
    """One position of a dimension; of the outer part of a packed one, a slice."""
    value = rewriter.value(node.args[0])
    dim = node.args[1] % len(value.logical)
    return _position(rewriter, value, dim, int(node.args[2]) % sizes_of(node.args[0])[dim][0])


@rule(aten.unbind.int)
def unbinding(rewriter: Rewriter, node: Node) -> list[Value]:
    """Every position of a dimension."""
    value = rewriter.value(node.args[0])
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(value.logical)
    return [_position(rewriter, value, dim, index) for index in range(len(node.meta["val"]))]


@rule(operator.getitem)
def item(rewriter: Rewriter, node: Node) -> Value:
    """One of an operator's several results."""
    return rewriter.results(node.args[0])[node.args[1]]


def _position(rewriter: Rewriter, value: Value, dim: int, index: int) -> Value:
    if len(value.logical[dim]) != 1 or value.logical[dim][0].is_batch:
        raise UnfitError
    (atom,) = value.logical[dim]
    rest = value.logical[:dim] + value.logical[dim + 1 :]
    if atom.size == (1, 0):
        return value.seen_as(rest)
    place = next(i for i, group in enumerate(value.physical) if atom in group)
    group = value.physical[place]
    if group == (atom,):
        chosen = rewriter.layout.call(aten.select.int, value.node, place, index)
        physical = value.physical[:place] + value.physical[place + 1 :]
    elif group[0] is atom and not any(a.is_batch for a in group):
        inner = math.prod(other.size[0] for other in group[1:])
        chosen = rewriter.layout.call(aten.slice.Tensor, value.node, place, index * inner, (index + 1) * inner)
        physical = (*value.physical[:place], group[1:], *value.physical[place + 1 :])
    else:
        raise UnfitError
    return Value(chosen, physical, rest)


@rule(
    aten.relu.default, aten.relu6.default, aten.leaky_relu.default, aten.elu.default, aten.gelu.default,
    aten.silu.default, aten.hardswish.default, aten.sigmoid.default, aten.tanh.default, aten.softplus.default,
    aten.dropout.default, aten.exp.default, aten.neg.default, aten.clamp.default, aten.hardtanh.default,
)  # fmt: skip
def element_by_element(rewriter: Rewriter, node: Node) -> Value:
    """Where the tensor lies does not matter."""
    value = rewriter.value(node.args[0])
    return replace(value, node=rewriter.layout.call(node.target, value.node, *node.args[1:], **node.kwargs))


@rule(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
def two_tensors(rewriter: Rewriter, node: Node) -> Value:
    """One is brought to where the other lies; what is broadcast, to the dimensions that it has."""
    first, second = node.args[:2]
    if not isinstance(second, Node):
        return element_by_element(rewriter, node)
    a, b = rewriter.value(first), rewriter.value(second)
    # The larger one says where both lie; of equal ones, one whose last dimension is last: what reads them wants it so.
    ranks = [(len(v.logical), _elements(v), v.physical[-1:] == v.logical[-1:]) for v in (a, b)]
    flipped = ranks[1] > ranks[0]
    if flipped:
        a, b = b, a
    missing: list[Group] = [()] * (len(a.logical) - len(b.logical))
    b = b.seen_as(missing + [tuple(atom for atom in group if atom.size != (1, 0)) for group in b.logical])
    present = [bool(group) for group in b.logical]
    whole_a = a.logical
    shared = [group for group, p in zip(whole_a, present, strict=True) if p]
    a_part, b = aligned(a.seen_as(shared), b.seen_as([group for group in b.logical if group]))
    names = _renamed(a_part, b)
    parts = iter(a_part.logical)
    a = a_part.seen_as([next(parts) if p else g for g, p in zip(whole_a, present, strict=True)])
    groups: list[Group] = []
    for group in a.physical:
        held = tuple(names[atom] for atom in group if atom in names)
        if held and len(held) != len([atom for atom in group if atom.size != (1, 0)]):
            raise UnfitError
        groups.append(held)
    other = rewriter.layout.arrange(b, groups)
    pair = (other, a.node) if flipped else (a.node, other)
    return replace(a, node=rewriter.layout.call(node.target, *pair, *node.args[2:], **node.kwargs))


def _renamed(value: Value, other: Value) -> dict[Atom, Atom]:
    """For each atom of a tensor, that of an aligned one."""
    return dict(zip(*([atom for group in v.logical for atom in group] for v in (value, other)), strict=True))


def _elements(value: Value) -> tuple[int, int]:
    """How large a tensor is: by the batch first."""
    factor, power = 1, 0
    for group in value.logical:
        for atom in group:
            factor, power = factor * atom.size[0], power + atom.size[1]
    return power, factor


@rule(aten.linear.default)
def linear(rewriter: Rewriter, node: Node) -> Value:
    """Over the last dimension; all others are batches to it."""
    value = rewriter.value(node.args[0])
    source, groups = rewriter.batch_first(value, value.logical[-1])
    made = rewriter.layout.call(aten.linear.default, source, *node.args[1:])
    last = (Atom(sizes_of(node)[-1]),)
    return Value(made, (*groups, last), (*value.logical[:-1], last))


@rule(aten.layer_norm.default)
def layer_norm(rewriter: Rewriter, node: Node) -> Value:
    """Over the last dimension alone."""
    value = rewriter.value(node.args[0])
    if len(node.args[1]) != 1:
        raise UnfitError
    source, groups = rewriter.batch_first(value, value.logical[-1])
    made = rewriter.layout.call(aten.layer_norm.default, source, *node.args[1:])
    return Value(made, (*groups, value.logical[-1]), value.logical)


@rule(aten.softmax.int)
def softmax(rewriter: Rewriter, node: Node) -> Value:
    """Along a dimension that lies by itself."""
    value = rewriter.value(node.args[0])
    group = value.logical[node.args[1]]
    if group not in value.physical:
        source, groups = rewriter.batch_first(value, group)
        value = Value(source, (*groups, group), value.logical)
    place = value.physical.index(group)
    return replace(value, node=rewriter.layout.call(aten.softmax.int, value.node, place, *node.args[2:]))


@rule(aten.mean.dim)
def mean(rewriter: Rewriter, node: Node) -> Value:
    """Over dimensions that lie by themselves."""
    value, rank = rewriter.value(node.args[0]), len(sizes_of(node.args[0]))
    keep = bool(node.args[2]) if len(node.args) > 2 else False
    dims = {d % rank for d in node.args[1] or range(rank)}
    gone = [value.logical[d] for d in sorted(dims)]
    if keep or node.kwargs or any(group not in value.physical for group in gone):
        raise UnfitError
    places = [value.physical.index(group) for group in gone]
    made = rewriter.layout.call(aten.mean.dim, value.node, places)
    physical = tuple(group for group in value.physical if group not in gone)
    return Value(made, physical, tuple(g for d, g in enumerate(value.logical) if d not in dims))


@rule(aten.cat.default)
def concatenation(rewriter: Rewriter, node: Node) -> Value:
    """Along a dimension that lies by itself; the other tensors are brought to where the first one lies."""
    values = [rewriter.value(part) for part in node.args[0]]
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(values[0].logical)
    base = max(values, key=_elements)
    if any(len(v.logical[dim]) != 1 for v in values) or base.logical[dim] not in base.physical:
        raise UnfitError
    parts: list[Node] = []
    for value in values:
        if value is base:
            parts.append(value.node)
            continue
        mine, own = base.logical, value.logical
        rest = [d for d in range(len(mine)) if d != dim]
        left, right = aligned(base.seen_as([mine[d] for d in rest]), value.seen_as([own[d] for d in rest]))
        if left.physical != base.physical:
            raise UnfitError  # the first would have to be taken apart for the second
        names = _renamed(left, right)
        names[mine[dim][0]] = own[dim][0]
        groups = [tuple(names[atom] for atom in group if atom.size != (1, 0)) for group in base.physical]
        parts.append(rewriter.layout.arrange(value, groups))
    place = base.physical.index(base.logical[dim])
    made = rewriter.layout.call(aten.cat.default, parts, place)
    joined = (Atom(sizes_of(node)[dim]),)

    def new(groups: tuple[Group, ...], at: int) -> tuple[Group, ...]:
        return (*groups[:at], joined, *groups[at + 1 :])

    return Value(made, new(base.physical, place), new(base.logical, dim))


def _product(rewriter: Rewriter, first: Value, second: Value) -> Value:
    """(batch, others …, rows, shared) by (batch, others …, shared, columns)."""
    if len(first.logical) != len(second.logical):
        raise UnfitError
    a, b = aligned(first.seen_as(first.logical[:-2]), second.seen_as(second.logical[:-2]))
    lead = [(x, y) for g, h in zip(a.logical, b.logical, strict=True) for x, y in zip(g, h, strict=True)]
    batch, others = ([pair for pair in lead if pair[0].is_batch is which] for which in (True, False))
    groups = [[pair] for pair in batch] + ([others] if others else [])
    heads = [[tuple(pair[side] for pair in group) for group in groups] for side in (0, 1)]
    rows, columns = first.logical[-2], second.logical[-1]
    # Of a tensor with itself, rows and columns would be the same atoms.
    fresh = tuple(Atom(atom.size) for atom in columns)
    left = rewriter.layout.arrange(a, [*heads[0], rows, first.logical[-1]])
    right = rewriter.layout.arrange(b, [*heads[1], second.logical[-2], columns])
    made = rewriter.layout.call(aten.matmul.default, left, right)
    return Value(made, (*heads[0], rows, fresh), (*a.logical, rows, fresh))


@rule(aten.bmm.default, aten.matmul.default)
def product(rewriter: Rewriter, node: Node) -> Value:
    """What is folded into the batch is taken out of it."""
    return _product(rewriter, rewriter.value(node.args[0]), rewriter.value(node.args[1]))


@rule(aten.baddbmm.default)
def product_and_sum(rewriter: Rewriter, node: Node) -> Value:
    """A product, and a mask that is broadcast over the batch."""
    mask = rewriter.value(node.args[0])
    rows = tuple(a for group in mask.logical[:-2] for a in group if a.size != (1, 0))
    if rows or any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        raise UnfitError
    value = _product(rewriter, rewriter.value(node.args[1]), rewriter.value(node.args[2]))
    plain = rewriter.layout.arrange(mask, mask.logical[-2:])
    return replace(value, node=rewriter.layout.call(aten.add.Tensor, value.node, plain))


@rule(aten.scaled_dot_product_attention.default)
def attention(rewriter: Rewriter, node: Node) -> Value:
    """Queries, keys and values as (batch, heads, length, width)."""
    values = [rewriter.value(source) for source in node.args[:3]]
    if any(len(v.logical) != 4 or [a.size for a in v.logical[0]] != [(1, 1)] for v in values):
        raise UnfitError
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if mask is not None:
        known = rewriter.value(mask)
        if any(atom.is_batch for group in known.logical for atom in group):
            raise UnfitError
        mask = rewriter.layout.arrange(known, known.logical)
    sources = [rewriter.layout.arrange(value, value.logical) for value in values]
    kwargs = {name: value for name, value in node.kwargs.items() if name != "attn_mask"}
    rest = (mask, *node.args[4:]) if mask is not None else node.args[3:]
    made = rewriter.layout.call(aten.scaled_dot_product_attention.default, *sources, *rest, **kwargs)
    query, value = values[0], values[2]
    logical = (*query.logical[:3], value.logical[3])
    return Value(made, logical, logical)
