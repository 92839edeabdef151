"""A convolution as a depthwise and a pointwise one, begun from its own kernel.

The slice of the kernel that reads one input channel is a matrix of output channels by positions; its best approximation of
rank m, by singular values, is m depthwise filters of that channel and their share in each output: W[o, i, :, :] =
sum over m of P[o, i m] D[i m, :, :] (Guo et al., "Network Decoupling", BMVC 2018, section 3.2; with m = 1 the form of
MobileNet, Howard et al., arXiv:1704.04861, section 3.1). With m as large as the kernel has positions it is exact.
"""

from __future__ import annotations

import torch

from edgekit.compress.compact.chain import Chain, Geometry, Link, kernel_error


def separable(kernel: torch.Tensor, geometry: Geometry, *, multiplier: int = 1) -> Chain | None:
    """The depthwise-separable approximation of a dense convolution.

    Args:
        kernel: float64, shape (out, in, height, width).
        geometry: How it moves; the depthwise part takes it over.
        multiplier: Depthwise filters for each input channel, at most as many as the rank of its slice.

    Returns:
        None for a grouped or a pointwise convolution.
    """
    out, inputs, height, width = kernel.shape
    if geometry.groups != 1 or height * width == 1:
        return None
    rank = min(multiplier, out, height * width)
    slices = kernel.transpose(0, 1).flatten(2)
    u, s, v = torch.linalg.svd(slices, full_matrices=False)
    root = s[:, :rank].sqrt()
    depthwise = (root[:, :, None] * v[:, :rank]).reshape(inputs * rank, 1, height, width)
    pointwise = (u[:, :, :rank] * root[:, None, :]).permute(1, 0, 2).reshape(out, inputs * rank, 1, 1)
    near = (u[:, :, :rank] * s[:, None, :rank]) @ v[:, :rank]
    first = Geometry(stride=geometry.stride, padding=geometry.padding, dilation=geometry.dilation, groups=inputs)
    return Chain(
        kind="separable",
        links=(
            Link(name="depthwise", weight=depthwise, geometry=first),
            Link(name="pointwise", weight=pointwise, geometry=Geometry()),
        ),
        error=kernel_error(slices, near),
    )
