"""Decoupled distillation: the right class against the rest, and the others among each other, weighted apart.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, section 3 (equation 7).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from edgekit.compress.distill.method import Method, Seen

# Of the right class and of the others. β follows the teacher's confidence (section 4.2); 8 is the paper's for large
# teachers on CIFAR, 2 the authors' own for ResNet-56 → ResNet-20: https://github.com/megvii-research/mdistiller.
_ALPHA, _BETA = 1.0, 2.0


class Decoupled(Method):
    """T² (α TCKD + β NCKD), the mean over the batch.

    TCKD is the divergence of (p of the right class, 1 − p), NCKD that of the softmax over the other classes alone. Soft
    targets weigh NCKD by 1 − p of the teacher, so that little is learnt from where it is sure (equation 6).
    """

    looks_at: ClassVar[Literal["outputs"]] = "outputs"
    default_weight = 1.0
    default_temperature = 4.0

    def forward(self, student: Seen, teacher: Seen, y: torch.Tensor) -> torch.Tensor:
        right = F.one_hot(y, student.outputs.shape[1]).bool()
        (found, found_others), (wanted, wanted_others) = (
            self._parts(seen.outputs / self.temperature, right) for seen in (student, teacher)
        )
        target = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        others = F.kl_div(found_others, wanted_others, reduction="batchmean", log_target=True)
        return self.temperature**2 * (_ALPHA * target + _BETA * others)

    @staticmethod
    def _parts(z: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities of right and wrong, shape (n, 2), and of each other class among the others, (n, classes − 1)."""
        n, classes = z.shape
        others = z[~right].view(n, classes - 1)
        both = torch.stack([z[right], others.logsumexp(1)], 1)
        return F.log_softmax(both, dim=1), F.log_softmax(others, dim=1)
