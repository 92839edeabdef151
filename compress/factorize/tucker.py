"""Tucker-2: fewer channels in, a small convolution, fewer channels out.

Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR 2016,
section 3: W[o, i, y, x] ≈ sum_{p,q} P[o, p] K[p, q, y, x] Q[q, i]. The inner channels come from higher-order orthogonal
iteration (De Lathauwer et al., SIAM J. Matrix Anal. 2000, section 4) on the weight as seen through the covariance of the
channels that are read; core and outer channels are then the exact regression of that rank on what is left of the patch.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from edgekit.compress.chain import Stage
from edgekit.compress.factorize.algebra import balance, leading, regress, root
from edgekit.compress.factorize.layer import Layer, flat
from edgekit.compress.factorize.method import Factors, Method

_SWEEPS = 5


class Tucker2(Method):
    """1×1 to fewer channels, the kernel on those, 1×1 back; ``rank`` counts the larger side's, the other is in proportion."""

    name: ClassVar[str] = "tucker"
    source: ClassVar[str] = "Kim et al., ICLR 2016, section 3"

    def fits(self, layer: Layer) -> bool:
        return bool(layer.kernel) and max(layer.kernel) > 1

    def full_rank(self, layer: Layer) -> int:
        return max(layer.channels_in, layer.channels_out)

    def ranks(self, layer: Layer, rank: int) -> tuple[int, int]:
        """Channels on the way in and out."""
        share = rank / self.full_rank(layer)
        return max(1, round(share * layer.channels_in)), max(1, round(share * layer.channels_out))

    def stages(self, layer: Layer, rank: int) -> list[Stage]:
        inside, outside = self.ranks(layer, rank)
        return [
            layer.pointwise(layer.channels_in, inside),
            Stage((outside, inside, *layer.kernel), layer.stride, layer.padding, layer.dilation),
            layer.pointwise(outside, layer.channels_out),
        ]

    def decompose(self, layer: Layer, weight: torch.Tensor, covariance: torch.Tensor) -> Factors:
        inner, area = layer.channels_in, layer.columns // layer.channels_in
        by_position = covariance.reshape(inner, area, inner, area).diagonal(dim1=1, dim2=3).mean(-1)
        half, back = root(by_position)
        seen = torch.einsum("oia,ij->oja", flat(weight).reshape(-1, inner, area), half)
        start = leading(_gram(seen, 0))
        ones = [1] * len(layer.kernel)

        def factors(rank: int) -> list[torch.Tensor]:
            inside, outside = self.ranks(layer, rank)
            right = _inner_channels(seen, start, inside, outside)
            reduce = right.T @ back  # (inside, inputs)
            features = torch.einsum("qi,ab->qaib", reduce, torch.eye(area, dtype=reduce.dtype))
            features = features.reshape(inside * area, -1)
            nearest = regress(flat(weight), covariance, features)
            gram = features @ covariance @ features.T
            directions = leading(nearest @ gram @ nearest.T)[:, :outside]
            core = (directions.T @ nearest).reshape(outside, inside, area)
            reduce, core = balance(reduce, core)
            core, expand = balance(core, directions)
            return [
                reduce.reshape(inside, inner, *ones),
                core.reshape(outside, inside, *layer.kernel),
                expand.reshape(-1, outside, *ones),
            ]

        return factors

    def matrices(self, layer: Layer, weight: torch.Tensor) -> list[torch.Tensor]:
        return [weight.movedim(side, 0).flatten(1) for side in (0, 1)]

    def product(self, factors: list[torch.Tensor]) -> torch.Tensor:
        reduce, core, expand = factors
        flat_core = core.flatten(2)
        product = torch.einsum("op,pqa,qi->oia", expand.flatten(1), flat_core, reduce.flatten(1))
        return product.reshape(len(expand), reduce.shape[1], *core.shape[2:])


def _inner_channels(seen: torch.Tensor, start: torch.Tensor, inside: int, outside: int) -> torch.Tensor:
    """Orthogonal iteration on the weight as (outputs, inputs, kernel), from the outputs' directions; (inputs, inside)."""
    left = start[:, :outside]
    for _ in range(_SWEEPS):
        right = leading(_gram(torch.einsum("oia,op->pia", seen, left), 1))[:, :inside]
        left = leading(_gram(torch.einsum("oia,iq->oqa", seen, right), 0))[:, :outside]
    return right


def _gram(tensor: torch.Tensor, mode: int) -> torch.Tensor:
    unfolded = tensor.movedim(mode, 0).flatten(1)
    return unfolded @ unfolded.T
