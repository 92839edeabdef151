"""Transposed convolutions in the form that every format has."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.edit import argument, call_before, finish, resized
from edgekit.program import aten, shape_of


def crop_transposed_convolutions(module: GraphModule) -> int:
    """Writes the padding of a transposed convolution, which takes from its result, as slices; returns how many.

    Exact. TFLite knows its whole result, and that of as many rows and columns as its input times the stride where both
    sides lose the same; litert-torch refuses every other padding (3×3 with stride 2 among them).
    """
    changed = 0
    for node in list(module.graph.nodes):
        if node.target is not aten.conv_transpose2d.input or not _has_to_be_cropped(node):
            continue
        stride, dilation = argument(node, 3, [1, 1]), argument(node, 7, [1, 1])
        padding, more = argument(node, 4, [0, 0]), argument(node, 5, [0, 0])
        whole = (*node.args[:2], argument(node, 2), stride, [0, 0], [0, 0], argument(node, 6, 1), dilation)
        value = node.meta["val"]
        for dim, (taken, added) in enumerate(zip(padding, more, strict=True), start=2):
            value = resized(value, dim, int(value.shape[dim]) + 2 * taken - added)
        result = call_before(node, node.target, whole, value)
        for dim, (first, size) in enumerate(zip(padding, shape_of(node)[2:], strict=True), start=2):
            if size != shape_of(result)[dim]:
                value = resized(value, dim, size)
                result = call_before(node, aten.slice.Tensor, (result, dim, first, first + size), value)
        node.replace_all_uses_with(result)
        module.graph.erase_node(node)
        changed += 1
    finish(module)
    return changed


def _has_to_be_cropped(node: Node) -> bool:
    stride, dilation = argument(node, 3, [1, 1]), argument(node, 7, [1, 1])
    padding, more = argument(node, 4, [0, 0]), argument(node, 5, [0, 0])
    if any(m > p for m, p in zip(more, padding, strict=True)):
        return False  # it adds what no input reaches
    kernel = shape_of(node.args[1])[2:]
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    same = all(2 * p == r - s for p, r, s in zip(padding, reach, stride, strict=True))
    return any(padding) and (any(more) or not same)
