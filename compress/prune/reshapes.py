"""Where dimensions flow together and apart in a reshape, and which of several that hold channels can be cut."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from edgekit.compress.prune.flow import Flow, Kept, Labels
from edgekit.program import aten, shape_of


def block_of(dim: int, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[list[int], list[int]] | None:
    """The dimensions that flow into each other around ``dim``; the batch (-1) must stay alone in front."""
    if before[0] == 1 and before[1:] == after and dim > 0:  # a recurrent layer's one state
        return [dim], [dim - 1]
    if before[0] != after[0] or dim == 0:
        return None
    i = j = 1
    while i < len(before) or j < len(after):
        first, second = [i], [j]
        product_before = before[i] if i < len(before) else 1
        product_after = after[j] if j < len(after) else 1
        i, j = i + 1, j + 1
        while product_before != product_after:
            if product_before < product_after and i < len(before):
                product_before *= before[i]
                first.append(i)
                i += 1
            elif j < len(after):
                product_after *= after[j]
                second.append(j)
                j += 1
            else:
                return None
        # Trailing ones belong to the block before them.
        while i < len(before) and before[i] == 1 and (j >= len(after) or after[j] != 1):
            first.append(i)
            i += 1
        while j < len(after) and after[j] == 1 and (i >= len(before) or before[i] != 1):
            second.append(j)
            j += 1
        if dim in first:
            return first, [d for d in second if d < len(after)]
    return None


def dimension_to_cut(flow: Flow, grid: np.ndarray, dims: list[int]) -> tuple[int, np.ndarray]:
    """Of several dimensions that hold the channels together, only one can be cut: the one that leaves most freedom.

    Along it, all channels at one position become the same.
    """
    # Now and not at the end, so that a shuffle behind a grouped convolution finds one channel of each group to be a class.
    flow.settle(grid.reshape(-1))
    roots = flow.roots(grid.reshape(-1)).reshape(grid.shape)

    def freedom(axis: int) -> int:
        rows = np.moveaxis(roots, axis, 0).reshape(grid.shape[axis], -1)
        return sum(len(np.unique(row)) == 1 for row in rows) * 1_000_000 + grid.shape[axis]

    axis = max(range(grid.ndim), key=freedom)
    rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
    for column in range(1, rows.shape[1]):
        flow.unite(rows[:, 0], rows[:, column])
    return dims[axis], rows[:, 0].copy()


def bind_constant(flow: Flow, node: Any, labels: Labels, reader: Node) -> bool:
    """Binds a parameter to channels, also where it is expanded or turned on its way, as a class token is.

    Args:
        flow: The analysis.
        node: The parameter as the reader has it.
        labels: The channels that it stands for, by the reader's dimensions.
        reader: The node that reads it.

    Returns:
        Whether it could; where not, nothing is bound.
    """
    dim, edits = labels.dim, []
    while isinstance(node, Node) and node.op != "get_attr":
        if len(node.users) > 1:
            return False
        if node.target is aten.expand.default:
            if isinstance(node.args[1][dim], int) and node.args[1][dim] != -1:
                edits.append((node, dim))
            dim -= len(shape_of(node)) - len(shape_of(node.args[0]))
        elif node.target is aten.permute.default:
            dim = node.args[1][dim]
        elif node.target is aten.unsqueeze.default:
            added = node.args[1] % len(shape_of(node))
            if added == dim:
                return False
            dim -= added < dim
        elif node.target is aten.squeeze.dim:
            dim += node.args[1] % len(shape_of(node.args[0])) <= dim
        elif node.target is aten.transpose.int:
            a, b = (d % len(shape_of(node)) for d in node.args[1:3])
            dim = {a: b, b: a}.get(dim, dim)
        elif node.target is aten.repeat.default and node.args[1][dim] == 1:
            dim -= len(shape_of(node)) - len(shape_of(node.args[0]))
        elif node.target not in (aten.contiguous.default, aten.clone.default):
            return False
        reader, node = node, node.args[0]
    if not isinstance(node, Node) or dim < 0 or shape_of(node)[dim] != len(labels.ids):
        return False
    flow.bind(node, dim, labels.ids, "vector", reader)

    def smaller(kept: Kept) -> None:
        for expanded, at in edits:
            sizes = list(expanded.args[1])
            sizes[at] = int(kept(labels.ids).sum())
            expanded.update_arg(1, sizes)

    flow.edits.append(smaller)
    return True
