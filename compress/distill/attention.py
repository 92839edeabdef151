"""Attention transfer: where the teacher looks.

Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.1 (equation 2).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from edgekit.compress.distill.hints import same_resolution
from edgekit.compress.distill.method import Method, Seen


class Attention(Method):
    """The squared distance between normalized attention maps, the mean over positions and images, summed over the stages.

    A map is the sum over the channels of the squares of the values; widths may differ. The weight of 1000 goes with the
    mean over positions, as in the authors' code.
    """

    looks_at: ClassVar[Literal["stages"]] = "stages"
    default_weight = 1000.0

    def forward(self, student: Seen, teacher: Seen, y: torch.Tensor) -> torch.Tensor:
        terms = []
        for ours, theirs in zip(student.features, teacher.features, strict=True):
            ours, theirs = same_resolution(ours, theirs)
            terms.append((attention_map(ours) - attention_map(theirs)).square().mean())
        return torch.stack(terms).sum()


def attention_map(value: torch.Tensor) -> torch.Tensor:
    """Shape (n, positions), of length 1 for each image."""
    return F.normalize(value.square().sum(1).flatten(1), dim=1)
