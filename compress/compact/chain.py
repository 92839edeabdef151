"""Chains of convolutions with their weights, as the ways to write a convolution as cheaper ones give them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.chain import Stage, chain_macs, chain_parameters, put_chain
from edgekit.compress.prune.rules import argument

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

    @property
    def stage(self) -> Stage:
        """The link without its weight."""
        g = self.geometry
        return Stage(tuple(self.weight.shape), g.stride, g.padding, g.dilation, g.groups)


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
    def stages(self) -> list[Stage]:
        """The links without their weights."""
        return [link.stage for link in self.links]

    @property
    def parameters(self) -> int:
        """Elements of the weights; the bias, which stays, is not counted."""
        return chain_parameters(self.stages)

    def macs(self, size: Pair) -> int:
        """Multiply-accumulates for one input of this height and width."""
        return chain_macs(self.stages, size)

    def put(self, module: GraphModule, node: Node) -> None:
        """Puts the chain in the place of a convolution, in place; call ``finish`` when all are done."""
        names = [link.name for link in self.links[:-1]]
        put_chain(module, node, self.stages, [link.weight for link in self.links], names)


def geometry_of(node: Node) -> Geometry:
    """The geometry of a ``conv2d`` node."""

    def pair(position: int, default: int) -> Pair:
        values = [int(v) for v in argument(node, position, [default])]
        return (values * 2)[0], (values * 2)[1] if len(values) == 1 else values[1]

    return Geometry(stride=pair(3, 1), padding=pair(4, 0), dilation=pair(5, 1), groups=int(argument(node, 6, 1)))


def kernel_error(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """The share of the squared kernel that an approximation misses."""
    return float(((wanted - got) ** 2).sum() / (wanted**2).sum().clamp_min(1e-30))
