"""What a decomposition is, and the table of them."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch

from edgekit.compress.chain import Stage, chain_macs, chain_parameters
from edgekit.compress.factorize.layer import Layer

METHODS: Mapping[str, str] = {
    "channel": "edgekit.compress.factorize.channel:ChannelDecomposition",
    "spatial": "edgekit.compress.factorize.spatial:SpatialSvd",
    "tucker": "edgekit.compress.factorize.tucker:Tucker2",
    "cp": "edgekit.compress.factorize.cp:CanonicalPolyadic",
}
"""Every decomposition by its name, with the place of its class."""


Factors = Callable[[int], list[torch.Tensor]]
"""From a rank, 1 to the full one, to the weights of a chain, float64."""


class Method(abc.ABC):
    """Base of all decompositions.

    An implementation guarantees: the chain that ``stages`` describes, with the weights that ``decompose`` gives, computes
    what the layer does (without its bias) as well as the rank allows, and to rounding at full rank; the chain's last stage
    gives the layer's outputs. All arithmetic is float64.

    A *covariance* here is that of the patches that a layer reads, (columns, columns), columns in the order of the
    flattened weight. With it the error of the layer's output is what is small; without data it is the identity, and the
    error of the weight is.
    """

    name: ClassVar[str]
    source: ClassVar[str]

    @abc.abstractmethod
    def fits(self, layer: Layer) -> bool:
        """Whether the method applies to a layer at all."""

    @abc.abstractmethod
    def full_rank(self, layer: Layer) -> int:
        """The rank at which nothing is lost, or above which it makes no sense."""

    @abc.abstractmethod
    def stages(self, layer: Layer, rank: int) -> list[Stage]:
        """The chain at a rank."""

    @abc.abstractmethod
    def decompose(self, layer: Layer, weight: torch.Tensor, covariance: torch.Tensor) -> Factors:
        """The weights of the chain for any rank: what all ranks share is computed once.

        Args:
            layer: The layer.
            weight: Its weight.
            covariance: Of its patches, float64.
        """

    def matrices(self, layer: Layer, weight: torch.Tensor) -> list[torch.Tensor]:
        """The weight as the matrices whose ranks are the method's; none where there are no such."""
        return []

    @abc.abstractmethod
    def product(self, factors: list[torch.Tensor]) -> torch.Tensor:
        """The weight of the one layer that computes what the chain does."""

    def pays(self, layer: Layer, rank: int) -> bool:
        """Whether the chain has both fewer MACs and fewer parameters than the layer."""
        stages = self.stages(layer, rank)
        return chain_macs(stages, layer.space) < layer.macs and chain_parameters(stages) < layer.parameters


def method(name: str) -> Method:
    """A decomposition by its name."""
    module, _, attribute = METHODS[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found()
