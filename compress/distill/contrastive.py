"""Contrastive distillation: of all images in the batch, the student's view of one must find the teacher's of the same.

Tian et al., "Contrastive Representation Distillation", ICLR 2020, section 3. In place of its memory of all images'
embeddings, negatives are the images of other classes in the batch, and the objective is InfoNCE (van den Oord et al.,
arXiv:1807.03748, equation 4): a memory holds two vectors for each training image, which every checkpoint would have to
carry, and needs each image's place in the data set. Larger batches are more negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from edgekit.compress.distill.method import Method, Seen, Shape, embedded, width

# Of the embedding (section 4).
_WIDTH = 128


class Contrastive(Method):
    """InfoNCE between embeddings of student and teacher, both ways, the mean over the batch.

    Both embeddings are linear layers of 128 outputs on the value before the head, of length 1; they train along.
    Similarities are divided by the temperature.
    """

    looks_at: ClassVar[Literal["embedding"]] = "embedding"
    # Both as in the authors' code, https://github.com/HobbitLong/RepDistiller.
    default_weight = 0.8
    default_temperature = 0.07

    def __init__(self, shapes: Sequence[tuple[Shape, Shape]] = (), temperature: float | None = None) -> None:
        super().__init__(shapes, temperature)
        self.students = torch.nn.ModuleList(torch.nn.Linear(width(ours), _WIDTH) for ours, _ in self.shapes)
        self.teachers = torch.nn.ModuleList(torch.nn.Linear(width(theirs), _WIDTH) for _, theirs in self.shapes)

    def forward(self, student: Seen, teacher: Seen, y: torch.Tensor) -> torch.Tensor:
        terms = []
        for index, (ours, theirs) in enumerate(zip(student.features, teacher.features, strict=True)):
            a = F.normalize(self.students[index](embedded(ours)), dim=1)
            b = F.normalize(self.teachers[index](embedded(theirs)), dim=1)
            terms.append(info_nce(a @ b.T / self.temperature, y))
        return torch.stack(terms).sum()


def info_nce(similarities: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """−log of the share of the right pair among it and the pairs of other classes, summed over rows and columns.

    Args:
        similarities: Shape (n, n), the right pairs on the diagonal.
        y: Labels, shape (n,): images of the same class are no negatives of each other.
    """
    same = (y[:, None] == y[None]) & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    others = similarities.masked_fill(same, float("-inf"))
    right = similarities.diagonal()
    return (others.logsumexp(1) - right).mean() + (others.logsumexp(0) - right).mean()
