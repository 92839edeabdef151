"""Channel pruning: whole channels are cut out of every layer that shares them, and the rest is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.fx import GraphModule

from edgekit.bundle import Bundle
from edgekit.compress.finetune import Finetune
from edgekit.compress.prune.flow import Flow, analyse
from edgekit.compress.prune.importance import Batches, Importance, class_scores
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.selection import select
from edgekit.compress.prune.surgery import cut
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.cost import Cost, cost_of
from edgekit.data.dataset import to_inputs
from edgekit.errors import StepError
from edgekit.program import attribute

# Images for each gradient that taylor looks at.
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Step):
    """Cuts channels, physically, on the exported program.

    Give one goal: ``macs``, ``parameters`` (the share to keep) or ``ratio`` (the share of MACs to cut). Channels that
    meet in residual additions, concatenations, depthwise and grouped convolutions go together. With ``epochs`` above
    zero and data at hand the network is fine-tuned afterwards.

    Attributes:
        macs: Share of the multiply-accumulates to keep, between 0 and 1.
        parameters: Share of the parameters of convolutions and linear layers to keep, between 0 and 1.
        ratio: Share of the multiply-accumulates to cut; ``ratio=0.5`` is ``macs=0.5``.
        importance: What ranks channels, together with all that are coupled: the norm of their weights, their filters' distance
            to the others of the layer (``geometric-median``), the scale of batch norm, the first-order change of the loss on
            ``images`` training images (``taylor``), or chance, as a control.
        scope: Rank all channels together, or cut the same share everywhere.
        floor: Share of its channels that every layer keeps.
        multiple: Cut so many channels of the same layers at a time, so that widths stay multiples of it: runtimes have
            their fast kernels for multiples of 4, 8 or 16 channels, and a width between may be slower than the original.
        images: How many training images ``taylor`` looks at.
        epochs: Epochs of fine-tuning after the cut.
        learning_rate: Peak learning rate of the fine-tuning.
    """

    name: ClassVar[str] = "prune-channels"
    summary: ClassVar[str] = "cut whole channels out of every layer that shares them, then fine-tune"
    source: ClassVar[str] = (
        "Li et al., ICLR 2017 (L1); He et al., IJCAI 2018 (L2) and CVPR 2019 (geometric median); Liu et al., ICCV 2017 (batch "
        "norm); Molchanov et al., CVPR 2019 (Taylor); Fang et al., CVPR 2023 (groups)"
    )
    example: ClassVar[str] = "macs=0.6,epochs=1"

    macs: float | None = None
    parameters: float | None = None
    ratio: float | None = None
    importance: Importance = "l2"
    images: int = 512
    scope: Literal["global", "layer"] = "global"
    floor: float = 0.1
    multiple: int = 8
    epochs: int = 5
    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        goals = [goal for goal in (self.macs, self.parameters, self.ratio) if goal is not None]
        if len(goals) != 1:
            raise ValueError("give exactly one goal: macs, parameters or ratio, for example macs=0.5")
        if not 0 < goals[0] < 1:
            raise ValueError(f"a goal is a share between 0 and 1, not {goals[0]:g}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is a share between 0 and 1, not {self.floor:g}")
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, not {self.multiple}")
        if self.images < 1:
            raise ValueError(f"images must be at least 1, not {self.images}")
        if self.epochs < 0:
            raise ValueError(f"epochs can't be {self.epochs}")

    @property
    def goal(self) -> tuple[str, float]:
        """What is limited (``macs`` or ``parameters``) and the share to keep."""
        if self.parameters is not None:
            return "parameters", self.parameters
        return "macs", self.macs if self.macs is not None else 1 - float(self.ratio or 0)

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        if self.epochs:
            context.dataset(self.name)  # ask for it before the work, not after
        module = bundle.module()
        before = cost_of(module)
        batches = self._batches(bundle, context) if self.importance == "taylor" else None
        flow = prune(module, self, batches=batches, seed=context.seed)
        pruned = bundle.with_module(module)
        after = cost_of(pruned.module())
        report = _report(before, after, flow)
        if self.epochs:
            finetune = Finetune(epochs=self.epochs, learning_rate=self.learning_rate)
            pruned, report["finetune"] = finetune.apply(pruned, context)
        return pruned, report

    def _batches(self, bundle: Bundle, context: Context) -> Batches:
        train = context.dataset(self.name).train
        chosen = np.random.default_rng(context.seed).permutation(len(train))[: self.images]
        for start in range(0, len(chosen), _BATCH):
            part = np.sort(chosen[start : start + _BATCH])
            x = to_inputs(train.images(part), bundle.preprocessing)
            yield torch.from_numpy(x), torch.from_numpy(train.labels[part])

    def ensures(self, before: Bundle, after: Bundle) -> None:
        measure, share = self.goal
        was, now = cost_of(before.module()), cost_of(after.module())
        reached = getattr(now, measure) / getattr(was, measure)
        # Parameters of batch norm are outside the goal's measure, so allow them their part.
        if reached > share + (0.02 if measure == "parameters" else 1e-6):
            raise StepError(f"{reached:.1%} of the {measure} are left, the goal was {share:.1%}")


def prune(module: GraphModule, settings: PruneChannels, *, batches: Batches | None = None, seed: int = 0) -> Flow:
    """Cuts channels of a graph in place, without fine-tuning, and returns the analysis that led there.

    Args:
        module: The graph.
        settings: The goal, and what ranks channels.
        batches: Inputs and labels, where ``taylor`` ranks.
        seed: Where chance does.

    Raises:
        StepError: If nothing can be cut, or the goal can't be met.
    """
    flow = analyse(module, RULES)
    scores = class_scores(flow, settings.importance, batches=batches, seed=seed)
    if not scores:
        stops = "; ".join(f"{b.operator} at {b.layer}" for b in flow.barriers[:3])
        raise StepError(
            f"no channel of this network can be cut{f': {stops}' if stops else ''}",
            "Channels that reach the output, or an operator without a rule, have to stay.",
        )
    measure, share = settings.goal
    costs = _weight_costs(module, flow, measure)
    selection = select(
        flow, scores, costs, goal=share, scope=settings.scope, floor=settings.floor, multiple=settings.multiple
    )
    cut(flow, selection.removed)
    return flow


def _weight_costs(module: GraphModule, flow: Flow, measure: str) -> dict[str, float]:
    """For each weight: the MACs it takes part in, or its size."""
    macs = {layer.name: layer.macs for layer in cost_of(module).layers}
    costs: dict[str, float] = {}
    for node in module.graph.nodes:
        if node.op != "call_function" or not macs.get(node.name):
            continue
        weight = node.args[1] if len(node.args) > 1 else None
        name = str(weight.target) if isinstance(weight, torch.fx.Node) and weight.op == "get_attr" else node.name
        if measure == "macs":
            costs[name] = costs.get(name, 0.0) + macs[node.name]
        elif name != node.name:
            costs[name] = float(attribute(module, name).numel())
    return costs


def _report(before: Cost, after: Cost, flow: Flow) -> dict[str, Any]:
    layers = []
    widths = {layer.path or layer.name: layer.output_shape for layer in after.layers if layer.macs}
    for layer in before.layers:
        now = widths.get(layer.path or layer.name)
        if layer.macs and now and len(now) > 1 and now[1] != layer.output_shape[1]:
            layers.append({"layer": layer.path or layer.name, "channels": layer.output_shape[1], "kept": now[1]})
    return {
        "macs": {"before": before.macs, "after": after.macs, "ratio": after.macs / before.macs},
        "parameters": {
            "before": before.parameters,
            "after": after.parameters,
            "ratio": after.parameters / before.parameters,
        },
        "layers": layers,
        "barriers": [vars(barrier) for barrier in flow.barriers],
    }
