"""What cut networks are held against: the whole one, with the channels at zero that were cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgekit.compress.prune.flow import Flow, analyse
from edgekit.compress.prune.rules import RULES
from edgekit.program import attribute, trainable


def silence(module: GraphModule, flow: Flow, removed: set[int]) -> None:
    """Makes the removed channels zero wherever they are made, without changing a shape."""
    for slot in flow.slots:
        gone = np.isin(flow.roots(slot.ids), list(removed))
        if slot.role == "in":
            continue
        with torch.no_grad():
            value = attribute(module, slot.parameter)
            index: list[Any] = [slice(None)] * value.dim()
            index[slot.dim] = torch.from_numpy(np.flatnonzero(gone))
            is_variance = slot.parameter.endswith("running_var")
            value[tuple(index)] = 1.0 if is_variance else 0.0


def twice(program: ExportedProgram) -> tuple[GraphModule, Flow, GraphModule, Flow]:
    """A network whose channels are made zero and one that loses them, each with its flow; all of it can be followed."""
    whole, pruned = trainable(program), trainable(program)
    flow, again = analyse(whole, RULES), analyse(pruned, RULES)
    assert not flow.barriers, flow.barriers
    return whole, flow, pruned, again
