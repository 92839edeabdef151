"""Weight pruning: single weights, blocks or N of every M become zero, and are stored as nothing but a bit."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch.fx import GraphModule

from edgekit.bundle import Bundle
from edgekit.compress.distill.settings import Distillation, distillation
from edgekit.compress.distill.teacher import refuse_unfit_teachers
from edgekit.compress.finetune import Finetune
from edgekit.compress.layers import own_weights
from edgekit.compress.prune.sparse import mask_bits, put_sparse
from edgekit.compress.rewrite import finish
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.errors import StepError
from edgekit.program import attribute, duplicate, layer_name

# How often the zeros are chosen anew while their share rises.
_UPDATES = 100
# Every layer keeps this share of its weights when all are ranked together: none may vanish.
_FLOOR = 0.02


@dataclass(frozen=True, kw_only=True)
class PruneWeights(Step):
    """Sets weights to zero: smaller on disk, and not faster where the runtime multiplies zeros like any number.

    While their share rises (``ramp`` epochs) the zeros are chosen anew again and again; then they are fixed, and what is
    left is fine-tuned (``epochs``). Zeros stay zeros in every later step that trains.

    Attributes:
        sparsity: Share of the weights that become zero, between 0 and 1; with a pattern it follows from that.
        pattern: ``none``, or ``N:M`` for at most N weights that are not zero in every M along the input channels, for example
            ``2:4``; layers whose input channels are no multiple of M stay whole.
        block: So many consecutive output channels have their zeros in the same places.
        importance: ``magnitude``, or ``movement``: what training moves towards zero goes first; it needs a ramp.
        scope: Rank all layers together, or cut the same share out of each; movement has no scale that layers share, and cuts
            the same share.
        ramp: Epochs of training in which the share of zeros rises, by the cubic schedule; 0 for all at once.
        epochs: Epochs of fine-tuning with the zeros fixed.
        learning_rate: Peak learning rate of the fine-tuning; the ramp is trained at half of it, constant.
        distill: Share of the soft targets of the network as it was before in the loss, 0 to 1, the rest being
            cross-entropy; or the settings of the step ``distill``: ``distill=[teacher=big,method=decoupled]``.
        keep: Name patterns of layers that stay whole, for example ``[conv1,fc]``.
    """

    name: ClassVar[str] = "prune-weights"
    summary: ClassVar[str] = "set weights to zero, singly, in blocks or N of M; stored sparse"
    source: ClassVar[str] = (
        "Han et al., NeurIPS 2015 (magnitude); Zhu & Gupta, arXiv:1710.01878, equation 1 (schedule); "
        "Sanh et al., NeurIPS 2020 (movement); Mishra et al., arXiv:2104.08378 (N:M)"
    )
    example: ClassVar[str] = "sparsity=0.8,ramp=1,epochs=1"

    sparsity: float = 0.8
    pattern: str = "none"
    block: int = 1
    importance: Literal["magnitude", "movement"] = "magnitude"
    scope: Literal["global", "layer"] = "global"
    ramp: int = 0
    epochs: int = 5
    learning_rate: float = 0.02
    distill: Distillation | float = 0.0
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity is a share between 0 and 1, not {self.sparsity:g}")
        if self.pattern != "none" and self._kept_of_group is None:
            raise ValueError(f"pattern is none or N:M with 0 < N < M, for example 2:4, not {self.pattern!r}")
        if self.block < 1 or self.epochs < 0 or self.ramp < 0:
            raise ValueError("block must be at least 1, epochs and ramp at least 0")
        if self.block > 1 and self.pattern != "none":
            raise ValueError("give a pattern or a block, not both")
        if self.importance == "movement" and not self.ramp:
            raise ValueError("movement is seen while training: give ramp, for example ramp=2")
        distillation(self.distill)

    @property
    def _kept_of_group(self) -> tuple[int, int] | None:
        found = re.fullmatch(r"(\d+):(\d+)", self.pattern)
        kept, group = (int(found[1]), int(found[2])) if found else (0, 0)
        return (kept, group) if 0 < kept < group else None

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)
        refuse_unfit_teachers(self.distill, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        if self.epochs or self.ramp:
            context.dataset(self.name)  # ask for it before the work, not after
        module = bundle.module()
        names, whole = self._chosen(module)
        report: dict[str, Any] = {"kept_whole": whole}
        if self.ramp:
            masks, report["ramp"] = self._ramped(module, names, bundle, context)
        else:
            masks = self.masks({name: attribute(module, name).detach() for name in names}, self.sparsity)
        report["layers"] = []
        for node, name in own_weights(module):
            if name in masks:
                mask = masks[name]
                put_sparse(module, node, mask)
                report["layers"].append(
                    {
                        "layer": layer_name(node),
                        "weights": mask.numel(),
                        "zeros": 1 - float(mask.float().mean()),
                        "bits_per_weight": 32 * float(mask.float().mean()) + mask_bits(mask),
                    }
                )
        finish(module)
        total = sum(mask.numel() for mask in masks.values())
        report["zeros"] = 1 - sum(int(mask.sum()) for mask in masks.values()) / total
        report["notes"] = [
            "zeros make the bundle, the ONNX and the TFLite file smaller; the runtimes multiply them like any number, but "
            "LiteRT on ARM, in the 1×1 convolutions of networks that it accepts: the export to TFLite tells"
        ]
        pruned = bundle.with_module(module)
        if self.epochs:
            finetune = Finetune(epochs=self.epochs, learning_rate=self.learning_rate, distill=self.distill)
            folder = context.checkpoints / "finetune" if context.checkpoints is not None else None
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            pruned, report["finetune"] = finetune.train(pruned, replace(context, checkpoints=folder), teacher=bundle)
        return pruned, report

    def ensures(self, before: Bundle, after: Bundle) -> None:
        if after.weights != "sparse":
            raise StepError("the result holds no sparse weight", "Keep fewer layers whole.")

    def masks(self, scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
        """What stays, for each weight.

        Args:
            scores: Shape of each weight; the magnitude ranks, the smallest go first.
            sparsity: Share of zeros; not looked at with a pattern.

        Returns:
            bool, of the weights' shapes.
        """
        if self._kept_of_group is not None:
            return {name: _largest_of_each_group(score.abs(), *self._kept_of_group) for name, score in scores.items()}
        ranked = {name: _by_blocks(score.abs(), self.block) for name, score in scores.items()}
        if self.scope == "layer" or self.importance == "movement":
            return {name: _largest(rank, 1 - sparsity) for name, rank in ranked.items()}
        kept = {name: _largest(rank, _FLOOR) for name, rank in ranked.items()}
        flat = torch.cat([torch.where(kept[n], float("inf"), rank).reshape(-1) for n, rank in ranked.items()])
        chosen = _largest(flat, 1 - sparsity)
        parts = chosen.split([rank.numel() for rank in ranked.values()])
        return {name: part.view_as(ranked[name]) for name, part in zip(ranked, parts, strict=True)}

    def _chosen(self, module: GraphModule) -> tuple[list[str], list[dict[str, str]]]:
        """The weights to prune, and the layers that stay whole with the reason."""
        names, whole = [], []
        for node, name in own_weights(module):
            layer, shape = layer_name(node), attribute(module, name).shape
            group = self._kept_of_group[1] if self._kept_of_group else 1
            if any(fnmatch.fnmatch(layer, pattern) for pattern in self.keep):
                whole.append({"layer": layer, "reason": "kept whole on request"})
            elif shape[1] % group:
                whole.append({"layer": layer, "reason": f"its {shape[1]} input channels are no multiple of {group}"})
            elif shape[0] % self.block:
                whole.append({"layer": layer, "reason": f"its {shape[0]} channels are no multiple of {self.block}"})
            else:
                names.append(name)
        if not names:
            reasons = "; ".join(f"{row['layer']}: {row['reason']}" for row in whole[:3])
            raise StepError(
                f"there is no layer to prune{f' ({reasons})' if reasons else ''}", "Keep fewer layers whole."
            )
        return names, whole

    def _ramped(
        self, module: GraphModule, names: list[str], bundle: Bundle, context: Context
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Trains the module in place while zeros become more (Zhu & Gupta, equation 1); the masks at the end."""
        from edgekit.compress.prune.gradual import train_gradually
        from edgekit.training import TrainingSettings

        masked = duplicate(module)
        folder = context.checkpoints / "ramp" if context.checkpoints is not None else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        settings = TrainingSettings(
            # The network is another one after each update: no epoch is better than a later one.
            epochs=self.ramp, learning_rate=self.learning_rate / 2, schedule="constant", keep="last", seed=context.seed,
        )  # fmt: skip
        result, masks = train_gradually(
            masked, names, bundle, settings, replace(context, checkpoints=folder), movement=self.importance == "movement",
            choose=lambda scores, done: self.masks(scores, self.sparsity * (1 - (1 - done) ** 3)), updates=_UPDATES,
            distill=self.distill,
        )  # fmt: skip
        trained = masked.state_dict()
        module.load_state_dict({name: trained[name] for name in module.state_dict()})
        return masks, {"validation_top1": result.last_validation_top1, "history": result.history}


def _largest(values: torch.Tensor, share: float) -> torch.Tensor:
    """True for this share of the values, the largest; at least one. Of equal ones the first."""
    flat = values.reshape(-1)
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[flat.argsort(descending=True, stable=True)[: max(1, round(share * flat.numel()))]] = True
    return mask.view_as(values)


def _by_blocks(magnitude: torch.Tensor, block: int) -> torch.Tensor:
    """The root mean square over each block of output channels, at every place of the block."""
    if block == 1:
        return magnitude
    blocks = magnitude.view(-1, block, *magnitude.shape[1:])
    return blocks.square().mean(1, keepdim=True).sqrt().expand_as(blocks).reshape(magnitude.shape)


def _largest_of_each_group(magnitude: torch.Tensor, kept: int, group: int) -> torch.Tensor:
    """True for the largest of every ``group`` neighbours along dimension 1."""
    rows = magnitude.movedim(1, -1)
    groups = rows.reshape(*rows.shape[:-1], -1, group)
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :kept]
    return torch.zeros_like(groups, dtype=torch.bool).scatter(-1, best, True).reshape(rows.shape).movedim(-1, 1)
