"""What a decomposition sees of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.chain import Stage, chain_macs
from edgekit.compress.layers import own_weights
from edgekit.compress.prune.moments import is_dense
from edgekit.compress.prune.rules import argument
from edgekit.program import aten, layer_name, shape_of


@dataclass(frozen=True)
class Layer:
    """A dense convolution or linear layer.

    Attributes:
        node: Its node's name.
        name: What the user calls it.
        weight: The name of its weight.
        channels_in: Inputs.
        channels_out: Outputs.
        kernel: Height and width (or length) of a convolution's kernel; empty for a linear layer.
        stride: As many numbers as the kernel has.
        padding: Likewise.
        dilation: Likewise.
        space: Size of what it reads, as many numbers; for a linear layer how often it is applied to each input.
    """

    node: str
    name: str
    weight: str
    channels_in: int
    channels_out: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    space: tuple[int, ...]

    @property
    def columns(self) -> int:
        """Length of a row of the weight as a matrix: inputs × kernel."""
        return self.channels_in * math.prod(self.kernel)

    @property
    def parameters(self) -> int:
        """Elements of the weight."""
        return self.channels_out * self.columns

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        return chain_macs([self.whole()], self.space)

    def whole(self) -> Stage:
        """The layer itself as a chain of one."""
        shape = (self.channels_out, self.channels_in, *self.kernel)
        return Stage(shape, self.stride, self.padding, self.dilation)

    def pointwise(self, channels_in: int, channels_out: int) -> Stage:
        """A stage that mixes channels at each position by itself."""
        n = len(self.kernel)
        return Stage((channels_out, channels_in, *[1] * n), (1,) * n, (0,) * n, (1,) * n)


def layers_of(module: GraphModule, keep: tuple[str, ...] = ()) -> list[Layer]:
    """The layers of a graph that can be factorized: dense, with a weight that they alone read.

    Args:
        module: The graph.
        keep: Name patterns (``fnmatch``) of layers to leave out.
    """
    return [_layer(node, weight) for node, weight in own_weights(module, keep) if is_dense(node)]


def _layer(node: Node, weight: str) -> Layer:
    source, held = node.args[:2]
    assert isinstance(source, Node)
    assert isinstance(held, Node)
    out, inner, *kernel = shape_of(held)
    rest: dict[str, tuple[int, ...]] = {"kernel": tuple(kernel), "stride": (), "padding": (), "dilation": ()}
    if node.target is aten.linear.default:
        space = tuple(abs(size) for size in shape_of(source)[1:-1])
    else:
        space = shape_of(source)[2:]
        for key, at, default in (("stride", 3, 1), ("padding", 4, 0), ("dilation", 5, 1)):
            rest[key] = _each(argument(node, at, [default]), len(kernel))
    return Layer(node.name, layer_name(node), weight, inner, out, **rest, space=space)


def _each(value: Any, count: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value)
    return values * count if len(values) == 1 else values


def flat(weight: torch.Tensor) -> torch.Tensor:
    """A weight as the matrix that maps patches to outputs, float64."""
    return weight.detach().flatten(1).double()
