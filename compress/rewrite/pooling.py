"""Poolings and slices in the form that every format has: exact, and no faster by themselves."""

from __future__ import annotations

import operator

from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.edit import call_before, finish
from edgekit.program import aten, quantized, shape_of


def global_pool_to_mean(module: GraphModule) -> int:
    """Writes an average pooling over the whole map as a mean over height and width, in place; returns how many."""
    changed = 0
    for node in list(module.graph.nodes):
        if node.target not in (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default):
            continue
        if len(shape_of(node)) == 4 and shape_of(node)[2:] == (1, 1) and _covers(node):
            node.target = aten.mean.dim
            node.args = (node.args[0], [2, 3], True)
            changed += 1
    finish(module)
    return changed


def mean_over_space_in_two(module: GraphModule) -> int:
    """Writes a float mean over height and width that drops both as one that keeps them, and a flatten; returns how many.

    Exact. litert-torch transposes the whole map before a mean that drops dimensions, and none before one that keeps them.
    """
    changed = 0
    for node in list(module.graph.nodes):
        if node.target is not aten.mean.dim or len(shape_of(node.args[0])) != 4 or len(node.args) > 3:
            continue
        keeps = len(node.args) > 2 and bool(node.args[2])
        integer = any(user.target is quantized.quantize_per_tensor.default for user in node.users)
        if {dim % 4 for dim in node.args[1]} != {2, 3} or keeps or integer:
            continue
        source = node.args[0]
        mean = aten.mean.dim(source.meta["val"], [2, 3], True)
        kept = call_before(node, aten.mean.dim, (source, [2, 3], True), mean)
        flat = call_before(node, aten.flatten.using_ints, (kept, 1), node.meta["val"])
        node.replace_all_uses_with(flat)
        module.graph.erase_node(node)
        changed += 1
    finish(module)
    return changed


def strided_slice_to_pool(module: GraphModule) -> int:
    """Writes ``x[:, :, ::s, ::t]`` as a max pooling of kernel 1 with strides s and t, in place; returns how many.

    Exact: a maximum over one element is that element. ncnn has no strided slice.
    """
    changed = 0
    for node in list(module.graph.nodes):
        if node.target is not aten.slice.Tensor or not _strides_space(node) or _meets_its_pair(node):
            continue
        first, strides, source = node, [1, 1], node.args[0]
        strides[node.args[1] - 2] = node.args[4]
        # Two slices in a row, one for each dimension, are one pooling.
        if (
            isinstance(source, Node)
            and source.target is aten.slice.Tensor
            and _strides_space(source)
            and source.args[1] != node.args[1]
            and len(source.users) == 1
        ):
            strides[source.args[1] - 2] = source.args[4]
            first, source = source, source.args[0]
        pooled = call_before(node, aten.max_pool2d.default, (source, [1, 1], strides), node.meta["val"])
        node.replace_all_uses_with(pooled)
        module.graph.erase_node(node)
        if first is not node:
            module.graph.erase_node(first)
        changed += 1
    finish(module)
    return changed


def average_inside(module: GraphModule) -> int:
    """Tells average poolings that round their size up to count what lies inside the map, in place; returns how many.

    Exact without padding: torch never counts what a window covers beyond the map. ncnn does unless it is told not to.
    """
    changed = 0
    for node in list(module.graph.nodes):
        # Arguments: input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override.
        if node.target is not aten.avg_pool2d.default or len(node.args) < 5 or not node.args[4]:
            continue
        arguments = [*node.args, *(True, None)[len(node.args) - 5 :]]
        if not any(arguments[3]) and arguments[5] and arguments[6] is None:
            node.args = (*arguments[:5], False)
            changed += 1
    finish(module)
    return changed


def adaptive_maximum_to_pool(module: GraphModule) -> int:
    """Writes a maximum over a grid of windows of equal size as a max pooling, in place; returns how many.

    Exact. The grid has to divide the map, and nobody may ask where the maxima were. TFLite has no adaptive pooling.
    """
    changed = 0
    for node in list(module.graph.nodes):
        if node.target is not aten.adaptive_max_pool2d.default:
            continue
        if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
            continue
        map_size, grid = shape_of(node.args[0])[-2:], node.args[1]
        if any(size % parts for size, parts in zip(map_size, grid, strict=True)):
            continue
        window = [size // parts for size, parts in zip(map_size, grid, strict=True)]
        for user in list(node.users):
            user.target, user.args = aten.max_pool2d.default, (node.args[0], window, window)
            changed += 1
    finish(module)
    return changed


def _covers(node: Node) -> bool:
    """Whether a pooling to 1×1 sees every element once with equal weight."""
    if node.target is aten.adaptive_avg_pool2d.default:
        return True
    kernel = [int(k) for k in node.args[1]] * (2 if len(node.args[1]) == 1 else 1)
    padded = len(node.args) > 3 and any(node.args[3])
    return tuple(kernel) == shape_of(node.args[0])[2:] and not padded and len(node.args) <= 6


def _meets_its_pair(node: Node) -> bool:
    """Whether a slice is only read by one over the other dimension, which will take it along."""
    users = list(node.users)
    return (
        len(users) == 1
        and users[0].target is aten.slice.Tensor
        and _strides_space(users[0])
        and users[0].args[1] != node.args[1]
    )


def _strides_space(node: Node) -> bool:
    """Whether a slice takes every s-th row or column of a 4-dimensional tensor, from the first to the last."""
    if len(node.args) < 5 or node.args[4] == 1 or len(shape_of(node)) != 4 or node.args[1] not in (2, 3):
        return False
    end = node.args[3]
    return node.args[2] in (None, 0) and (end is None or end >= shape_of(node.args[0])[node.args[1]])
