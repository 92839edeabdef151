"""Soft targets: the teacher's outputs, softened by a temperature.

Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from edgekit.compress.distill.method import Method, Seen


class SoftTargets(Method):
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the batch.

    The square of the temperature keeps the gradient's size when T changes (section 2). Temperature 4 and a share of 0.9
    are what the papers after it took on CIFAR (Tian et al., ICLR 2020, appendix).

    Example:
        >>> z = torch.tensor([[2.0, 1.0, 0.0]])
        >>> float(SoftTargets()(Seen(z), Seen(z), torch.tensor([0])))
        0.0
    """

    looks_at: ClassVar[Literal["outputs"]] = "outputs"
    default_weight = 0.9
    default_temperature = 4.0

    def forward(self, student: Seen, teacher: Seen, y: torch.Tensor) -> torch.Tensor:
        wanted = F.softmax(teacher.outputs / self.temperature, dim=1)
        found = F.log_softmax(student.outputs / self.temperature, dim=1)
        return self.temperature**2 * F.kl_div(found, wanted, reduction="batchmean")
