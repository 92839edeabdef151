"""Hints: the values in the middle of the teacher, reached through a regressor.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, section 2.2 (equation 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from edgekit.compress.distill.method import Method, Seen, Shape


class Regressor(torch.nn.Module):
    """A 1×1 convolution, or a linear layer on vectors, standardized over the batch and given a scale and shift again.

    Without the standardization the weight of 100 is too much for a student that is not trained yet. Statistics are always
    the batch's, for it runs in training alone.
    """

    def __init__(self, ours: Shape, theirs: Shape) -> None:
        super().__init__()
        maps = len(ours) == 4
        narrow, wide = (value[1] if maps else value[-1] for value in (ours, theirs))
        self.layer: torch.nn.Module = torch.nn.Linear(narrow, wide, bias=False)
        if maps:
            self.layer = torch.nn.Conv2d(narrow, wide, 1, bias=False)
        self.scale, self.shift = torch.nn.Parameter(torch.ones(wide)), torch.nn.Parameter(torch.zeros(wide))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        value = self.layer(value)
        channels = 1 if value.dim() == 4 else value.dim() - 1
        others = [dim for dim in range(value.dim()) if dim != channels]
        variance, mean = torch.var_mean(value, others, correction=0, keepdim=True)
        shape = [-1 if dim == channels else 1 for dim in range(value.dim())]
        return (value - mean) * (variance + 1e-5).rsqrt() * self.scale.view(shape) + self.shift.view(shape)


class Hints(Method):
    """The mean squared error between the teacher's value and a regression of the student's.

    The regressor trains along; where the resolutions differ, the finer value is averaged down. Trained jointly with the
    labels at a weight of 100, as Tian et al. (ICLR 2020) did, not in two phases.
    """

    looks_at: ClassVar[Literal["middle"]] = "middle"
    default_weight = 100.0

    def __init__(self, shapes: Sequence[tuple[Shape, Shape]] = (), temperature: float | None = None) -> None:
        super().__init__(shapes, temperature)
        self.regressors = torch.nn.ModuleList(Regressor(ours, theirs) for ours, theirs in self.shapes)

    def forward(self, student: Seen, teacher: Seen, y: torch.Tensor) -> torch.Tensor:
        terms = []
        for regressor, ours, theirs in zip(self.regressors, student.features, teacher.features, strict=True):
            ours, theirs = same_resolution(ours, theirs)
            terms.append(F.mse_loss(regressor(ours), theirs))
        return torch.stack(terms).sum()


def same_resolution(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both values at the coarser resolution of the two, along each axis; vectors as they are."""
    if a.dim() != 4 or a.shape[2:] == b.shape[2:]:
        return a, b
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)
