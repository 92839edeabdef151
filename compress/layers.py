"""The layers of a graph that techniques on weights work on."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule, Node

from edgekit.compress.quantize.rules import RULES, Role
from edgekit.program import layer_name


def own_weights(module: GraphModule, keep: Sequence[str] = ()) -> list[tuple[Node, str]]:
    """Convolutions and linear layers with the name of their weight, where it is a plain tensor that they alone read.

    Args:
        module: The graph.
        keep: Name patterns (``fnmatch``) of layers to leave out.
    """
    found = []
    for node in module.graph.nodes:
        weight: Any = node.args[1] if RULES.get(node.target) is Role.COMPUTE else None
        own = isinstance(weight, Node) and weight.op == "get_attr" and len(weight.users) == 1
        if own and not any(fnmatch.fnmatch(layer_name(node), pattern) for pattern in keep):
            found.append((node, str(weight.target)))
    return found
