"""The groups of coupled channels of a network, as a user sees them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from torch.fx import GraphModule

from edgekit.compress.prune.flow import Barrier, Flow, analyse
from edgekit.compress.prune.rules import RULES
from edgekit.program import layer_name


@dataclass(frozen=True)
class Group:
    """Channels that lie in the same layers: each of them is cut out of all of these at once.

    Attributes:
        channels: How many there are: each can be cut by itself.
        made_by: The layers that make them, in order.
        read_by: The layers that read them.
        fixed: Whether they have to stay: they reach the output, or an operator without a rule.
    """

    channels: int
    made_by: tuple[str, ...]
    read_by: tuple[str, ...]
    fixed: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def coupled_groups(module: GraphModule) -> tuple[list[Group], list[Barrier]]:
    """The groups of a graph in the order in which they are made, and where channels could not be followed."""
    flow = analyse(module, RULES)
    return _groups(flow), flow.barriers


def _groups(flow: Flow) -> list[Group]:
    places: dict[int, dict[tuple[str, str], None]] = defaultdict(dict)
    for slot in flow.slots:
        if slot.role == "vector":
            continue
        for root in flow.roots(slot.ids).tolist():
            places[root][layer_name(slot.node), slot.role] = None
    alike: dict[tuple[tuple[tuple[str, str], ...], bool], int] = defaultdict(int)
    for root, found in places.items():
        alike[tuple(found), flow.is_frozen(root)] += 1
    return [
        Group(
            count,
            tuple(layer for layer, role in found if role == "out"),
            tuple(layer for layer, role in found if role == "in"),
            fixed,
        )
        for (found, fixed), count in alike.items()
    ]
