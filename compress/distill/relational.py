"""Relational distillation: distances between images, and the angles that triplets of them form.

Park et al., "Relational Knowledge Distillation", CVPR 2019, sections 3.2.1 and 3.2.2.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from edgekit.compress.distill.method import Method, Seen, embedded

# In the proportion of the paper (section 4.1: 1 and 2); 25 and 50 are for classification on CIFAR (Tian et al., ICLR 2020).
_DISTANCE, _ANGLE = 25.0, 50.0


class Relational(Method):
    """25 × the Huber loss between pairs' distances, each in units of its network's mean, + 50 × that between triplets' cosines.

    Widths may differ. Means are over the pairs and triplets of images that are not the same. Memory grows with the cube of
    the batch: 8 MiB for 128 images, 512 MiB for 512.
    """

    looks_at: ClassVar[Literal["embedding"]] = "embedding"
    default_weight = 1.0

    def forward(self, student: Seen, teacher: Seen, y: torch.Tensor) -> torch.Tensor:
        n = len(y)
        terms = []
        for ours, theirs in zip(student.features, teacher.features, strict=True):
            ours, theirs = embedded(ours), embedded(theirs)
            # Where images repeat, both networks give the same relation, and the term is 0.
            distance = F.smooth_l1_loss(distances(ours), distances(theirs), reduction="sum") / max(n * (n - 1), 1)
            angle = F.smooth_l1_loss(cosines(ours), cosines(theirs), reduction="sum") / max(n * (n - 1) * (n - 2), 1)
            terms.append(_DISTANCE * distance + _ANGLE * angle)
        return torch.stack(terms).sum()


def distances(values: torch.Tensor) -> torch.Tensor:
    """Euclidean distances over their mean, shape (n, n), with 0 on the diagonal (equations 5 and 6)."""
    n = len(values)
    # Not by inner products: they cancel where images are near. A distance of 0 has no gradient, so it is kept off it.
    squares = (values[:, None] - values[None]).square().sum(-1)
    near = squares < 1e-12
    found = torch.where(near, 0.0, torch.where(near, 1.0, squares).sqrt())
    return found / (found.sum() / max(n * (n - 1), 1)).clamp(min=1e-12)


def cosines(values: torch.Tensor) -> torch.Tensor:
    """Of the angle at each image between two others, shape (n, n, n), the first index being the vertex (equation 8)."""
    towards = F.normalize(values[None] - values[:, None], dim=2)
    return torch.bmm(towards, towards.transpose(1, 2))
