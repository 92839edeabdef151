"""Published rules for choosing a technique, and the facts of a network that say which of them hold.

The rules are Cheng et al., "A Survey of Model Compression and Acceleration for Deep Neural Networks", arXiv:1710.09282,
"General Suggestions", in short, with one for little memory as other surveys have it. They are rules of thumb: what was
measured on the network at hand goes before them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch.fx import GraphModule

from edgekit.compress.search.goal import Goal
from edgekit.cost import cost_of
from edgekit.program import aten, shape_of

# Ours; the survey says "small or medium". CIFAR-10 has 50 000.
SMALL_DATA_SET = 10_000
_LARGE_KERNEL = 25


@dataclass(frozen=True)
class Facts:
    """What is known of a network and its data without any trial.

    Attributes:
        training_images: In the training split.
        parameters: Of the network.
        macs: For one input.
        linear_parameters_share: Share of the parameters in fully connected layers.
        linear_macs_share: Share of the MACs there.
        large_kernel_macs_share: Share of the MACs in kernels of 5×5 and larger.
        depthwise_macs_share: Share of the MACs in depthwise convolutions.
    """

    training_images: int
    parameters: int
    macs: int
    linear_parameters_share: float
    linear_macs_share: float
    large_kernel_macs_share: float
    depthwise_macs_share: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def facts_of(module: GraphModule, training_images: int) -> Facts:
    """Counts a network."""
    cost = cost_of(module)
    nodes = {node.name: node for node in module.graph.nodes}
    shares = dict.fromkeys(("linear parameters", "linear", "large kernels", "depthwise"), 0)
    for layer in cost.layers:
        node = nodes[layer.name]
        if node.target is aten.linear.default:
            shares["linear parameters"] += layer.parameters
            shares["linear"] += layer.macs
        elif layer.macs and node.target in (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default):
            groups = node.args[6] if len(node.args) > 6 else 1
            if groups > 1 and groups == shape_of(node.args[0])[1]:
                shares["depthwise"] += layer.macs
            elif math.prod(node.args[1].meta["val"].shape[2:]) >= _LARGE_KERNEL:
                shares["large kernels"] += layer.macs
    return Facts(
        training_images=training_images,
        parameters=cost.parameters,
        macs=cost.macs,
        linear_parameters_share=shares["linear parameters"] / max(cost.parameters, 1),
        linear_macs_share=shares["linear"] / max(cost.macs, 1),
        large_kernel_macs_share=shares["large kernels"] / max(cost.macs, 1),
        depthwise_macs_share=shares["depthwise"] / max(cost.macs, 1),
    )


@dataclass(frozen=True)
class Rule:
    """A rule of thumb.

    Attributes:
        text: What it says.
        families: The techniques that it speaks for.
        holds: Whether it has something to say of this goal and network.
    """

    text: str
    families: tuple[str, ...]
    holds: Callable[[Goal, Facts], bool]


RULES: tuple[Rule, ...] = (
    Rule(
        "the trained network is at hand: pruning, quantization, weight sharing or low rank",
        ("structured pruning", "unstructured pruning", "quantization", "weight sharing", "low rank"),
        lambda goal, facts: True,
    ),
    Rule(
        "memory is what is limited: few-bit or binary weights, and structured pruning",
        ("binary weights", "quantization", "structured pruning"),
        lambda goal, facts: goal.measure == "size",
    ),
    Rule(
        "accuracy must be stable: pruning of single weights, and sharing",
        ("unstructured pruning", "weight sharing"),
        lambda goal, facts: goal.measure == "size",
    ),
    Rule(
        "fully connected layers or large kernels take much of it: low rank",
        ("low rank",),
        lambda goal, facts: (
            max(facts.linear_macs_share, facts.linear_parameters_share, facts.large_kernel_macs_share) > 0.3
        ),
    ),
    Rule(
        "the data set is small: distillation, whose soft targets say more of each image",
        ("distillation",),
        lambda goal, facts: facts.training_images < SMALL_DATA_SET,
    ),
    Rule("the techniques are independent of each other: combine two or three", ("all",), lambda goal, facts: True),
)


def rules_for(goal: Goal, facts: Facts) -> list[Rule]:
    """The rules that have something to say."""
    return [rule for rule in RULES if rule.holds(goal, facts)]
