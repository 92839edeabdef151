"""Finding the range of every activation from training images, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.compress.quantize.plan import Plan
from edgekit.compress.quantize.scheme import AffineParameters, affine_parameters
from edgekit.errors import StepError
from edgekit.program import layer_name


def observe_ranges(module: GraphModule, plan: Plan, batches: Iterable[np.ndarray]) -> dict[Node, tuple[float, float]]:
    """The smallest and largest value of every tensor that is to become int8, over all batches.

    Keeps two numbers for each tensor, however many images there are.

    Args:
        module: The float graph, in evaluation.
        plan: Which tensors to watch.
        batches: float32 inputs of shape (n, C, H, W).

    Raises:
        StepError: If an activation is not finite; it names the layer.
    """
    watched = set(plan.values)
    ranges: dict[Node, tuple[float, float]] = {}

    class Observer(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if n in watched:
                low, high = (float(v) for v in torch.aminmax(result))
                if not (np.isfinite(low) and np.isfinite(high)):
                    raise StepError(
                        f"an activation of {layer_name(n)} is not finite ({low}, {high})",
                        "Check the weights and the preprocessing; nothing can be quantized from such values.",
                    )
                seen = ranges.get(n, (low, high))
                ranges[n] = (min(low, seen[0]), max(high, seen[1]))
            return result

    observer = Observer(module)
    with torch.no_grad():
        for batch in batches:
            observer.run(torch.from_numpy(batch))
    return ranges


def parameters_of(plan: Plan, ranges: dict[Node, tuple[float, float]]) -> dict[Node, AffineParameters]:
    """Scale and zero point for each group of tensors that share them: the range that holds all of the group."""
    merged: dict[Node, tuple[float, float]] = {}
    for node, (low, high) in ranges.items():
        leader = plan.leader(node)
        seen = merged.get(leader, (low, high))
        merged[leader] = (min(low, seen[0]), max(high, seen[1]))
    return {leader: affine_parameters(low, high) for leader, (low, high) in merged.items()}
