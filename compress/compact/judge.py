"""How near a smaller network is to its teacher."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule

from edgekit.bundle import Bundle
from edgekit.data.dataset import Split
from edgekit.evaluation import Evaluation, agreement, evaluate


@dataclass(frozen=True)
class Judgement:
    """A network beside its teacher, on images that it was not fitted to.

    Attributes:
        divergence: Mean Kullback-Leibler divergence of the outputs from the teacher's, in nats.
        agreement: Percentage of images for which both name the same class.
        top1: Percentage of right answers.
    """

    divergence: float
    agreement: float
    top1: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class Judge:
    """Compares networks with a teacher on the same images.

    Args:
        teacher: Whose outputs are the measure.
        split: Images to judge by.
        count: How many of them, evenly over the split.
    """

    def __init__(self, teacher: Bundle, split: Split, count: int) -> None:
        self._split = split.part(split.spread(count))
        self._preprocessing = teacher.preprocessing
        self.teacher: Evaluation = evaluate(teacher.module(), self._split, self._preprocessing)

    def __call__(self, module: GraphModule) -> Judgement:
        """How near a network is; its flags are left in evaluation."""
        found = evaluate(module, self._split, self._preprocessing)
        far = divergence(torch.from_numpy(self.teacher.logits), torch.from_numpy(found.logits))
        return Judgement(far, agreement(self.teacher.logits, found.logits), found.top1)


def divergence(wanted: torch.Tensor, outputs: torch.Tensor) -> float:
    """Mean over images of KL(softmax(wanted) | softmax(outputs)), in nats.

    Args:
        wanted: Outputs of the teacher, shape (n, classes).
        outputs: Of the other network.
    """
    wanted, outputs = wanted.double().flatten(1), outputs.double().flatten(1)
    return float(F.kl_div(F.log_softmax(outputs, 1), F.log_softmax(wanted, 1), reduction="batchmean", log_target=True))
