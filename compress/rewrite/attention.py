"""Attention in the form that converters know: batch, heads, positions, width."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.edit import finish
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

        def one_head(source: Node, before: Node = node) -> Node:
            with module.graph.inserting_before(before):
                made = module.graph.call_function(aten.unsqueeze.default, (source, 1))
            made.meta.update({**source.meta, "val": source.meta["val"].unsqueeze(1)})
            return made

        sources: list[Any] = [one_head(source) for source in node.args[:3]]
        rest = list(node.args[3:])
        if rest and isinstance(rest[0], Node) and len(shape_of(rest[0])) == 3:
            rest[0] = one_head(rest[0])
        with module.graph.inserting_before(node):
            attention = module.graph.call_function(ATTENTION, (*sources, *rest), node.kwargs)
            flat = module.graph.call_function(aten.squeeze.dim, (attention, 1))
        attention.meta.update({**node.meta, "val": node.meta["val"].unsqueeze(1)})
        flat.meta.update(node.meta)
        node.replace_all_uses_with(flat)
        module.graph.erase_node(node)
        changed += 1
    finish(module)
    return changed
