"""Blocks that a network can do without: parts between two values of the same shape through which everything flows.

A value that every path from the input to the output passes is a cut of the graph. Between two cuts a and b of the same
shape lies a part that nothing outside reads, so b can be replaced by a. A residual block is one whose end is the sum of a
and what the part computes: without it the shortcut is left, as in stochastic depth (Huang et al., ECCV 2016, section 3), and
residual networks lose little by it (Veit et al., NIPS 2016, section 4.1). A layer of a plain network counts where it
begins and ends behind the same operator, a ReLU for example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.rewrite import finish
from edgekit.cost import cost_of
from edgekit.program import aten, input_node, layer_name, output_node, shape_of

# Computed twice they give what they gave once, so a shortcut behind one needs no other.
_IDEMPOTENT = (aten.relu.default, aten.relu6.default)


@dataclass(frozen=True)
class Block:
    """A part of a graph that can be left out.

    Attributes:
        entry: Name of the node that it begins behind.
        exit: Name of its last node, in whose place the entry can be read.
        nodes: Names of all its nodes, the exit included.
        layers: Its layers with weights.
        macs: Multiply-accumulates for one input.
        parameters: Elements of its weights.
        bytes: What its weights take, with the statistics of batch norm.
    """

    entry: str
    exit: str
    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    macs: int
    parameters: int
    bytes: int


def find_blocks(module: GraphModule) -> list[Block]:
    """The blocks of a graph that don't overlap, in order; residual blocks before layers of plain networks.

    Args:
        module: A graph whose nodes carry ``meta["val"]``.
    """
    path = _on_the_way(module)
    place = {node: position for position, node in enumerate(path)}
    cuts = _cuts(path, place)
    costs = {layer.name: layer for layer in cost_of(module).layers}
    taken: set[int] = set()
    found: list[tuple[int, Block]] = []

    def add(first: Node, last: Node) -> None:
        inside = range(place[first] + 1, place[last] + 1)
        nodes = [path[position] for position in inside]
        heavy = [node for node in nodes if node.name in costs and costs[node.name].macs]
        if not heavy or taken.intersection(inside) or not _closed(nodes):
            return
        taken.update(inside)
        block = Block(
            entry=first.name,
            exit=last.name,
            nodes=tuple(node.name for node in nodes),
            layers=tuple(layer_name(node) for node in heavy),
            macs=sum(costs[node.name].macs for node in nodes if node.name in costs),
            parameters=sum(costs[node.name].parameters for node in nodes if node.name in costs),
            bytes=sum(costs[node.name].bytes for node in nodes if node.name in costs),
        )
        found.append((place[first], block))

    for node in cuts:
        if node.target is aten.add.Tensor and not node.kwargs:
            ends = [a for a in node.args[:2] if isinstance(a, Node) and a in cuts and _alike(a, node)]
            if len(ends) == 1:
                add(ends[0], _with_its_activation(ends[0], node))
    plain = [(a, b) for a in cuts if (b := _next_alike(a, cuts, place)) is not None]
    # Behind an operator without weights first: what a convolution gives belongs to the normalization behind it.
    for a, b in sorted(plain, key=lambda pair: (_has_weights(pair[0]), place[pair[0]])):
        add(a, b)
    return [block for _, block in sorted(found, key=lambda item: item[0])]


def remove_blocks(module: GraphModule, blocks: Sequence[Block]) -> None:
    """Takes blocks out of the graph that they were found in, in place."""
    nodes = {node.name: node for node in module.graph.nodes}
    order = {name: position for position, name in enumerate(nodes)}
    # From the last to the first, so that the entry of each is still there.
    for block in sorted(blocks, key=lambda b: order[b.exit], reverse=True):
        entry, inside = nodes[block.entry], {nodes[name] for name in block.nodes}
        for node in inside:
            for size in [user for user in node.users if not _is_value(user) and user.op != "output"]:
                size.replace_input_with(node, entry)
        nodes[block.exit].replace_all_uses_with(entry)
        for name in reversed(block.nodes):
            module.graph.erase_node(nodes[name])
    finish(module)


def _on_the_way(module: GraphModule) -> list[Node]:
    """The nodes with values on a path from the input to the output, in order."""
    start, end = input_node(module), output_node(module)
    reached = {start}
    for node in module.graph.nodes:
        if _is_value(node) and any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    needed = {end}
    for node in reversed(list(module.graph.nodes)):
        if node in needed:
            needed.update(source for source in node.all_input_nodes if source in reached)
    return [node for node in module.graph.nodes if node in reached and node in needed]


def _is_value(node: Node) -> bool:
    """Whether a node computes tensors, and not the size of one."""
    value = node.meta.get("val")
    return node.op == "call_function" and isinstance(value, (torch.Tensor, list, tuple))


def _cuts(path: list[Node], place: dict[Node, int]) -> dict[Node, None]:
    """The nodes over which no edge leads: every path passes them. In order."""
    cuts: dict[Node, None] = {}
    furthest = 0
    for position, node in enumerate(path):
        if furthest <= position and isinstance(node.meta.get("val"), torch.Tensor):
            cuts[node] = None
        furthest = max([furthest, *(place[user] for user in node.users if user in place)])
    return cuts


def _alike(a: Node, b: Node) -> bool:
    first, second = a.meta.get("val"), b.meta.get("val")
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        return False
    return shape_of(a) == shape_of(b) and shape_of(a)[:1] == (-1,) and first.dtype == second.dtype


def _next_alike(node: Node, cuts: dict[Node, None], place: dict[Node, int]) -> Node | None:
    later = (other for other in cuts if place[other] > place[node])
    return next(
        (o for o in later if o.target is node.target and _settings(o) == _settings(node) and _alike(node, o)), None
    )


def _settings(node: Node) -> list[Any]:
    """The constants of an operator without weights; those of one with weights say nothing about its values."""
    return [] if _has_weights(node) else [a for a in node.args if not isinstance(a, (Node, list, tuple))]


def _has_weights(node: Node) -> bool:
    return any(source.op == "get_attr" for source in node.all_input_nodes)


def _with_its_activation(entry: Node, last: Node) -> Node:
    users = list(last.users)
    if len(users) == 1 and users[0].target in _IDEMPOTENT and entry.target is users[0].target:
        return users[0]
    return last


def _closed(nodes: list[Node]) -> bool:
    """Whether a part without its last node is read by nobody outside; the size of its batch, which is everyone's, may be."""
    inside = set(nodes)
    for node in nodes[:-1]:
        for user in node.users:
            if user in inside:
                continue
            is_batch = user.target is aten.sym_size.int and user.args[1] == 0 and shape_of(node)[:1] == (-1,)
            if not is_batch:
                return False
    return True
