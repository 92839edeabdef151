"""Training while more and more weights become zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from edgekit.bundle import Bundle
from edgekit.compress.distill.loss import distillation_loss
from edgekit.compress.distill.settings import Distillation
from edgekit.compress.layers import own_weights
from edgekit.compress.step import Context
from edgekit.program import attribute, set_attribute
from edgekit.training import TrainingResult, TrainingSettings, WithTerm, cross_entropy, train

Choose = Callable[[Mapping[str, torch.Tensor], float], dict[str, torch.Tensor]]
"""From the scores of each weight and the share of the schedule that is over (0 to 1) to the masks."""


class _Masked(torch.autograd.Function):
    """w m forwards; backwards the gradient passes to every weight, so that a zero may come back (Sanh et al., section 3)."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, mask: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, score)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, score = ctx.saved_tensors
        # Movement: S = - sum of dL/dw w over the steps (equation 3).
        score.sub_(gradients[0] * weight)
        return gradients[0], None, None


class _Mask(torch.nn.Module):
    """A weight under its mask, in the graph while it trains. Its buffers travel in the checkpoints."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.mask: torch.Tensor
        self.score: torch.Tensor
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.register_buffer("score", torch.zeros_like(weight))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        masked: torch.Tensor = _Masked.apply(weight, self.mask, self.score)  # type: ignore[no-untyped-call]
        return masked


def train_gradually(
    module: GraphModule,
    names: Sequence[str],
    bundle: Bundle,
    settings: TrainingSettings,
    context: Context,
    *,
    choose: Choose,
    updates: int,
    movement: bool = False,
    distill: Distillation | float = 0.0,
) -> tuple[TrainingResult, dict[str, torch.Tensor]]:
    """Trains a graph in place, choosing its zeros anew so many times.

    Args:
        module: The graph; it keeps submodules for its masks, and the values behind them.
        names: The weights, each read by one layer alone.
        bundle: Whose preprocessing to use.
        settings: How to train.
        context: Data, progress, and the folder for checkpoints.
        choose: Gives the masks.
        updates: How often; fewer where there are fewer steps.
        movement: Score by movement; by the weights themselves otherwise.
        distill: What to learn besides the labels, from the bundle's network or another.

    Returns:
        What training gave, and the masks for the whole share.
    """
    dataset = context.dataset("prune-weights")
    masks: dict[str, _Mask] = {}
    for node, name in own_weights(module):
        if name in names:
            masks[name] = _Mask(attribute(module, name).detach())
            place = f"mask_{node.name}"
            module.add_submodule(place, masks[name])
            with module.graph.inserting_before(node):
                node.update_arg(1, module.graph.call_module(place, (node.args[1],)))
    # Steps done, as a buffer: a resumed training goes on in the schedule where it stopped.
    set_attribute(module, "steps_done", torch.zeros((), dtype=torch.int64))
    module.recompile()
    total = settings.epochs * -(-len(dataset.train) // settings.batch_size)
    every = max(1, total // updates)

    def update(done: float) -> None:
        scores = {n: (m.score if movement else attribute(module, n).detach()).cpu() for n, m in masks.items()}
        for name, mask in choose({n: _rank(s) if movement else s for n, s in scores.items()}, done).items():
            masks[name].mask.copy_(mask)

    def count() -> None:
        counter = attribute(module, "steps_done")
        if int(counter) % every == 0:
            update(int(counter) / total)
        counter += 1

    learnt = distillation_loss(distill, module, bundle, seed=settings.seed) or cross_entropy()
    result = train(
        module, dataset, bundle.preprocessing, settings, checkpoint=context.checkpoints, progress=context.progress,
        device=context.device, loss=WithTerm(learnt, count),
    )  # fmt: skip
    update(1.0)
    return result, {name: mask.mask.clone() for name, mask in masks.items()}


def _rank(score: torch.Tensor) -> torch.Tensor:
    """Movement scores as positive numbers in the same order: what moved towards zero is negative, and goes first."""
    return score - score.min()
