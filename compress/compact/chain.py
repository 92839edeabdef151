"""Writing a convolution as a chain of cheaper ones: what all techniques that do so share.

The last convolution of a chain takes the node, the name and the bias of the original. So whatever knows the network's layers
by name (the refitting, a report) still finds each, and it should give what the original gave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.prune.rules import argument
from edgekit.program import aten, attribute, set_attribute, shape_of

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a two-dimensional convolution moves over its input."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True, kw_only=True)
class Link:
    """One convolution of a chain.

    Attributes:
        name: What is appended to the original's name for its weight; the last link keeps the original's.
        weight: float64, shape (out, in / groups, height, width).
        geometry: How it moves.
    """

    name: str
    weight: torch.Tensor
    geometry: Geometry


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Convolutions, one behind the other without anything between, in the place of one.

    Attributes:
        kind: The technique.
        links: From the first to the last.
        error: The share of the squared kernel that they miss, 0 for none.
    """

    kind: str
    links: tuple[Link, ...]
    error: float

    @property
    def parameters(self) -> int:
        """Elements of the weights; the bias, which stays, is not counted."""
        return sum(link.weight.numel() for link in self.links)

    def macs(self, size: Pair) -> int:
        """Multiply-accumulates for one input of this height and width."""
        total = 0
        for link in self.links:
            size = output_size(size, link)
            total += math.prod(size) * link.weight.numel()
        return total


def output_size(size: Pair, link: Link) -> Pair:
    """Height and width of what a convolution gives."""
    g = link.geometry
    height, width = (
        (s + 2 * p - d * (k - 1) - 1) // stride + 1
        for s, p, d, k, stride in zip(size, g.padding, g.dilation, link.weight.shape[2:], g.stride, strict=True)
    )
    return height, width


def geometry_of(node: Node) -> Geometry:
    """The geometry of a ``conv2d`` node."""

    def pair(position: int, default: int) -> Pair:
        values = [int(v) for v in argument(node, position, [default])]
        return (values * 2)[0], (values * 2)[1] if len(values) == 1 else values[1]

    return Geometry(stride=pair(3, 1), padding=pair(4, 0), dilation=pair(5, 1), groups=int(argument(node, 6, 1)))


def kernel_error(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """The share of the squared kernel that an approximation misses."""
    return float(((wanted - got) ** 2).sum() / (wanted**2).sum().clamp_min(1e-30))


def put_chain(module: GraphModule, node: Node, chain: Chain) -> None:
    """Puts a chain in the place of a convolution, in place; call ``finish`` when all are done.

    Args:
        module: The graph.
        node: A ``conv2d`` whose weight it alone reads.
        chain: What takes its place.
    """
    weight: Any = node.args[1]
    base = str(weight.target).removesuffix(".weight")
    dtype = attribute(module, str(weight.target)).dtype
    source: Any = node.args[0]
    batch, size = source.meta["val"].shape[0], (int(shape_of(source)[2]), int(shape_of(source)[3]))
    for link in chain.links[:-1]:
        name = f"{base}_{link.name}.weight"
        set_attribute(module, name, torch.nn.Parameter(link.weight.to(dtype).contiguous()))
        size = output_size(size, link)
        with module.graph.inserting_before(node):
            value = module.graph.get_attr(name)
            made = module.graph.call_function(aten.conv2d.default, (source, value, None, *_constants(link.geometry)))
        value.meta["val"] = weight.meta["val"].new_empty(link.weight.shape)
        stack = node.meta.get("nn_module_stack")
        made.meta.update({"nn_module_stack": stack} if stack else {})
        made.meta["val"] = node.meta["val"].new_empty((batch, link.weight.shape[0], *size))
        source = made
    last = chain.links[-1]
    set_attribute(module, str(weight.target), torch.nn.Parameter(last.weight.to(dtype).contiguous()))
    weight.meta["val"] = weight.meta["val"].new_empty(last.weight.shape)
    node.args = (source, weight, argument(node, 2), *_constants(last.geometry))


def _constants(geometry: Geometry) -> Sequence[Any]:
    return list(geometry.stride), list(geometry.padding), list(geometry.dilation), geometry.groups
