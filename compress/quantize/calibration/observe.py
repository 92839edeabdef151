"""Runs the network over calibration images and lets an observer watch every tensor that is to become int8."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.compress.quantize.calibration.observer import Observer, observer_class
from edgekit.compress.quantize.plan import Plan
from edgekit.compress.quantize.scheme import AffineParameters, affine_parameters
from edgekit.errors import StepError
from edgekit.program import aten, layer_name

# Activations that can be computed where the layer before them has written its result, and layers that write a new one.
_IN_PLACE = {aten.relu.default: aten.relu_.default, aten.hardtanh.default: aten.hardtanh_.default}
_WRITES_ANEW = (aten.conv2d.default, aten.linear.default, aten.add.Tensor)


def observe_ranges(
    module: GraphModule, plan: Plan, batches: Iterable[np.ndarray], method: str = "min-max"
) -> dict[Node, tuple[float, float]]:
    """The range of every tensor that is to become int8, over all batches.

    Tensors that share a scale are watched by one observer. Memory does not grow with the number of batches.

    Args:
        module: The float graph, in evaluation.
        plan: Which tensors to watch.
        batches: float32 inputs of shape (n, C, H, W).
        method: A name in :data:`~edgekit.compress.quantize.calibration.observer.OBSERVERS`.

    Returns:
        The range for each leader of a shared scale.

    Raises:
        StepError: If an activation is not finite; it names the layer.
    """
    watched = set(plan.values)
    make = observer_class(method)
    observers: dict[Node, Observer] = {}

    class Watcher(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            if n.target in _IN_PLACE and _is_free(n.args[0], watched):
                arguments, named = self.fetch_args_kwargs_from_env(n)
                result = _IN_PLACE[n.target](*arguments, **named)
            else:
                result = super().run_node(n)
            if n in watched:
                # In the order that it lies in memory: reductions over anything else are slow.
                values = result if result.is_contiguous() else result.movedim(1, -1)
                low, high = (float(v) for v in torch.aminmax(values))
                if not (np.isfinite(low) and np.isfinite(high)):
                    raise StepError(
                        f"an activation of {layer_name(n)} is not finite ({low}, {high})",
                        "Check the weights and the preprocessing; nothing can be quantized from such values.",
                    )
                observers.setdefault(plan.leader(n), make()).update(values, low, high)
            return result

    watcher = Watcher(module)
    with torch.no_grad():
        for batch in batches:
            x = torch.from_numpy(batch)
            # Convolutions of small batches are faster so.
            watcher.run(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)
    return {leader: observer.range() for leader, observer in observers.items()}


def _is_free(node: Any, watched: set[Node]) -> bool:
    """Whether nothing else will look at a result: a pass over memory less where an activation overwrites it."""
    return node.target in _WRITES_ANEW and len(node.users) == 1 and node not in watched


def parameters_of(
    plan: Plan, ranges: dict[Node, tuple[float, float]], *, symmetric: bool = False, bits: int = 8
) -> dict[Node, AffineParameters]:
    """Scale and zero point for each leader of a shared scale; those that an operator gives stand above what was seen."""
    seen = {
        plan.leader(node): affine_parameters(low, high, symmetric=symmetric, bits=bits)
        for node, (low, high) in ranges.items()
    }
    return seen | plan.fixed(bits)
