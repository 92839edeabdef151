"""Second moments of what a layer reads and of what it should give: all that linear least squares need, whatever the images.

A convolution is a linear map of patches, so each output position of each image is one row of a regression problem. The
rows are never held together: only X'X and X'Y are, whose size is that of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.fx import Node

from edgekit.compress.prune.rules import argument
from edgekit.program import aten, shape_of

# Patches unfolded at a time, in elements, and rows taken for each layer: many times the unknowns of a row of any weight.
_UNFOLDED, _ROWS = 2**24, 2**17

DENSE = (aten.conv1d.default, aten.conv2d.default, aten.linear.default)
"""The operators that are a linear map of patches; grouped ones among them are not."""


@dataclass
class Moments:
    """Centred second moments over rows.

    Attributes:
        xx: Covariance of the patches, (d, d), float64.
        xy: Covariance of patches and outputs, (d, outputs).
        yy: Variance of the outputs, summed over them.
        x: Mean patch, (d,).
        y: Mean output, (outputs,).
    """

    xx: torch.Tensor
    xy: torch.Tensor
    yy: float
    x: torch.Tensor
    y: torch.Tensor

    def error(self, weight: torch.Tensor) -> float:
        """The variance that a weight (outputs, d) leaves unexplained, as a share of the outputs' variance."""
        left = self.yy - 2 * float((weight * self.xy.T).sum()) + float(((weight @ self.xx) * weight).sum())
        return max(left, 0.0) / max(self.yy, 1e-30)


def is_dense(node: Node) -> bool:
    """Whether a node is a linear map of all channels that it reads."""
    if node.target not in DENSE:
        return False
    return node.target is aten.linear.default or argument(node, 6, 1) == 1


def moments(node: Node, inputs: list[torch.Tensor], outputs: list[torch.Tensor], *, seed: int = 0) -> Moments:
    """Moments of a dense layer.

    Args:
        node: The layer.
        inputs: What it reads, by batch.
        outputs: What it should give, by batch; channels where the layer has them.
        seed: Of the choice of rows, where there are more than are needed.
    """
    d = math.prod(_weight_shape(node)[1:])
    wide = outputs[0].shape[-1 if node.target is aten.linear.default else 1]
    xx, xy = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, wide, dtype=torch.float64)
    sx, sy, yy, count = torch.zeros(d, dtype=torch.float64), torch.zeros(wide, dtype=torch.float64), 0.0, 0
    for x, y in rows(node, inputs, outputs, seed=seed):
        xx += (x.T @ x).double()
        xy += (x.T @ y).double()
        sx += x.sum(0, dtype=torch.float64)
        sy += y.sum(0, dtype=torch.float64)
        yy += float((y * y).sum(dtype=torch.float64))
        count += len(x)
    mx, my = sx / count, sy / count
    return Moments(
        xx / count - torch.outer(mx, mx), xy / count - torch.outer(mx, my), yy / count - float(my @ my), mx, my
    )


def rows(
    node: Node, inputs: list[torch.Tensor], outputs: list[torch.Tensor], *, most: int = _ROWS, seed: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Patches and outputs, a row for each position of each image, piece by piece; about ``most`` of them, drawn by chance.

    Yields:
        (rows, d), in the order of the flattened weight, and (rows, outputs).
    """
    generator = torch.Generator().manual_seed(seed)
    images = sum(len(part) for part in inputs)
    share = max(1, most // images)
    for part, wanted in zip(inputs, outputs, strict=True):
        size = max(1, _UNFOLDED // _patch_elements(node, part))
        for x, y in zip(part.split(size), wanted.split(size), strict=True):
            patches, targets = _patches(node, x), _positions(node, y)
            if len(patches) > share * len(x):
                chosen = torch.randperm(len(patches), generator=generator)[: share * len(x)]
                patches, targets = patches[chosen], targets[chosen]
            yield patches, targets


def _patch_elements(node: Node, x: torch.Tensor) -> int:
    """How many numbers the patches of one image hold."""
    if node.target is aten.linear.default:
        return x[0].numel()
    return math.prod(shape_of(node)[2:]) * math.prod(_weight_shape(node)[1:])


def _patches(node: Node, x: torch.Tensor) -> torch.Tensor:
    """(positions, d), in the order of the flattened weight."""
    if node.target is aten.linear.default:
        return x.reshape(-1, x.shape[-1])
    kernel = list(_weight_shape(node)[2:])
    stride, padding, dilation = ([int(v) for v in argument(node, at, [d])] for at, d in ((3, 1), (4, 0), (5, 1)))
    stride, padding, dilation = (v * len(kernel) if len(v) == 1 else v for v in (stride, padding, dilation))
    if len(kernel) == 1:  # one dimension is two with a height of 1
        x, kernel = x.unsqueeze(2), [1, *kernel]
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    unfolded = F.unfold(x, tuple(kernel), dilation=tuple(dilation), padding=tuple(padding), stride=tuple(stride))
    return unfolded.movedim(1, 2).reshape(-1, unfolded.shape[1])


def _positions(node: Node, y: torch.Tensor) -> torch.Tensor:
    """(positions, outputs)."""
    if node.target is aten.linear.default:
        return y.reshape(-1, y.shape[-1])
    return y.flatten(2).movedim(1, 2).reshape(-1, y.shape[1])


def _weight_shape(node: Node) -> tuple[int, ...]:
    weight = node.args[1]
    assert isinstance(weight, Node)
    return shape_of(weight)
