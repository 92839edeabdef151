"""Where dimensions flow together and apart in a reshape, and which of several that hold channels can be cut."""

from __future__ import annotations

import numpy as np

from edgekit.compress.prune.flow import Flow


def block_of(dim: int, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[list[int], list[int]] | None:
    """The dimensions that flow into each other around ``dim``; the batch (-1) must stay alone in front."""
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
    roots = flow.roots(grid.reshape(-1)).reshape(grid.shape)

    def freedom(axis: int) -> int:
        rows = np.moveaxis(roots, axis, 0).reshape(grid.shape[axis], -1)
        return sum(len(np.unique(row)) == 1 for row in rows) * 1_000_000 + grid.shape[axis]

    axis = max(range(grid.ndim), key=freedom)
    rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
    for column in range(1, rows.shape[1]):
        flow.unite(rows[:, 0], rows[:, column])
    return dims[axis], rows[:, 0].copy()
