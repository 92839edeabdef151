"""Attention in the form that converters know: batch, heads, positions, width."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.edit import call_before, finish
from edgekit.program import aten, shape_of

ATTENTION = aten.scaled_dot_product_attention.default


def attention_in_heads(module: GraphModule) -> int:
    """Gives attention over (batch, positions, width) a dimension of one head, in place; returns how many.

    Exact. torch.onnx takes four dimensions alone.
    """
    changed = 0
    for node in list(module.graph.nodes):
        if node.target is not ATTENTION or len(shape_of(node)) != 3:
            continue
        sources: list[Any] = [_one_head(node, source) for source in node.args[:3]]
        rest = list(node.args[3:])
        if rest and isinstance(rest[0], Node) and len(shape_of(rest[0])) == 3:
            rest[0] = _one_head(node, rest[0])
        attention = call_before(node, ATTENTION, (*sources, *rest), node.meta["val"].unsqueeze(1))
        attention.kwargs = node.kwargs
        flat = call_before(node, aten.squeeze.dim, (attention, 1), node.meta["val"])
        node.replace_all_uses_with(flat)
        module.graph.erase_node(node)
        changed += 1
    finish(module)
    return changed


def _one_head(before: Node, source: Node) -> Node:
    return call_before(before, aten.unsqueeze.default, (source, 1), source.meta["val"].unsqueeze(1))
