"""Transposed convolution: how channels flow through it, dense, grouped and depthwise."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from edgekit.compress.prune.flow import Flow, Kept, Labels
from edgekit.compress.prune.rules import argument, rule
from edgekit.program import aten


@rule(aten.conv_transpose2d.input)
def transposed_convolution(flow: Flow, node: Node) -> Labels | None:
    """Transposed convolution: weight (in, out / groups, …)."""
    source, weight, bias = node.args[0], node.args[1], argument(node, 2)
    groups = argument(node, 6, 1)
    channels, out_per_group = weight.meta["val"].shape[:2]
    labels = flow.labels(source)
    if labels is not None and labels.dim != 1:
        flow.freeze(labels)
        labels = None
    if groups > 1 and groups == channels:
        if labels is None:
            return None  # each output channel hangs on one input channel, which can't be cut
        # Depthwise: what is made of an input channel is that channel, once or several times.
        flow.bind(weight, 0, labels.ids, "out", node)
        ids = np.repeat(labels.ids, out_per_group)

        def fewer_groups(kept: Kept) -> None:
            node.update_arg(6, int(kept(labels.ids).sum()))

        flow.edits.append(fewer_groups)
    else:
        # Every group must keep as many channels as the others: position p is cut in all of them or in none.
        if labels is not None:
            _couple_groups(flow, labels.ids, groups)
            flow.bind(weight, 0, labels.ids, "in", node)
        ids = flow.fresh(groups * out_per_group)
        _couple_groups(flow, ids, groups)
        flow.bind(weight, 1, ids[:out_per_group], "out", node)
    flow.bind(bias, 0, ids, "vector", node)
    return Labels(1, ids)


def _couple_groups(flow: Flow, ids: np.ndarray, groups: int) -> None:
    first, *others = ids.reshape(groups, -1)
    for other in others:
        flow.unite(first, other)
