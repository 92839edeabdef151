"""A layer written as a chain of cheaper ones: what all techniques that do so share.

The last stage of a chain takes the node, the name and the bias of the original. So whatever knows the network's layers by
name (the refitting, a report) still finds each, and it should give what the original gave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from edgekit.program import aten, attribute, set_attribute, shape_of


@dataclass(frozen=True)
class Stage:
    """One layer of a chain.

    Attributes:
        shape: Of its weight.
        stride: As many numbers as the kernel has; empty for a linear layer.
        padding: Likewise.
        dilation: Likewise.
        groups: Of its channels.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def reads(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """The size of what it gives for the size of what it reads."""
        if not self.stride:
            return space
        sizes = zip(space, self.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return tuple((size + 2 * pad - dil * (k - 1) - 1) // step + 1 for size, k, step, pad, dil in sizes)


def chain_macs(stages: Sequence[Stage], space: tuple[int, ...]) -> int:
    """Multiply-accumulates of a chain for one input of a size."""
    total = 0
    for stage in stages:
        space = stage.reads(space)
        total += math.prod(stage.shape) * math.prod(space)
    return total


def chain_parameters(stages: Sequence[Stage]) -> int:
    """Elements of all weights of a chain; the bias, which stays, is not counted."""
    return sum(math.prod(stage.shape) for stage in stages)


def put_chain(
    module: GraphModule,
    node: Node,
    stages: Sequence[Stage],
    weights: Sequence[torch.Tensor],
    names: Sequence[str] | None = None,
) -> None:
    """Puts a chain in the place of a layer, in place; call ``finish`` when all are done.

    Args:
        module: The graph.
        node: A convolution or linear layer whose weight it alone reads.
        stages: The chain.
        weights: Of its stages.
        names: What is appended to the original's name for the weights of all stages but the last; ``factor1`` and so on
            if None.
    """
    source, held = node.args[:2]
    assert isinstance(source, Node)
    assert isinstance(held, Node)
    bias = node.args[2] if len(node.args) > 2 else None
    target, dtype = str(held.target), attribute(module, str(held.target)).dtype
    space = shape_of(source)[2:]
    for number, (stage, weight) in enumerate(zip(stages, weights, strict=True)):
        last = number == len(stages) - 1
        name = names[number] if names is not None and not last else f"factor{number + 1}"
        place = target if last else f"{target.removesuffix('.weight')}_{name}.weight"
        set_attribute(module, place, torch.nn.Parameter(weight.to(dtype).contiguous()))
        with module.graph.inserting_before(node):
            value = module.graph.get_attr(place)
        value.meta["val"] = held.meta["val"].new_empty(stage.shape)
        arguments = (source, value, bias if last else None, *_geometry(node, stage))
        if last:
            node.args = arguments
            break
        with module.graph.inserting_before(node):
            made = module.graph.call_function(node.target, arguments)
        made.meta.update({key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta})
        now = source.meta["val"]
        space = stage.reads(space)
        given = (*now.shape[:-1], stage.shape[0]) if not stage.stride else (now.shape[0], stage.shape[0], *space)
        made.meta["val"] = node.meta["val"].new_empty(given)
        source = made
    module.graph.erase_node(held)


def _geometry(node: Node, stage: Stage) -> tuple[object, ...]:
    if node.target is aten.linear.default:
        return ()
    return list(stage.stride), list(stage.padding), list(stage.dilation), stage.groups
