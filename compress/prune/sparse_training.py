"""Training that makes channels small, so that the cut which comes after it takes little away."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.bundle import Bundle
from edgekit.compress.distill.settings import Distillation, distillation
from edgekit.compress.prune.channels import weight_costs
from edgekit.compress.prune.flow import Flow, Slot, analyse
from edgekit.compress.prune.importance import class_scores
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.selection import select
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.errors import StepError
from edgekit.program import aten, attribute, delete_unused_attributes, set_attribute

# A channel counts as gone when the norm of its group is below this share of the mean.
_GONE = 0.01
# The growing penalty is raised so many times on its way to its full strength.
_RAISES = 20


@dataclass(frozen=True, kw_only=True)
class SparseTraining(Step):
    """Trains the network with a penalty on whole channels; ``prune-channels`` then cuts those that have become small.

    Attributes:
        penalty: On the scale of batch norm (L1, network slimming), on the norm of all weights of a group of coupled
            channels (``group-lasso``), or an L2 penalty that grows on those channels that ``macs`` would cut (``growing``).
        strength: Weight of the penalty in the loss; of ``growing``, its last value.
        macs: Of ``growing``: the share of the multiply-accumulates that the later cut will keep.
        multiple: Of ``growing``: cut so many channels of the same layers at a time, as the later cut will.
        epochs: Passes over the training split.
        learning_rate: Peak of the schedule.
        distill: Share of the soft targets of the network as it was before in the loss, 0 to 1, the rest being
            cross-entropy; or the settings of the step ``distill``: ``distill=[teacher=big,method=decoupled]``.
    """

    name: ClassVar[str] = "sparse-train"
    summary: ClassVar[str] = "train with a penalty that makes whole channels small, before prune-channels cuts them"
    source: ClassVar[str] = (
        "Liu et al., ICCV 2017, equation 1 (batch norm); Wen et al., NeurIPS 2016, equation 4 (group lasso); Wang et al., "
        "ICLR 2021, section 3.2 (growing)"
    )
    example: ClassVar[str] = "penalty=group-lasso,strength=0.001,epochs=1"

    penalty: Literal["batch-norm", "group-lasso", "growing"] = "growing"
    strength: float = 0.1
    macs: float = 0.5
    multiple: int = 8
    epochs: int = 5
    learning_rate: float = 0.01
    distill: Distillation | float = 0.0

    def __post_init__(self) -> None:
        if self.strength <= 0:
            raise ValueError(f"strength must be above 0, not {self.strength:g}")
        if not 0 < self.macs < 1:
            raise ValueError(f"macs is a share between 0 and 1, not {self.macs:g}")
        if self.epochs < 1 or self.multiple < 1:
            raise ValueError(f"epochs and multiple must be at least 1, not {self.epochs} and {self.multiple}")
        distillation(self.distill)

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        from edgekit.compress.distill.loss import distillation_loss
        from edgekit.training import TrainingSettings, WithTerm, cross_entropy, train

        dataset = context.dataset(self.name)
        module = bundle.module()
        groups = _Groups(analyse(module, RULES))
        # The last epoch: the penalty has only then done its work.
        settings = TrainingSettings(
            epochs=self.epochs, learning_rate=self.learning_rate, keep="last", seed=context.seed
        )
        total = self.epochs * math.ceil(len(dataset.train) / settings.batch_size)
        before = groups.norms(module)
        penalty = self._penalty(module, groups, total)

        learnt = distillation_loss(self.distill, module, bundle, seed=context.seed)
        result = train(
            module, dataset, bundle.preprocessing, settings, checkpoint=context.checkpoints,
            progress=context.progress, device=context.device, loss=WithTerm(learnt or cross_entropy(), penalty),
        )  # fmt: skip
        after = groups.norms(module)
        delete_unused_attributes(module)
        return bundle.with_module(module), {
            "best_epoch": result.best_epoch,
            "best_validation_top1": result.best_validation_top1,
            "last_validation_top1": result.last_validation_top1,
            "groups": len(after),
            "gone": {"before": _share_gone(before), "after": _share_gone(after)},
            "history": result.history,
            **({"distill": learnt.report} if learnt is not None else {}),
        }

    def _penalty(self, module: GraphModule, groups: _Groups, total: int) -> Callable[[], torch.Tensor]:
        if self.penalty == "batch-norm":
            names = groups.batch_norm_scales()
            if not names:
                raise StepError("the network has no batch norm whose scales could be made small", "Take group-lasso.")
            return lambda: self.strength * torch.stack([attribute(module, name).abs().sum() for name in names]).sum()
        if self.penalty == "group-lasso":
            sizes = groups.sizes.sqrt()
            return lambda: self.strength * (sizes * (groups.squares(module) + 1e-12).sqrt()).sum()
        doomed = groups.doomed(module, self.macs, self.multiple)
        # Steps done, as a buffer: a resumed training goes on in the schedule where it stopped.
        set_attribute(module, "steps_done", torch.zeros((), dtype=torch.int64))

        def growing() -> torch.Tensor:
            counter = attribute(module, "steps_done")
            weight = self.strength * (int(counter) * _RAISES // total + 1) / _RAISES
            counter += 1
            return 0.5 * weight * groups.squares(module)[doomed].sum()

        return growing


class _Groups:
    """The classes of coupled channels that may be cut, as places in the weights that hold them."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        weights = [slot for slot in flow.slots if slot.role != "vector"]
        roots = sorted({r for s in weights for r in flow.roots(s.ids).tolist() if not flow.is_frozen(r)})
        self.places = {root: place for place, root in enumerate(roots)}
        if not roots:
            raise StepError("no channel of this network can be cut", "See `edgekit inspect --groups`.")
        # Weights, their slices that may be cut, and the class of each.
        self.parts: list[tuple[Slot, torch.Tensor, torch.Tensor]] = []
        for slot in weights:
            found = [(i, self.places[r]) for i, r in enumerate(flow.roots(slot.ids).tolist()) if r in self.places]
            if found:
                indices, classes = np.array(found, np.int64).T
                self.parts.append((slot, torch.tensor(indices), torch.tensor(classes)))
        self.sizes = torch.zeros(len(roots))
        for slot, _, classes in self.parts:
            count = torch.full(classes.shape, attribute(flow.module, slot.parameter).numel() / len(slot.ids))
            self.sizes.index_add_(0, classes, count)

    def squares(self, module: GraphModule) -> torch.Tensor:
        """The sum of squares of each class' weights."""
        total = torch.zeros(len(self.places), device=next(module.parameters()).device)
        for slot, indices, classes in self.parts:
            rows = slot.slices(attribute(module, slot.parameter)).square().sum(1)
            total = total.index_add(0, classes.to(rows.device), rows[indices.to(rows.device)])
        return total

    def norms(self, module: GraphModule) -> torch.Tensor:
        """The root of the mean square of each class' weights."""
        with torch.no_grad():
            return (self.squares(module).cpu() / self.sizes).sqrt()

    def batch_norm_scales(self) -> list[str]:
        """The scales of batch norms, all of whose channels may be cut."""
        return [
            slot.parameter
            for slot in self.flow.slots
            if slot.node.target is aten.batch_norm.default
            and isinstance(slot.node.args[1], Node)
            and slot.parameter == str(slot.node.args[1].target)
            and all(root in self.places for root in self.flow.roots(slot.ids).tolist())
        ]

    def doomed(self, module: GraphModule, macs: float, multiple: int) -> torch.Tensor:
        """The classes that a cut to a share of MACs would take now, by the L2 norm of their groups."""
        scores = class_scores(self.flow, "l2")
        chosen = select(self.flow, scores, weight_costs(module, self.flow, "macs"), goal=macs, multiple=multiple)
        return torch.tensor([self.places[root] for root in sorted(chosen.removed)], dtype=torch.int64)


def _share_gone(norms: torch.Tensor) -> float:
    return float((norms < _GONE * norms.mean()).float().mean())
