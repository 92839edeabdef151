"""Putting a chain of layers into a program in the place of one."""

from __future__ import annotations

from torch.fx import GraphModule

from edgekit.compress.chain import put_chain
from edgekit.compress.factorize.layer import Layer, flat
from edgekit.compress.factorize.method import Method
from edgekit.compress.factorize.statistics import Patches
from edgekit.compress.layers import shift_outputs
from edgekit.program import attribute


def replace(module: GraphModule, layer: Layer, method: Method, rank: int, patches: Patches) -> None:
    """Replaces a layer by a chain, in place; call :func:`~edgekit.compress.rewrite.finish` when all are done.

    The layer's own node becomes the last of the chain and keeps its name, its bias and whoever reads it; the weights of
    the others are named after it. The mean of its outputs stays what it was, where a bias or a batch norm can give it back.

    Args:
        module: The graph.
        layer: One of its layers.
        method: The decomposition.
        rank: Of it.
        patches: What the layer reads.
    """
    node = next(n for n in module.graph.nodes if n.name == layer.node)
    weight = attribute(module, layer.weight).detach()
    factors = method.decompose(layer, weight, patches.covariance)(rank)
    missed = flat(weight) - flat(method.product(factors))
    put_chain(module, node, method.stages(layer, rank), factors)
    shift_outputs(module, node, missed @ patches.mean)
