"""Spatial SVD: a convolution along one dimension, then one along the other.

Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014, scheme 2 (section 2.2):
W[o, i, y, x] ≈ sum_r H[o, r, x] V[r, i, y]. Their data reconstruction (section 3.2, equation 6) is had in closed form: the
vertical filters are principal directions of the weight as seen through the covariance of vertical strips, the horizontal
ones the exact least squares on the whole patch's covariance.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from edgekit.compress.chain import Stage
from edgekit.compress.factorize.algebra import balance, leading, regress, root
from edgekit.compress.factorize.layer import Layer, flat
from edgekit.compress.factorize.method import Factors, Method


class SpatialSvd(Method):
    """``rank`` vertical filters, then horizontal ones."""

    name: ClassVar[str] = "spatial"
    source: ClassVar[str] = "Jaderberg et al., BMVC 2014, scheme 2"

    def fits(self, layer: Layer) -> bool:
        return len(layer.kernel) == 2 and min(layer.kernel) > 1

    def full_rank(self, layer: Layer) -> int:
        height, width = layer.kernel
        return min(layer.channels_in * height, layer.channels_out * width)

    def stages(self, layer: Layer, rank: int) -> list[Stage]:
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = layer.kernel, layer.stride, layer.padding, layer.dilation
        return [
            Stage((rank, layer.channels_in, kh, 1), (sh, 1), (ph, 0), (dh, 1)),
            Stage((layer.channels_out, rank, 1, kw), (1, sw), (0, pw), (1, dw)),
        ]

    def decompose(self, layer: Layer, weight: torch.Tensor, covariance: torch.Tensor) -> Factors:
        inner, (height, width) = layer.channels_in, layer.kernel
        # Strips: the columns of the patch that share x, averaged over x.
        by_x = covariance.reshape(inner, height, width, inner, height, width).diagonal(dim1=2, dim2=5).mean(-1)
        half, back = root(by_x.reshape(inner * height, inner * height))
        rows = weight.double().movedim(3, 1).reshape(-1, inner * height)  # (outputs × x, inputs × y)
        seen = rows @ half
        filters = leading(seen.T @ seen).T @ back

        def factors(rank: int) -> list[torch.Tensor]:
            vertical = filters[:rank]
            horizontal = regress(flat(weight), covariance, _strips(vertical, layer)).reshape(-1, rank, width)
            first, last = balance(vertical, horizontal)
            return [first.reshape(rank, inner, height, 1), last.unsqueeze(2)]

        return factors

    def matrices(self, layer: Layer, weight: torch.Tensor) -> list[torch.Tensor]:
        return [weight.movedim(3, 1).reshape(-1, layer.channels_in * layer.kernel[0])]

    def product(self, factors: list[torch.Tensor]) -> torch.Tensor:
        vertical, horizontal = factors
        return torch.einsum("riy,orx->oiyx", vertical[..., 0], horizontal[:, :, 0])


def _strips(vertical: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Each vertical filter at each x as a row over the patch: (rank × width, columns)."""
    inner, (height, width) = layer.channels_in, layer.kernel
    rank = len(vertical)
    rows = torch.zeros(rank, width, inner, height, width, dtype=vertical.dtype)
    for x in range(width):
        rows[:, x, :, :, x] = vertical.reshape(rank, inner, height)
    return rows.reshape(rank * width, -1)
