"""Putting a chain of layers into a program in the place of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.factorize.layer import Layer, Stage, flat
from edgekit.compress.factorize.method import Method
from edgekit.compress.factorize.statistics import Patches
from edgekit.compress.layers import shift_outputs
from edgekit.program import aten, attribute, set_attribute


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
    _into_graph(module, node, layer, method.stages(layer, rank), factors)
    shift_outputs(module, node, missed @ patches.mean)


def _into_graph(
    module: GraphModule, node: Node, layer: Layer, stages: Sequence[Stage], factors: Sequence[torch.Tensor]
) -> None:
    source, held = node.args[:2]
    assert isinstance(held, Node)
    bias = node.args[2] if len(node.args) > 2 else None
    stem = layer.weight.removesuffix(".weight")
    for number, (stage, factor) in enumerate(zip(stages, factors, strict=True), start=1):
        last = number == len(stages)
        name = layer.weight if last else f"{stem}_factor{number}.weight"
        parameter = torch.nn.Parameter(factor.to(held.meta["val"].dtype).contiguous())
        set_attribute(module, name, parameter)
        with module.graph.inserting_before(node):
            weight = module.graph.get_attr(name)
        weight.meta["val"] = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        arguments = (source, weight, bias if last else None, *_geometry(node, stage))
        if last:
            node.args = arguments
        else:
            with module.graph.inserting_before(node):
                source = module.graph.call_function(node.target, arguments)
            source.meta.update({key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta})
    module.graph.erase_node(held)


def _geometry(node: Node, stage: Stage) -> tuple[object, ...]:
    if node.target is aten.linear.default:
        return ()
    return list(stage.stride), list(stage.padding), list(stage.dilation), stage.groups
