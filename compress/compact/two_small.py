"""A 5×5 convolution as two of 3×3, which see as far for 18/25 of the work.

The form is that of Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 3.1, here without an
activation between, so that the two begin near the original: the kernel of two convolutions in a row is W[o, i] = sum over m
of B[o, m] * A[m, i], convolved, which is linear in A and in B. Each is fitted by least squares with the other held, in
turns. At the border the two differ from the original, because the first pads what it does not compute.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgekit.compress.compact.chain import Chain, Geometry, Link, kernel_error

_ROUNDS = 30
# Against the mean of the diagonal: the two factors share a scale that nothing determines.
_RIDGE = 1e-6


def two_small(kernel: torch.Tensor, geometry: Geometry, *, middle: int | None = None, seed: int = 0) -> Chain | None:
    """The approximation of a dense 5×5 convolution by two of 3×3.

    Args:
        kernel: float64, shape (out, in, 5, 5).
        geometry: How it moves; the second takes over the stride.
        middle: Channels between the two; the smaller of inputs and outputs if None.
        seed: Of where the fit begins.

    Returns:
        None for any other convolution.
    """
    out, inputs, height, width = kernel.shape
    plain = geometry.groups == 1 and geometry.padding == (2, 2) and geometry.dilation == (1, 1)
    if not plain or (height, width) != (5, 5):
        return None
    middle = min(out, inputs) if middle is None else middle
    first, second = _fit(kernel, middle, seed)
    return Chain(
        kind="two-3x3",
        links=(
            Link(name="first", weight=first, geometry=Geometry(padding=(1, 1))),
            Link(name="second", weight=second, geometry=Geometry(stride=geometry.stride, padding=(1, 1))),
        ),
        error=kernel_error(kernel, composed(first, second)),
    )


def composed(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The 5×5 kernel of two 3×3 kernels in a row: (middle, in, 3, 3) and (out, middle, 3, 3) give (out, in, 5, 5)."""
    # What frameworks call a convolution is a correlation: for kernels to compose, one of them is flipped.
    return F.conv2d(first.transpose(0, 1), second.flip(2, 3), padding=2).transpose(0, 1)


def _fit(kernel: torch.Tensor, middle: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    out, inputs = kernel.shape[:2]
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(middle, inputs, 3, 3, generator=generator, dtype=torch.float64)
    first[:, :, 1, 1] += 3 * torch.eye(middle, inputs, dtype=torch.float64)
    second = torch.zeros(out, middle, 3, 3, dtype=torch.float64)
    for _ in range(_ROUNDS):
        # (in, y, x) by (middle, u, v), and the same for the other factor: composition does not mind which comes first.
        spread = _spread(first)
        second = _solve(spread, kernel.reshape(out, -1).T).T.reshape(out, middle, 3, 3)
        spread = _spread(second.transpose(0, 1))
        solved = _solve(spread, kernel.transpose(0, 1).reshape(inputs, -1).T)
        first = solved.T.reshape(inputs, middle, 3, 3).transpose(0, 1).contiguous()
        first = first * (second.norm() / first.norm().clamp_min(1e-30)).sqrt()
    spread = _spread(first)
    return first, _solve(spread, kernel.reshape(out, -1).T).T.reshape(out, middle, 3, 3).contiguous()


def _spread(factor: torch.Tensor) -> torch.Tensor:
    """From a factor (middle, n, 3, 3) to the matrix that takes the other one, (middle, 3, 3), to kernels (n, 5, 5)."""
    middle, count = factor.shape[:2]
    matrix = torch.zeros(count, 5, 5, middle, 3, 3, dtype=torch.float64)
    for y in range(3):
        for x in range(3):
            matrix[:, y : y + 3, x : x + 3, :, y, x] = factor.permute(1, 2, 3, 0)
    return matrix.reshape(count * 25, middle * 9)


def _solve(matrix: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    gram = matrix.T @ matrix
    ridge = _RIDGE * gram.diagonal().mean() + 1e-30
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=torch.float64), matrix.T @ wanted)
