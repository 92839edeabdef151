"""The form of a weight with few values: integer codes, and a codebook that says what each stands for.

In the program a weight is ``codebook[codes]``: the graph computes it where it is read, gradients reach the codebook (each
entry gets the sum over its weights, as Han et al., ICLR 2016, section 3.3), and the archive stores the codes entropy-coded.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.rewrite import finish, replace_by_tensor
from edgekit.program import aten, attribute, codebook_of, set_attribute

# Codes are stored as bytes.
MOST_ENTRIES = 256


def put_codes(module: GraphModule, node: Node, codes: torch.Tensor, codebook: torch.Tensor) -> None:
    """Replaces a layer's weight by ``codebook[codes]``, in place.

    Args:
        module: The graph; call ``finish`` when all layers are done.
        node: The layer, whose weight is a plain tensor.
        codes: Of the weight's shape, 0 to len(codebook) - 1.
        codebook: float32, shape (entries,); an ``nn.Parameter`` if it may be trained.
    """
    if len(codebook) > MOST_ENTRIES:
        raise ValueError(f"a codebook has at most {MOST_ENTRIES} entries, not {len(codebook)}")
    source: Any = node.args[1]
    name = str(source.target)
    set_attribute(module, f"{name}_codes", codes.to(torch.uint8))
    set_attribute(module, f"{name}_codebook", codebook)
    graph = module.graph
    with graph.inserting_before(node):
        stored, table = graph.get_attr(f"{name}_codes"), graph.get_attr(f"{name}_codebook")
        wide = graph.call_function(aten.to.dtype, (stored, torch.int64))
        weight = graph.call_function(aten.index.Tensor, (table, [wide]))
    stored.meta["val"] = attribute(module, f"{name}_codes").to("meta")
    table.meta["val"] = codebook.detach().to("meta")
    wide.meta["val"] = stored.meta["val"].to(torch.int64)
    weight.meta["val"] = source.meta["val"]
    node.update_arg(1, weight)


def expand_codes(module: GraphModule) -> int:
    """Writes every coded weight as a plain float32 tensor, in place, bit for bit; returns how many."""
    changed = 0
    for node in list(module.graph.nodes):
        found = codebook_of(node)
        if found is None:
            continue
        codes, table = (attribute(module, name) for name in found)
        replace_by_tensor(module, node, found[0].removesuffix("_codes"), table.detach()[codes.long()])
        changed += 1
    if changed:
        finish(module)
    return changed


def entropy_bits(codes: torch.Tensor) -> float:
    """Shannon entropy of the codes, in bits for each: no code that treats weights one by one can be shorter."""
    share = torch.bincount(codes.reshape(-1).long()).double()
    share = share[share > 0] / codes.numel()
    return float(-(share * share.log2()).sum())


def fixed_bits(entries: int) -> int:
    """Bits of each code when all are of one length."""
    return max(1, math.ceil(math.log2(entries)))
