"""AdaRound: each weight is rounded up or down so that its layer's output is kept, not so that the weight is.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020: each layer by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from edgekit.compress.quantize.rounding import Part
from edgekit.compress.quantize.rules import RULES, Role


def layer_parts(layers: Sequence[Node]) -> list[Part]:
    """Each layer as a part of its own, with the activation that runtimes compute inside of it: what that cuts off need not
    be kept.

    Args:
        layers: Convolutions and linear layers of the float graph, in its order.
    """
    return [Part(node.args[0], _with_activation(node), (node,)) for node in layers]  # type: ignore[arg-type]


def _with_activation(node: Node) -> Node:
    users = list(node.users)
    return users[0] if len(users) == 1 and RULES.get(users[0].target) is Role.FUSED else node
