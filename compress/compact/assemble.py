"""A student from its teacher at a share of the cost: blocks are taken out, convolutions written as cheaper ones, channels cut.

Each of n ways takes an n-th of the reduction (as a power: the cost falls to share^(1/n), share^(2/n), … share), as compound
scaling divides growth between depth and width (Tan & Le, "EfficientNet", ICML 2019, section 3.3). Every single way and
every mix of them is a candidate. Channels go last: they come in small portions, so they meet the goal that the others,
which come in large ones, leave open. What is left of the teacher's weights is then fitted to what each layer gave there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.fx import GraphModule

from edgekit.bundle import Bundle
from edgekit.compress.compact.blocks import remove_blocks
from edgekit.compress.compact.depth import Removal
from edgekit.compress.compact.replacement import Measure, Offer, Replaced, replace_until
from edgekit.compress.prune.channels import PruneChannels, choose
from edgekit.compress.prune.importance import Batches
from edgekit.compress.prune.reconstruct import Stays, kept_positions, reconstruct
from edgekit.compress.prune.surgery import cut
from edgekit.cost import Cost, cost_of
from edgekit.errors import StepError
from edgekit.program import refresh_shapes

Way = Literal["depth", "replace", "width"]
WAYS: tuple[Way, ...] = ("depth", "replace", "width")
"""The ways to make a network smaller, in the order in which they are gone."""


def mixes(ways: Sequence[Way]) -> list[tuple[Way, ...]]:
    """Every way by itself, then two together, then all."""
    ordered = [way for way in WAYS if way in ways]
    return [mix for count in range(1, len(ordered) + 1) for mix in itertools.combinations(ordered, count)]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What students of one teacher are assembled from.

    Attributes:
        teacher: The teacher.
        blocks: Its blocks in the order in which they go.
        offers: What could take the place of its convolutions.
        pruning: How channels are cut; its own goal is not used.
        batches: Images and labels, where they rank channels.
        images: Inputs to fit the weights on, shape (n, …).
        seed: Of every random choice.
    """

    teacher: Bundle
    blocks: Sequence[Removal]
    offers: Sequence[Offer]
    pruning: PruneChannels
    batches: Batches | None
    images: np.ndarray
    seed: int


@dataclass(frozen=True)
class Student:
    """A smaller network.

    Attributes:
        module: Its graph.
        cost: What it costs.
        removed: The blocks that are gone.
        replaced: The convolutions that were written as others.
        channels: The share of the cost that cutting channels left; 1 where none were cut.
    """

    module: GraphModule
    cost: Cost
    removed: tuple[Removal, ...]
    replaced: tuple[Replaced, ...]
    channels: float

    @property
    def mix(self) -> tuple[Way, ...]:
        """The ways that were really gone: large portions may leave nothing to do for one."""
        gone = {"depth": bool(self.removed), "replace": bool(self.replaced), "width": self.channels < 1}
        return tuple(way for way in WAYS if gone[way])

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "removed": [list(removal.block.layers) for removal in self.removed],
            "replaced": [replaced.to_dict() for replaced in self.replaced],
            "channels": self.channels,
        }


def assemble(parts: Parts, mix: Sequence[Way], share: float, measure: Measure, *, fit: bool) -> Student:
    """Makes a student.

    Args:
        parts: What to make it from.
        mix: The ways to go.
        share: The share of the teacher's cost to come down to.
        measure: Of what.
        fit: Whether to fit the weights that are left; for times alone that is not needed.

    Raises:
        StepError: If these ways don't lead there.
    """
    module, teacher = parts.teacher.module(), parts.teacher.module()
    whole = getattr(cost_of(module), measure)
    removed: list[Removal] = []
    replaced: list[Replaced] = []
    channels, aim = 1.0, 1.0
    kept: Stays = {}
    for position, way in enumerate(mix):
        # What comes later makes good for what large portions leave.
        round_off = position + 1 < len(mix)
        aim = max(aim * share ** (1 / len(mix)), share)
        most = aim * whole
        if way == "depth":
            removed = _blocks_for(parts.blocks, getattr(cost_of(module), measure) - most, measure, round_off)
            remove_blocks(module, [removal.block for removal in removed])
        elif way == "replace":
            left = {node.name for node in module.graph.nodes}
            replaced = replace_until(
                module, [o for o in parts.offers if o.node in left], measure, most, round_off=round_off
            )
        elif (now := getattr(cost_of(module), measure)) > most:
            channels = most / now
            flow, gone = choose(module, parts.pruning, goal=channels, batches=parts.batches, seed=parts.seed)
            kept = kept_positions(flow, gone)
            cut(flow, gone)
    refresh_shapes(module, torch.from_numpy(parts.images[:1]))
    cost = cost_of(module)
    reached = getattr(cost, measure) / whole
    if reached > share + TOLERANCE[measure]:
        raise StepError(
            f"{' and '.join(mix)} lead{'s' * (len(mix) == 1)} to {reached:.1%} of the {measure}, not {share:.1%}"
        )
    if fit:
        reconstruct(teacher, module, kept, parts.images, seed=parts.seed)
    return Student(module, cost, tuple(removed), tuple(replaced), channels)


TOLERANCE: dict[Measure, float] = {"macs": 1e-6, "parameters": 0.02, "bytes": 0.02}
"""How far the goal may be missed: cutting channels counts no parameters of batch norm."""


def _blocks_for(blocks: Sequence[Removal], saving: float, measure: Measure, round_off: bool) -> list[Removal]:
    """The first of the blocks that save so much together, or as near to it as can be."""
    taken: list[Removal] = []
    for removal in blocks:
        cost = getattr(removal.block, measure)
        if saving - cost / 2 * round_off <= 0:
            break
        taken.append(removal)
        saving -= cost
    return taken
