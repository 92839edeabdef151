"""Repetitions as concatenations."""

from __future__ import annotations

from torch.fx import GraphModule

from edgekit.compress.rewrite.edit import call_before, finish, resized
from edgekit.program import aten, shape_of

# So many copies are written out at most.
_MOST = 16


def repeats_to_concatenation(module: GraphModule) -> int:
    """Writes ``x.repeat(1, 3, 1, 1)`` as a concatenation of x with itself, in place; returns how many.

    Exact. ncnn has no such operator, and TFLite files got another order of channels by it (litert-torch 0.10.0).
    """
    changed = 0
    for node in list(module.graph.nodes):
        if node.target is not aten.repeat.default:
            continue
        times = node.args[1]
        if not all(isinstance(t, int) and 1 <= t <= _MOST for t in times):
            continue
        if len(times) != len(shape_of(node.args[0])) or times[0] != 1:
            continue
        result, value = node.args[0], node.args[0].meta["val"]
        for dim, count in enumerate(times):
            if count > 1:
                value = resized(value, dim, int(value.shape[dim]) * count)
                result = call_before(node, aten.cat.default, ([result] * count, dim), value)
        node.replace_all_uses_with(result)
        module.graph.erase_node(node)
        changed += 1
    finish(module)
    return changed
