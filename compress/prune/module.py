"""``edgekit.prune``: channel pruning inside a user's own training script."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import GraphModule

from edgekit import settings as settings_of
from edgekit.compress.prune.channels import PruneChannels
from edgekit.compress.prune.channels import prune as prune_graph
from edgekit.compress.prune.importance import FROM_DATA
from edgekit.compress.prune.reconstruct import images_at_once
from edgekit.errors import UsageError
from edgekit.program import export_program, set_training, trainable

# So few inputs don't determine a layer's weights.
_LEAST_TO_REFIT = 32


class Network(GraphModule):
    """A program's graph as a module of a user's own training: ``train()`` and ``eval()`` do what they do everywhere."""

    def train(self, mode: bool = True) -> Network:
        set_training(self, mode)
        super().train(mode)
        return self


def prune(
    module: torch.nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    seed: int = 0,
    **settings: Any,
) -> Network:
    """Cuts channels out of a network and hands back an ordinary module: train it, save it, prune it again.

    Args:
        module: The network; it is not changed.
        inputs: Real inputs, shape (n, …). One says what the network takes; with 32 or more, the weights that are left are
            fitted to what each layer gave before the cut (``reconstruct`` says how many to use, 0 for none).
        labels: Classes of the inputs, shape (n,), for ``importance="taylor"``, ``"fisher"`` and
            ``"discrimination"``.
        seed: Of chance.
        **settings: Of the step ``prune-channels``, such as ``macs=0.5``; what concerns training is yours.

    Returns:
        The smaller network, in evaluation; its parameters keep their names.

    Raises:
        UsageError: If a setting is unknown or can't be used here.
        StepError: If nothing can be cut, or the goal can't be met.

    Example:
        >>> import torch, edgekit
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> small = edgekit.prune(network, torch.zeros(1, 3, 8, 8), macs=0.5, multiple=1)
        >>> small(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 4, 4, 4])
    """
    training = sorted({"epochs", "between", "learning_rate", "distill"} & settings.keys())
    if training:
        raise UsageError(
            f"edgekit.prune does not train, so {', '.join(training)} can't be set",
            "Train the network that it returns, or use edgekit.compress with a data set.",
        )
    chosen = settings_of.build(PruneChannels, {**settings, "epochs": 0, "between": 0}, what="edgekit.prune")
    graph = trainable(export_program(copy.deepcopy(module).cpu(), tuple(inputs.shape[1:])))
    batches = None
    if chosen.importance in FROM_DATA:
        if labels is None and chosen.importance != "lasso":
            raise UsageError(f"importance={chosen.importance} needs labels", "Give the classes of the inputs.")
        known = labels if labels is not None else torch.zeros(len(inputs), dtype=torch.int64)
        most = images_at_once(graph, chosen.images)
        batches = list(zip(inputs[:most].split(32), known[:most].split(32), strict=True))
    count = min(images_at_once(graph, chosen.reconstruct), len(inputs)) if chosen.reconstruct else 0
    images = inputs[:count].float().numpy() if count >= _LEAST_TO_REFIT else None
    prune_graph(graph, chosen, batches=batches, images=images, seed=seed)
    # Exported once more, so that every node knows its new shape.
    small = trainable(export_program(graph, tuple(inputs.shape[1:])))
    return Network(small, small.graph).eval()  # type: ignore[return-value]
