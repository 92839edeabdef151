"""Canonical polyadic decomposition: four small layers, two of them depthwise.

Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", ICLR 2015, section 3.2:
W[o, i, y, x] ≈ sum_r A[o, r] B[i, r] V[y, r] H[x, r], by alternating least squares (Kolda & Bader, SIAM Review 2009,
section 3.4) on the weight as seen through the covariance of the channels that are read. The last factor is the exact least
squares on the whole patch's covariance.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from edgekit.compress.chain import Stage
from edgekit.compress.factorize.algebra import regress, root
from edgekit.compress.factorize.layer import Layer, flat
from edgekit.compress.factorize.method import Factors, Method

# Sweeps end when the error falls by less than this share.
_SWEEPS, _SETTLED = 100, 1e-4
# Of the mean of a normal matrix' diagonal: near-collinear components would grow against each other without bound
# (de Silva & Lim, SIAM J. Matrix Anal. 2008).
_RIDGE = 1e-4


class CanonicalPolyadic(Method):
    """1×1 to ``rank`` channels, a vertical and a horizontal depthwise convolution, 1×1 to the outputs."""

    name: ClassVar[str] = "cp"
    source: ClassVar[str] = "Lebedev et al., ICLR 2015, section 3.2"

    def fits(self, layer: Layer) -> bool:
        return len(layer.kernel) == 2 and min(layer.kernel) > 1

    def full_rank(self, layer: Layer) -> int:
        # The rank of a tensor is at most the product of all sides but the longest (Kruskal, 1989).
        sides = sorted((layer.channels_out, layer.channels_in, *layer.kernel))
        return sides[0] * sides[1] * sides[2]

    def stages(self, layer: Layer, rank: int) -> list[Stage]:
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = layer.kernel, layer.stride, layer.padding, layer.dilation
        return [
            layer.pointwise(layer.channels_in, rank),
            Stage((rank, 1, kh, 1), (sh, 1), (ph, 0), (dh, 1), groups=rank),
            Stage((rank, 1, 1, kw), (1, sw), (0, pw), (1, dw), groups=rank),
            layer.pointwise(rank, layer.channels_out),
        ]

    def decompose(self, layer: Layer, weight: torch.Tensor, covariance: torch.Tensor) -> Factors:
        inner, (height, width) = layer.channels_in, layer.kernel
        by_position = covariance.reshape(inner, height * width, inner, height * width)
        half, back = root(by_position.diagonal(dim1=1, dim2=3).mean(-1))
        seen = torch.einsum("oiyx,ij->ojyx", weight.double(), half)

        def factors(rank: int) -> list[torch.Tensor]:
            _, inputs, vertical, horizontal = alternate(seen, rank)
            inputs = back @ inputs
            features = torch.einsum("ir,yr,xr->riyx", inputs, vertical, horizontal).flatten(1)
            outputs = regress(flat(weight), covariance, features)
            parts = [inputs.T, vertical.T, horizontal.T, outputs.T]
            norms = torch.stack([f.norm(dim=1) for f in parts]).clamp_min(1e-30)
            even = norms.log().mean(0).exp()
            inputs, vertical, horizontal, outputs = (f * (even / n)[:, None] for f, n in zip(parts, norms, strict=True))
            return [
                inputs[:, :, None, None],
                vertical[:, None, :, None],
                horizontal[:, None, None, :],
                outputs.T[:, :, None, None],
            ]

        return factors

    def product(self, factors: list[torch.Tensor]) -> torch.Tensor:
        inputs, vertical, horizontal, outputs = factors
        return torch.einsum(
            "ri,ry,rx,or->oiyx", inputs[..., 0, 0], vertical[:, 0, :, 0], horizontal[:, 0, 0], outputs[..., 0, 0]
        )


def alternate(tensor: torch.Tensor, rank: int) -> list[torch.Tensor]:
    """Alternating least squares: a factor (side, rank) for each dimension of a tensor, seeded."""
    generator = torch.Generator().manual_seed(0)
    factors = []
    for side in range(tensor.dim()):
        unfolded = tensor.movedim(side, 0).flatten(1)
        start = torch.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]
        more = torch.randn(len(unfolded), rank - start.shape[1], generator=generator, dtype=tensor.dtype)
        factors.append(torch.cat([start, more / len(unfolded) ** 0.5], 1))
    last: float | None = None
    letters = "abcd"[: tensor.dim()]
    for _ in range(_SWEEPS):
        for side in range(tensor.dim()):
            others = [factor for other, factor in enumerate(factors) if other != side]
            gram = torch.ones(rank, rank, dtype=tensor.dtype)
            for factor in others:
                gram = gram * (factor.T @ factor)
            terms = ",".join(f"{letter}r" for other, letter in enumerate(letters) if other != side)
            product = torch.einsum(f"{letters},{terms}->{letters[side]}r", tensor, *others)
            gram.diagonal().add_(_RIDGE * float(gram.diagonal().mean()))
            factors[side] = torch.linalg.solve(gram, product.T).T
            if side + 1 < tensor.dim():
                factors[side] = factors[side] / factors[side].norm(dim=0).clamp_min(1e-30)
        now = float((torch.einsum(",".join(f"{s}r" for s in letters) + f"->{letters}", *factors) - tensor).norm())
        if last is not None and last - now <= _SETTLED * last:
            break
        last = now
    return factors
