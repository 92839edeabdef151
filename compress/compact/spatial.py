"""A convolution with a large kernel as one over columns and one over rows.

W[o, i, y, x] = sum over r of H[o, r, x] V[r, i, y]: the singular values of the kernel as a matrix of (input, y) by (output,
x) give the best such form of each rank (Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank
Expansions", BMVC 2014, scheme 2; the decomposition is that of Tai et al., ICLR 2016, theorem 1). At full rank it is exact.
"""

from __future__ import annotations

import torch

from edgekit.compress.compact.chain import Chain, Geometry, Link, kernel_error

# A 3×3 kernel has too few positions to gain by it.
LEAST_KERNEL = 5
# The rank is what costs this share of the original.
_SHARE = 0.5


def spatial(kernel: torch.Tensor, geometry: Geometry, *, rank: int | None = None) -> Chain | None:
    """The form of a dense convolution with separate kernels for columns and rows.

    Args:
        kernel: float64, shape (out, in, height, width).
        geometry: How it moves; the first part takes over what concerns columns, the second what concerns rows.
        rank: Channels between the two; half of the original's multiply-accumulates if None.

    Returns:
        None for a grouped convolution or one with a kernel smaller than 5×5.
    """
    out, inputs, height, width = kernel.shape
    if geometry.groups != 1 or min(height, width) < LEAST_KERNEL:
        return None
    matrix = kernel.permute(1, 2, 0, 3).reshape(inputs * height, out * width)
    if rank is None:
        # The first part has the stride of columns alone, so it gives more positions than the original where rows stride.
        pay = inputs * height * geometry.stride[1] + out * width
        rank = int(_SHARE * out * inputs * height * width / pay)
    rank = max(1, min(rank, *matrix.shape))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    columns = (u[:, :rank] * root).T.reshape(rank, inputs, height, 1)
    rows = (root[:, None] * v[:rank]).reshape(rank, out, width).permute(1, 0, 2).unsqueeze(2)
    (sy, sx), (py, px), (dy, dx) = geometry.stride, geometry.padding, geometry.dilation
    return Chain(
        kind="spatial",
        links=(
            Link(name="columns", weight=columns, geometry=Geometry(stride=(sy, 1), padding=(py, 0), dilation=(dy, 1))),
            Link(name="rows", weight=rows, geometry=Geometry(stride=(1, sx), padding=(0, px), dilation=(1, dx))),
        ),
        error=kernel_error(matrix, (u[:, :rank] * s[:rank]) @ v[:rank]),
    )
