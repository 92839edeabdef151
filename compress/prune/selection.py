"""Which channels go: the least important first, until the goal is met, never below the floor of any layer."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgekit.compress.prune.flow import Flow
from edgekit.errors import StepError


@dataclass(frozen=True)
class Selection:
    """What to cut.

    Attributes:
        removed: Representatives of the classes of channels to cut.
        fraction: The share of the goal's measure (MACs, parameters or bytes) that is left.
    """

    removed: set[int]
    fraction: float


def select(
    flow: Flow,
    scores: dict[int, float],
    costs: dict[str, float],
    *,
    goal: float,
    scope: Literal["global", "layer"] = "global",
    floor: float = 0.1,
    multiple: int = 1,
) -> Selection:
    """Chooses classes of channels to cut.

    Args:
        flow: The analysed graph.
        scores: Importance by class (see :func:`edgekit.compress.prune.importance.class_scores`).
        costs: For each weight by name, what it costs now (its MACs, or its size), and for each product without weights; it is
            proportional to the product of the channel counts.
        goal: The share of the total cost to keep, between 0 and 1.
        scope: ``global`` ranks all channels together; ``layer`` cuts the same share everywhere.
        floor: The share of its channels that every layer keeps, at least one.
        multiple: Cut a multiple of so many channels of the same layers at a time: widths that are multiples of it stay so.

    Raises:
        StepError: If the goal can't be met above the floor.
    """
    sizes: dict[tuple[str, int], int] = {}
    holders: dict[int, dict[tuple[str, int], int]] = defaultdict(lambda: defaultdict(int))
    # Where groups read different channels, one speaks for all: what may be cut lies as often in each.
    bound = [((s.parameter, s.dim), s.ids[: s.size]) for s in flow.slots] + [
        ((w.name, w.dim), w.ids) for w in flow.work
    ]
    for key, ids in bound:
        if key in sizes:
            continue
        sizes[key] = len(ids)
        for root in flow.roots(ids).tolist():
            holders[root][key] += 1
    left = dict(sizes)
    least = {key: max(1, int(np.ceil(floor * size))) for key, size in sizes.items()}
    dims: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for key in sizes:
        dims[key[0]].append(key)
    total = sum(costs.values())

    def fraction() -> float:
        kept = 0.0
        for name, cost in costs.items():
            share = cost
            for key in dims.get(name, ()):
                share *= left[key] / sizes[key]
            kept += share
        return kept / total

    taken: list[list[int]] = []
    for chunk in _chunks(_order(flow, scores, holders, scope), holders, multiple):
        if fraction() <= goal:
            break
        cuts = _cuts(chunk, holders)
        if all(left[key] - count >= least[key] for key, count in cuts.items()):
            taken.append(chunk)
            for key, count in cuts.items():
                left[key] -= count
    # The last cut may have overshot the goal: give back what fits under it, the most important first.
    for chunk in list(reversed(taken)):
        cuts = _cuts(chunk, holders)
        for key, count in cuts.items():
            left[key] += count
        if fraction() <= goal:
            taken.remove(chunk)
            continue
        for key, count in cuts.items():
            left[key] -= count
    reached = fraction()
    if reached > goal:
        raise StepError(
            f"channels can be cut down to {reached:.1%} of the cost, the goal is {goal:.1%}",
            f"Ask for less, or lower the floor (now every layer keeps {floor:.0%} of its channels)"
            + (f" or multiple (now {multiple} channels go at a time)." if multiple > 1 else "."),
        )
    return Selection({root for chunk in taken for root in chunk}, reached)


def _cuts(chunk: list[int], holders: dict[int, dict[tuple[str, int], int]]) -> dict[tuple[str, int], int]:
    """How many channels each dimension loses by a chunk; all of it lie in the same layers, so the first speaks for all."""
    return {key: count * len(chunk) for key, count in holders[chunk[0]].items()}


def _chunks(order: list[int], holders: dict[int, dict[tuple[str, int], int]], multiple: int) -> list[list[int]]:
    """Classes that lie in the same layers, bound together in their order; ranked by their mean place.

    As many at a time as it takes for every layer to lose a multiple of so many channels: fewer classes where each holds
    several channels of a layer. A rest that fills no chunk stays.
    """
    if multiple == 1:
        return [[root] for root in order]
    place = {root: position for position, root in enumerate(order)}
    alike: dict[tuple[tuple[tuple[str, int], int], ...], list[int]] = defaultdict(list)
    for root in order:
        alike[tuple(sorted(holders[root].items()))].append(root)
    chunks = []
    for layers, members in alike.items():
        size = math.lcm(*(multiple // math.gcd(multiple, count) for _, count in layers))
        chunks += [members[start : start + size] for start in range(0, len(members) - size + 1, size)]
    return sorted(chunks, key=lambda chunk: (sum(place[root] for root in chunk), chunk[0]))


def _order(
    flow: Flow, scores: dict[int, float], holders: dict[int, dict[tuple[str, int], int]], scope: str
) -> list[int]:
    """The classes from the least to the most important."""
    if scope == "global":
        return sorted(scores, key=lambda root: (scores[root], root))
    # The rank within the group of classes that share a parameter, as a share of the group: cuts all groups alike.
    group_of: dict[int, int] = {root: root for root in scores}

    def find(root: int) -> int:
        while group_of[root] != root:
            root = group_of[root]
        return root

    first_of: dict[tuple[str, int], int] = {}
    for root in scores:
        for key in holders[root]:
            known = first_of.setdefault(key, root)
            group_of[find(root)] = find(known)
    groups: dict[int, list[int]] = defaultdict(list)
    for root in scores:
        groups[find(root)].append(root)
    rank = {}
    for members in groups.values():
        for position, root in enumerate(sorted(members, key=lambda r: (scores[r], r))):
            rank[root] = (position + 0.5) / len(members)
    return sorted(scores, key=lambda root: (rank[root], scores[root], root))
