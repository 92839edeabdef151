"""Padding that goes around, as concatenation."""

from __future__ import annotations

from torch.fx import GraphModule

from edgekit.compress.rewrite.edit import argument, call_before, finish, resized
from edgekit.program import aten


def circular_padding_to_concatenation(module: GraphModule) -> int:
    """Writes circular padding as a concatenation of the borders with what they surround, in place; returns how many.

    Exact. ncnn has no such padding, and pnnx (20261020) puts another in its place without a word.
    """
    changed = 0
    for node in list(module.graph.nodes):
        if node.target is not aten.pad.default or argument(node, 2, "constant") != "circular":
            continue
        result, value = node.args[0], node.args[0].meta["val"]
        for behind_last, (before, behind) in enumerate(zip(node.args[1][::2], node.args[1][1::2], strict=True)):
            dim = value.dim() - 1 - behind_last
            size = int(value.shape[dim])
            parts = [
                call_before(node, aten.slice.Tensor, (result, dim, start, start + count), resized(value, dim, count))
                for start, count in ((size - before, before), (0, behind))
                if count
            ]
            if parts:
                value = resized(value, dim, size + before + behind)
                parts.insert(1 if before else 0, result)
                result = call_before(node, aten.cat.default, (parts, dim), value)
        node.replace_all_uses_with(result)
        module.graph.erase_node(node)
        changed += 1
    finish(module)
    return changed
