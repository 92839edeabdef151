"""What each layer reads, as mean and covariance of its patches over calibration images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import GraphModule

from edgekit.compress.factorize.layer import Layer
from edgekit.compress.prune.moments import moments
from edgekit.walk import Walk

# Images at a time in each operator.
_BATCH = 32


@dataclass(frozen=True)
class Patches:
    """What a layer reads, or may be taken to read where there are no images.

    Attributes:
        mean: (columns,), float64.
        covariance: Centred, (columns, columns), float64.
    """

    mean: torch.Tensor
    covariance: torch.Tensor


Statistics = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Mean and covariance of each layer's patches, by node."""


def measure(
    module: GraphModule,
    layers: Sequence[Layer],
    images: np.ndarray,
    *,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Statistics:
    """The mean and the centred covariance of each layer's patches, in float32.

    Args:
        module: The graph.
        layers: Of it.
        images: Inputs, shape (n, …).
        seed: Of the choice of positions in large feature maps.
        progress: Told how far it has come.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    walk = Walk(module, torch.from_numpy(images).split(_BATCH), [layer.node for layer in layers])
    with torch.no_grad():
        for name, values in walk.steps():
            node = nodes[name]
            inputs = walk.now(node.args[0])  # type: ignore[arg-type]
            assert inputs is not None
            # float32: the decompositions widen it again, one layer at a time.
            seen = moments(node, inputs, values, seed=seed)
            found[name] = seen.x.float(), seen.xx.float()
            progress(len(found), len(layers), "measuring what layers read")
    return found


def seen_by(layer: Layer, found: Statistics | None) -> Patches:
    """What a layer reads; without data every element by itself, of mean 0 and variance 1."""
    if found is None:
        return Patches(torch.zeros(layer.columns, dtype=torch.float64), torch.eye(layer.columns, dtype=torch.float64))
    mean, covariance = found[layer.node]
    return Patches(mean.double(), covariance.double())
