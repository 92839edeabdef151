"""BRECQ: the weights of a block are rounded together, so that what the block hands on is kept.

Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021, section 3.2: errors of
the layers within a residual block depend on each other, so the block is the part to reconstruct. A block here is the
smallest piece of any graph between two tensors through which everything passes: a residual block, a fire module, and
where nothing branches, a layer. Every output weighs the same; the paper weighs them by their squared gradients (equation 10).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import GraphModule, Node

from edgekit.compress.quantize.rounding import Part
from edgekit.compress.quantize.rules import RULES, Role
from edgekit.program import aten, input_node


def block_parts(floats: GraphModule, layers: Sequence[Node]) -> list[Part]:
    """The blocks that hold these layers.

    Args:
        floats: The float graph.
        layers: Its convolutions and linear layers whose weights are rounded.
    """
    parts: list[Part] = []
    source, waiting = input_node(floats), list[Node]()
    cuts = _cuts(floats)
    for node in floats.graph.nodes:
        if node in layers:
            waiting.append(node)
        if node in cuts and not _goes_into_an_activation(node):
            if waiting:
                parts.append(Part(source, node, tuple(waiting)))
                waiting = []
            source = node
    return parts


def _goes_into_an_activation(node: Node) -> bool:
    """Whether runtimes compute an activation inside of the operator: what that cuts off need not be kept."""
    users = list(node.users)
    return len(users) == 1 and RULES.get(users[0].target) is Role.FUSED


def _cuts(module: GraphModule) -> set[Node]:
    """The tensors through which everything passes: when one is computed, no other is still to be read."""
    flowing: set[Node] = {input_node(module)}
    last: dict[Node, int] = {}
    nodes = list(module.graph.nodes)
    for position, node in enumerate(nodes):
        sources = [source for source in node.all_input_nodes if source in flowing]
        if node.target is aten.sym_size.int or not sources:
            continue
        flowing.add(node)
        last.update(dict.fromkeys(sources, position))
    cuts, open_until = set(), -1
    for position, node in enumerate(nodes):
        if node not in flowing or node.op == "output":
            continue
        if open_until <= position:
            cuts.add(node)
        open_until = max(open_until, last.get(node, -1))
    return cuts
