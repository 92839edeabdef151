"""Batch norm after weights were fitted: its running statistics become those of what it reads now, and nothing else changes.

Least squares gives outputs of less variance than those that it is fitted to. In evaluation that is meant; in training batch
norm divides by the variance that is there, and so blows up again what was fitted down: the network that training begins
with is not the one that was fitted. With m, v the running mean and variance, m', v' those of the inputs, the same function
is g' = g sqrt(v' + e) / sqrt(v + e) and b' = b + g (m' - m) / sqrt(v + e) over m', v'; then both modes agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.program import aten, attribute
from edgekit.walk import Walk


def settle_batch_norm(module: GraphModule, parts: Sequence[torch.Tensor]) -> int:
    """Moves running statistics to those of the inputs, in place, and scale and shift so that evaluation stays the same.

    Args:
        module: The graph, in evaluation.
        parts: Inputs, by batch.

    Returns:
        How many were settled; one without scale and shift of its own can't be.
    """
    norms: dict[str, list[Node]] = {}
    for node in module.graph.nodes:
        if node.target is aten.batch_norm.default and all(_is_own(a) for a in node.args[1:5]):
            norms.setdefault(node.args[0].name, []).append(node)
    settled = 0
    with torch.no_grad():
        for name, values in Walk(module, parts, norms).steps():
            count = sum(value.numel() // value.shape[1] for value in values)
            rows = [value.transpose(0, 1).flatten(1).double() for value in values]
            mean = torch.stack([row.sum(1) for row in rows]).sum(0) / count
            variance = torch.stack([((row - mean[:, None]) ** 2).sum(1) for row in rows]).sum(0) / count
            for node in norms[name]:
                _settle(module, node, mean, variance)
                settled += 1
    return settled


def _is_own(argument: Any) -> bool:
    return isinstance(argument, Node) and argument.op == "get_attr" and len(argument.users) == 1


def _settle(module: GraphModule, node: Node, mean: torch.Tensor, variance: torch.Tensor) -> None:
    gamma, beta, m, v = (attribute(module, str(a.target)) for a in node.args[1:5])  # type: ignore[union-attr]
    epsilon = float(node.args[7])  # type: ignore[arg-type]
    scale = gamma.double() / torch.sqrt(v.double() + epsilon)
    beta.data.copy_(beta.double() + scale * (mean - m.double()))
    gamma.data.copy_(scale * torch.sqrt(variance + epsilon))
    m.data.copy_(mean)
    v.data.copy_(variance)
