"""The form of a weight with many zeros: the values that are left, and a mask that says where they stand.

In the program such a weight is ``masked_scatter(0, mask, values)``: the graph computes it where it is read, gradients reach
the values alone, so that it stays sparse however it is trained on, and the archive holds nothing for a zero but its bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.rewrite import finish, replace_by_tensor
from edgekit.program import aten, attribute, set_attribute, sparse_of


def put_sparse(module: GraphModule, node: Node, mask: torch.Tensor) -> None:
    """Replaces a layer's weight by its values under a mask, in place.

    Args:
        module: The graph; call ``finish`` when all layers are done.
        node: The layer, whose weight is a plain tensor that it alone reads.
        mask: bool, of the weight's shape; where it is false the weight is taken for 0.
    """
    source: Any = node.args[1]
    name = str(source.target)
    values = attribute(module, name).detach()[mask]
    set_attribute(module, f"{name}_mask", mask)
    set_attribute(module, f"{name}_values", torch.nn.Parameter(values))
    graph = module.graph
    with graph.inserting_before(node):
        where, left = graph.get_attr(f"{name}_mask"), graph.get_attr(f"{name}_values")
        zeros = graph.call_function(aten.zeros_like.default, (where,), {"dtype": torch.float32})
        weight = graph.call_function(aten.masked_scatter.default, (zeros, where, left))
    where.meta["val"] = mask.to("meta")
    left.meta["val"] = values.to("meta")
    zeros.meta["val"] = weight.meta["val"] = source.meta["val"]
    node.update_arg(1, weight)


def expand_sparse(module: GraphModule) -> int:
    """Writes every sparse weight as a plain float32 tensor with its zeros, in place, bit for bit; returns how many."""
    changed = 0
    for node in list(module.graph.nodes):
        found = sparse_of(node)
        if found is None:
            continue
        replace_by_tensor(module, node, found[0].removesuffix("_mask"), dense(module, found))
        changed += 1
    if changed:
        finish(module)
    return changed


def dense(module: GraphModule, names: tuple[str, str]) -> torch.Tensor:
    """The float32 weight of a mask and its values."""
    mask, values = (attribute(module, name).detach() for name in names)
    weight = torch.zeros(mask.shape)
    weight[mask] = values
    return weight


def mask_bits(mask: torch.Tensor) -> float:
    """Shannon entropy of a mask, in bits for each element: what it takes to say where the zeros are."""
    share = float(mask.float().mean())
    if share in (0.0, 1.0):
        return 0.0
    return -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
