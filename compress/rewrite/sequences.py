"""Two linear layers in a row, with nothing between them, become one where that costs less.

A 1×1 convolution before or behind another convolution, or two fully connected layers: a product of matrices (Ding et al.,
"Diverse Branch Block", CVPR 2021, transform III).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.batch_norm import tensor_of
from edgekit.compress.rewrite.edit import argument, finish, free_name, owned_parameter, parameter_before
from edgekit.compress.rewrite.siblings import merged_name
from edgekit.program import aten, attribute, layer_name, shape_of

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)


def merge_sequences(module: GraphModule) -> list[dict[str, Any]]:
    """Merges sequences of two linear layers, in place, where one has no more MACs and no more weights than both.

    A 1×1 convolution merges into the one behind it only if it has no bias or nothing is padded between them: padding puts
    zeros where the bias would be. Exact; computed in float64 and rounded once.

    Returns:
        For each merged layer: its name, and the layers that it was made of.
    """
    merged: list[dict[str, Any]] = []
    while (found := next((n for n in module.graph.nodes if _merges_with_the_one_before(module, n)), None)) is not None:
        merged.append(_merge(module, found.args[0], found))
    finish(module)
    return merged


def _merges_with_the_one_before(module: GraphModule, second: Node) -> bool:
    first = second.args[0] if second.args else None
    if not isinstance(first, Node) or first.target is not second.target or len(first.users) != 1:
        return False
    if second.target not in (*_CONVOLUTIONS, aten.linear.default) or not _own(first) or not _own(second):
        return False
    if second.target in _CONVOLUTIONS:
        if argument(first, 6, 1) != 1 or argument(second, 6, 1) != 1:
            return False
        bias_is_lost = any(argument(second, 4, [0])) and not _is_zero(module, argument(first, 2))
        if not _is_pointwise_convolution(second) and (not _is_pointwise_convolution(first) or bias_is_lost):
            return False
    weights = [node.args[1].meta["val"] for node in (first, second)]  # type: ignore[union-attr]
    kernel = math.prod(weights[0].shape[2:]) * math.prod(weights[1].shape[2:])
    together = int(weights[1].shape[0]) * int(weights[0].shape[1]) * kernel
    places = [
        math.prod(shape_of(node)[1:]) // int(w.shape[0]) for node, w in zip((first, second), weights, strict=True)
    ]
    macs = sum(place * w.numel() for place, w in zip(places, weights, strict=True))
    return together * places[1] <= macs and together <= sum(w.numel() for w in weights)


def _own(node: Node) -> bool:
    bias = argument(node, 2)
    return owned_parameter(argument(node, 1)) is not None and (bias is None or owned_parameter(bias) is not None)


def _is_zero(module: GraphModule, bias: Any) -> bool:
    return bias is None or not attribute(module, str(bias.target)).any()


def _is_pointwise_convolution(node: Node) -> bool:
    kernel = node.args[1].meta["val"].shape[2:]  # type: ignore[union-attr]
    one = all(k == 1 for k in kernel) and all(s == 1 for s in argument(node, 3, [1]))
    return one and not any(argument(node, 4, [0]))


def _merge(module: GraphModule, first: Node, second: Node) -> dict[str, Any]:
    tensors = [attribute(module, str(node.args[1].target)) for node in (first, second)]  # type: ignore[union-attr]
    one, two = (tensor.detach().double() for tensor in tensors)
    middle, out = int(one.shape[0]), int(two.shape[0])
    inner = tensor_of(module, argument(first, 2), 0.0, middle)
    # Fully connected layers are pointwise: their kernels hold one element for each pair of channels.
    pointwise = two[0, 0].numel() == 1
    equation, factors = (
        ("om,mi...->oi...", (two.flatten(1), one)) if pointwise else ("om...,mi->oi...", (two, one.flatten(1)))
    )
    weight = torch.einsum(equation, *factors)
    bias = tensor_of(module, argument(second, 2), 0.0, out) + two.reshape(out, middle, -1).sum(2) @ inner
    spatial = first if pointwise else second
    names = [str(node.args[1].target) for node in (first, second)]  # type: ignore[union-attr]
    name = free_name(module, merged_name(names))
    made: list[Any] = [parameter_before(module, second, f"{name}.weight", weight.to(tensors[0].dtype))]
    if argument(first, 2) is not None or argument(second, 2) is not None:
        made.append(parameter_before(module, second, f"{name}.bias", bias.to(tensors[0].dtype)))
    else:
        made.append(None)
    report = {"layers": [layer_name(first), layer_name(second)], "into": name}
    with module.graph.inserting_before(second):
        merged = module.graph.call_function(second.target, (first.args[0], *made, *spatial.args[3:]))  # type: ignore[arg-type]
    merged.meta = dict(second.meta)
    second.replace_all_uses_with(merged)
    module.graph.erase_node(second)
    module.graph.erase_node(first)
    return report
