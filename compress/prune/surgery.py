"""Cutting channels out of a program: parameters get physically smaller, constants of the graph follow."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch

from edgekit.compress.prune.flow import Flow, Slot
from edgekit.program import attribute, set_attribute


def cut(flow: Flow, removed: set[int]) -> None:
    """Removes classes of channels from the analysed graph, in place.

    Args:
        flow: The analysis of the graph; it does not hold afterwards.
        removed: Representatives of the classes to remove.
    """

    def kept(ids: np.ndarray) -> np.ndarray:
        return np.array([root not in removed for root in flow.roots(ids).tolist()], dtype=bool)

    by_parameter: dict[str, dict[int, Slot]] = defaultdict(dict)
    for slot in flow.slots:
        by_parameter[slot.parameter][slot.dim] = slot
    for name, slots in by_parameter.items():
        tensor = attribute(flow.module, name)
        value = tensor.detach()
        # What differs between groups of rows first: afterwards these groups are smaller.
        for slot in sorted(slots.values(), key=lambda slot: -slot.groups):
            stays = kept(slot.ids).reshape(slot.groups, -1)
            rows = zip(value.chunk(slot.groups), stays, strict=True)
            value = torch.cat(
                [part.index_select(slot.dim, torch.from_numpy(np.flatnonzero(now))) for part, now in rows]
            )
        value = value.contiguous()
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        set_attribute(flow.module, name, torch.nn.Parameter(value, tensor.requires_grad) if is_parameter else value)
    for edit in flow.edits:
        edit(kept)
    flow.module.graph.lint()
    flow.module.recompile()
