"""The batch in front: attention whose batch stands elsewhere, computed on (batch, heads, length, width).

``torch.nn.MultiheadAttention`` puts time before the batch, packs queries, keys and values into one dimension and folds the
heads into the batch. Runtimes without a batch (ncnn) can't take that, and no pass can follow its channels. Here the same
values are computed with the batch in front of every tensor: transposes and views are followed instead of computed
(:mod:`edgekit.layout`), operators get what they read with the batch first, and the packed projection is read by slices.
An operator without a rule gets its inputs as the user's code has them, so that no result changes.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgekit.batch_first_rules import Rewriter
from edgekit.layout import Layout, UnfitError, sizes_of
from edgekit.program import aten, attribute, set_attribute

_PRODUCTS = (
    aten.bmm.default, aten.matmul.default, aten.baddbmm.default, aten.scaled_dot_product_attention.default,
)  # fmt: skip
_SPLITS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default)


def needs_batch_first(module: GraphModule) -> bool:
    """Whether the graph has attention, and a tensor whose batch is not alone in the first dimension, or one taken apart."""
    targets = {node.target for node in module.graph.nodes}
    if targets.isdisjoint(_PRODUCTS):
        return False
    # What is returned may well have its batch elsewhere: the user's code has it so.
    inner = [n for n in module.graph.nodes if n.op == "call_function" and any(u.op != "output" for u in n.users)]
    return aten.unbind.int in targets or any(_is_elsewhere(node) for node in inner)


def _is_elsewhere(node: Node) -> bool:
    try:
        sizes = sizes_of(node)
    except UnfitError:
        return False
    return any(power for _, power in sizes[1:]) or any(size[1] and size != (1, 1) for size in sizes[:1])


def put_batch_first(module: GraphModule) -> GraphModule:
    """Rewrites a graph in place; its results stay, up to the rounding of products in another order.

    Args:
        module: A graph in ATen training IR with a free batch dimension, its nodes with ``meta["val"]``.
    """
    _separate_parameters(module)
    flow = Rewriter(Layout(module))
    for node in list(module.graph.nodes):
        if node.op == "output":
            flow.as_written(node)
        elif node.op == "call_function":
            flow.visit(node)
    graph = module.graph
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.lint()
    module.recompile()
    return module


def _separate_parameters(module: GraphModule) -> None:
    """Makes a parameter of each piece of one that the graph takes apart, as attention does where keys are not its queries."""
    for node in list(module.graph.nodes):
        source = node.args[0] if node.target in _SPLITS else None
        if not isinstance(source, Node) or source.op != "get_attr" or len(source.users) > 1:
            continue
        whole_tensor = attribute(module, str(source.target))
        pieces = node.target(whole_tensor.detach(), *node.args[1:])
        for reader in list(node.users):
            name = f"{source.target}_{reader.args[1]}"
            piece = pieces[reader.args[1]].clone()
            if isinstance(whole_tensor, torch.nn.Parameter):
                piece = torch.nn.Parameter(piece, whole_tensor.requires_grad)
            set_attribute(module, name, piece)
            with module.graph.inserting_before(source):
                made = module.graph.get_attr(name)
            made.meta["val"] = reader.meta["val"]
            reader.replace_all_uses_with(made)
            module.graph.erase_node(reader)
        module.graph.erase_node(node)
        module.graph.erase_node(source)
        owner, _, last = str(source.target).rpartition(".")
        delattr(module.get_submodule(owner), last)
