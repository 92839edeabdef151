"""How much a channel matters, judged by the weights that make it and the weights that read it.

A class of coupled channels is scored by group: in every weight that holds a part of it, the norm of that part is
divided by the mean norm of its neighbours there, and the class gets the norm over its parts, the sum for L1 and the root
of the sum of squares for L2 (Fang et al., "DepGraph", CVPR 2023, section 3.3, sums over the group likewise). So a channel
of a residual stream, which many layers read, goes later than one that only two layers share; a mean over the parts would
treat them alike, though cutting the first disturbs every layer that reads it. Batch norm is folded into the weights
first, because a filter's own scale says nothing in front of a normalization.

Sources: L1: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1. L2: He et al., "Soft Filter
Pruning", IJCAI 2018, section 3.2.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.compress.prune.flow import Flow
from edgekit.program import aten, attribute

Norm = Literal["l1", "l2"]


def class_scores(flow: Flow, norm: Norm) -> dict[int, float]:
    """The score of every class of channels that may be cut; the lowest goes first.

    Args:
        flow: The analysed graph.
        norm: ``l1`` for the sum of magnitudes, ``l2`` for the root of the sum of squares.

    Returns:
        Score by class representative; an average channel gives 1 for each weight it is part of (before the norm).
    """
    parts: dict[int, list[float]] = defaultdict(list)
    for slot in flow.slots:
        roots = flow.roots(slot.ids)
        if slot.role == "vector":
            continue
        norms = slice_norms(_folded_weight(flow.module, slot.node), slot.dim, norm)
        relative = norms / max(float(norms.mean()), 1e-30)
        for root, value in zip(roots.tolist(), relative.tolist(), strict=True):
            if not flow.is_frozen(root):
                parts[root].append(value)
    order = 1 if norm == "l1" else 2
    return {root: float(np.linalg.norm(values, order)) for root, values in parts.items()}


def slice_norms(weight: np.ndarray, dim: int, norm: Norm) -> np.ndarray:
    """The norm of each slice of a weight along ``dim``; float64, shape (size of that dimension,)."""
    rows = np.moveaxis(weight.astype(np.float64), dim, 0).reshape(weight.shape[dim], -1)
    return np.abs(rows).sum(1) if norm == "l1" else np.sqrt((rows**2).sum(1))


def _folded_weight(module: GraphModule, node: Node) -> np.ndarray:
    """The weight of a convolution with the batch norm behind it folded in, as it will be deployed."""
    weight = attribute(module, str(node.args[1].target)).detach().to(torch.float64)  # type: ignore[union-attr]
    users = list(node.users)
    if (
        len(users) == 1
        and users[0].target is aten.batch_norm.default
        and node.target is not aten.conv_transpose2d.input
    ):
        _, gamma, _, _, variance, _, _, epsilon, *_ = users[0].args
        if isinstance(variance, Node):
            scale = 1 / torch.sqrt(attribute(module, str(variance.target)).to(torch.float64) + float(epsilon))  # type: ignore[arg-type]
            if isinstance(gamma, Node):
                scale = scale * attribute(module, str(gamma.target)).detach().to(torch.float64)
            weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    return weight.numpy()
