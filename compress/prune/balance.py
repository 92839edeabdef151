"""Which channels go together so that every group of a grouped convolution keeps as many as the others.

That is all that such a convolution asks for: what is left stays in its order, so if every group loses equally many channels,
the groups' new bounds fall between the same channels as before, and the lost ones need not lie at the same place of each
group. Where channels are independent, one of each group goes at a time. Behind a channel shuffle several neighbours are one
class, some of which lie across a bound; a residual stream is grouped in other ways by its several readers.
"""

from __future__ import annotations

from collections import deque

import numpy as np


def bundles(counts: np.ndarray) -> tuple[list[list[int]], list[int]]:
    """Bundles classes of channels so that each bundle holds equally many channels of every group.

    A walk through all classes, each step the one that brings the sums of the groups nearest to equality. Where the
    differences between the sums are those of an earlier step, the classes since then are balanced among themselves: a
    bundle. So bundles are small, though not proven to be the smallest.

    Args:
        counts: How many channels each class has in each group, (classes, groups).

    Returns:
        The bundles, each with its classes in rising order, and those for which there is no counterpart.

    Example:
        >>> import numpy as np
        >>> bundles(np.array([[1, 0], [1, 0], [2, 0], [0, 2], [1, 1]]))
        ([[4], [0, 1, 3]], [2])
    """
    groups = counts.shape[1]
    deviations = groups * counts - counts.sum(1, keepdims=True)
    waiting: dict[tuple[int, ...], deque[int]] = {}
    for place, row in enumerate(deviations.tolist()):
        waiting.setdefault(tuple(row), deque()).append(place)
    kinds, queues = np.array(list(waiting), dtype=np.int64).reshape(-1, groups), list(waiting.values())
    products = kinds.astype(np.float64) @ kinds.T
    # |sums + kind|² without |sums|²: its second term changes by a row of the products with each step.
    squares, doubled = products.diagonal().copy(), [np.zeros(len(kinds))]
    path: list[int] = []
    sums = [np.zeros(groups, dtype=np.int64)]
    seen = {sums[0].tobytes(): 0}
    found: list[list[int]] = []
    for _ in range(len(counts)):
        nearest = int((squares + doubled[-1]).argmin())
        path.append(queues[nearest].popleft())
        if not queues[nearest]:
            squares[nearest] = np.inf
        sums.append(sums[-1] + kinds[nearest])
        doubled.append(doubled[-1] + 2 * products[nearest])
        start = seen.setdefault(sums[-1].tobytes(), len(path))
        if start < len(path):
            found.append(sorted(path[start:]))
            for passed in sums[start + 1 : -1]:
                del seen[passed.tobytes()]
            del path[start:], sums[start + 1 :], doubled[start + 1 :]
    return found, sorted(path)
