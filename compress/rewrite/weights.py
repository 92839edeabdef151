"""Weights that a network computes of its parameters, as weight and spectral normalization do."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from edgekit.compress.rewrite.edit import finish, free_name, replace_by_tensor
from edgekit.program import aten, attribute, codebook_of, module_path, quantized, sparse_of

_LAYERS = {
    aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding,
    aten.conv2d.padding, aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
}  # fmt: skip


def has_computed_weights(graph: Graph) -> bool:
    """Whether a layer's weight or bias is no plain tensor: a look that takes no time."""
    return any(isinstance(given, Node) and given.op == "call_function" for _, _, given in _given(graph))


def computed_weights_to_parameters(module: GraphModule) -> list[str]:
    """Writes weights and biases of layers that are computed of parameters alone as parameters, in place.

    Exact in evaluation. Training goes on without the normalization, as it does when its users take it out.

    Returns:
        The names of the parameters.
    """
    made = []
    for node, kind, given in list(_given(module.graph)):
        if not isinstance(given, Node) or given.op != "call_function" or _is_code(given):
            continue
        value = _value(module, given, {})
        if value is not None:
            name = _free(module, f"{module_path(node) or node.name}.{kind}")
            replace_by_tensor(module, given, name, value.detach().clone())
            made.append(name)
    finish(module)
    return made


def _given(graph: Graph) -> list[tuple[Node, str, Any]]:
    """For each layer its weight, and its bias if it has one."""
    layers = [node for node in graph.nodes if node.target in _LAYERS]
    return [
        (node, kind, node.args[position])
        for node, (position, kind) in itertools.product(layers, ((1, "weight"), (2, "bias")))
        if len(node.args) > position
    ]


def _is_code(node: Node) -> bool:
    """Whether a weight is stored so by us: integers, a codebook, zeros."""
    return node.target is quantized.dequantize_per_channel.default or bool(codebook_of(node) or sparse_of(node))


def _value(module: GraphModule, node: Node, known: dict[Node, Any]) -> Any:
    """What a node computes of parameters and constants; None if an input of the network is among what it needs."""
    if node not in known:
        if node.op == "get_attr":
            known[node] = attribute(module, str(node.target)).detach()
        elif node.op != "call_function" or any(_value(module, n, known) is None for n in node.all_input_nodes):
            known[node] = None
        else:
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return known[node]


def _free(module: GraphModule, wanted: str) -> str:
    owner, _, kind = wanted.rpartition(".")
    taken = {name for name, _ in itertools.chain(module.named_parameters(), module.named_buffers())}
    return f"{free_name(module, f'{owner}.computed')}.{kind}" if wanted in taken else wanted
