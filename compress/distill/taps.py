"""Looking into a network: where, by names or by the shape of its graph, and how, by a copy of the graph with more outputs."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from edgekit.compress.distill.method import Seen, Shape
from edgekit.compress.quantize.rules import RULES, Role
from edgekit.errors import StepError, UsageError
from edgekit.program import aten, attribute, layer_name, module_path, output_node, quiet, shape_of

_CONVOLUTIONS = (aten.conv2d.default, aten.conv_transpose2d.input)


def stage_ends(module: GraphModule) -> list[Node]:
    """The last value of each resolution that a convolution works at, where all data passes through it, before the head.

    Raises:
        StepError: If there is none: no convolution, or no value that all data passes through.
    """
    end = _head(module)
    passed = _passed_by_all(module)
    resolutions = {shape_of(n)[2:] for n in module.graph.nodes if n.target in _CONVOLUTIONS and "val" in n.meta}
    found: dict[tuple[int, ...], Node] = {}
    for node in module.graph.nodes:
        if node is end:
            break
        size = shape(node)[2:] if len(shape(node)) == 4 else ()
        if node in passed and size in resolutions and size != (1, 1):
            found.pop(size, None)
            found[size] = node
    if not found:
        raise StepError(
            "no stage of convolutions is found to look into", "Name the places: layers=[…] and teacher_layers=[…]."
        )
    return list(found.values())


def before_head(module: GraphModule) -> Node:
    """What the last linear layer or convolution reads, before dropout."""
    head = _head(module)
    node = head
    while node is head or node.target is aten.dropout.default or (node.op != "placeholder" and not shape(node)):
        node = node.all_input_nodes[0]
    return node


def named(module: GraphModule, patterns: Sequence[str], whose: str) -> list[Node]:
    """The places of these names, in the order of the patterns.

    A name is a layer's or a module's of the source, which means what comes out of it, or that of a node of the graph. A
    pattern (``fnmatch``) stands for all that it matches, in the order of the graph.

    Args:
        module: The graph.
        patterns: The names.
        whose: For messages.

    Raises:
        UsageError: If a name is nowhere.
    """
    # The last node inside of a module is what comes out of it.
    ends: dict[str, Node] = {}
    for node in module.graph.nodes:
        if shape(node) and node.op not in ("placeholder", "get_attr", "output"):
            parts = module_path(node).split(".")
            names = {".".join(parts[: i + 1]) for i in range(len(parts))} | {node.name, layer_name(node)}
            for name in names - {""}:
                ends.pop(name, None)
                ends[name] = node
    found: list[Node] = []
    for pattern in patterns:
        matches = [node for name, node in ends.items() if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            modules = sorted({module_path(node) for node in ends.values()} - {""})
            raise UsageError(
                f"{whose} has no layer {pattern!r}",
                f"Its layers: {', '.join(modules[:20])}{', …' * (len(modules) > 20)}.",
            )
        found += [node for node in dict.fromkeys(matches) if node not in found]
    return found


def shape(node: Node) -> Shape:
    """Of the value of a place, the batch given as -1; empty if it is no tensor."""
    return shape_of(node) if isinstance(node.meta.get("val"), torch.Tensor) else ()


class Look:
    """Runs a graph and hands out the values at some of its nodes too.

    The copy that runs shares every parameter, buffer and submodule with the graph, so gradients and the statistics of batch
    norm go there. It is made anew when it is asked for another graph.

    Args:
        places: Names of nodes.
    """

    def __init__(self, places: Sequence[str]) -> None:
        self.places = tuple(places)
        self._made: tuple[torch.nn.Module, GraphModule] | None = None

    def __call__(self, module: torch.nn.Module, x: torch.Tensor) -> Seen:
        if not self.places:
            return Seen(module(x))
        if self._made is None or self._made[0] is not module:
            self._made = (module, tapped(module, self.places))
        outputs, *features = self._made[1](x)
        return Seen(outputs, tuple(features))


def tapped(module: Any, places: Sequence[str]) -> GraphModule:
    """A graph that shares all tensors with ``module`` and returns ``(outputs, *values at these nodes)``."""
    with quiet():
        graph = copy.deepcopy(module.graph)
    names = [node.name for node in module.graph.nodes]
    copies = dict(zip(names, graph.nodes, strict=True))
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ((copies[output_node(module).name], *(copies[place] for place in places)),)
    # Exported graphs pack their outputs by a specification of their own, which has no room for more.
    graph.set_codegen(CodeGen())
    owned = {
        str(n.target): attribute(module, str(n.target)) for n in graph.nodes if n.op in ("get_attr", "call_module")
    }
    return GraphModule(owned, graph)


def _head(module: GraphModule) -> Node:
    passed = _passed_by_all(module)
    computing = [n for n in module.graph.nodes if RULES.get(n.target) is Role.COMPUTE]
    through = [n for n in computing if n in passed]
    if not computing:
        raise StepError("the network has no convolution or linear layer", "It can learn from outputs alone.")
    return (through or computing)[-1]


def _passed_by_all(module: GraphModule) -> set[Node]:
    """The nodes that no path from the input to the output goes around."""
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    data: set[Node] = set()
    for node in order:
        value = node.meta.get("val")
        size = value is not None and not isinstance(value, (torch.Tensor, list, tuple))
        if node.op == "placeholder" or (not size and any(source in data for source in node.all_input_nodes)):
            data.add(node)
    found, open_until = set(), 0
    for node in order:
        if node in data:
            if open_until <= order[node]:
                found.add(node)
            open_until = max(open_until, *(order[user] for user in node.users if user in data), order[node])
    return found
