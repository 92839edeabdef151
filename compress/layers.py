"""The layers of a graph that techniques on weights work on."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.quantize.rules import RULES, Role
from edgekit.program import aten, attribute, layer_name


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


def own_bias(node: Node) -> str | None:
    """The name of the bias of a convolution or linear layer that no other node reads."""
    bias = node.args[2] if RULES.get(node.target) is Role.COMPUTE and len(node.args) > 2 else None
    return str(bias.target) if isinstance(bias, Node) and bias.op == "get_attr" and len(bias.users) == 1 else None


def only_reader(node: Node) -> Node | None:
    """The node that alone reads a value; None where there are several, or none."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def shift_outputs(module: GraphModule, node: Node, shift: torch.Tensor) -> bool:
    """Adds a constant to each output of a layer as it is read: through its own bias, or the mean of the batch norm behind it.

    Returns:
        Whether the layer has either.
    """
    bias, reader = own_bias(node), only_reader(node)
    if bias is not None:
        value = attribute(module, bias)
        value.data.copy_(value.double() + shift)
    elif reader is not None and reader.target is aten.batch_norm.default and not (len(node.args) > 2 and node.args[2]):
        mean = attribute(module, str(reader.args[3].target))  # type: ignore[union-attr]
        mean.data.copy_(mean.double() - shift)
    else:
        return False
    return True
