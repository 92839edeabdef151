"""Sibling layers that read the same input become one wider layer, and a split behind it (horizontal fusion).

The layers of an Inception block that begin with a 1×1 convolution, or queries, keys and values of an attention. Source:
NVIDIA TensorRT, Developer Guide, "Types of fusions" (horizontal layer fusion). One large product fills a processor
better than several small ones and reads the input once; the split may cost a copy. :mod:`edgekit.compress.rewrite.splits`
moves the split behind what follows, or takes it out.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.batch_norm import tensor_of
from edgekit.compress.rewrite.edit import argument, finish, free_name, owned_parameter, parameter_before, resized
from edgekit.program import aten, attribute, layer_name

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
# Runtimes compute these inside the layer before them: a split between would cost a pass over memory for each.
FUSED = (aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default)


def merge_siblings(module: GraphModule) -> list[dict[str, Any]]:
    """Merges sibling convolutions and linear layers, in place, and puts a split behind each merged layer.

    Siblings read the same tensor, have equal kernels, strides, paddings and dilations, one group, weights of their own, and
    the same activation behind them where runtimes would fuse it. Exact to the order of summation in the runtime.

    Returns:
        For each merged layer: its name, and the names of the layers that it was made of.
    """
    merged: list[dict[str, Any]] = []
    # What reads a part of a merged layer may have siblings too.
    while (found := _siblings(module)) is not None:
        source, layers = found
        merged.append(_merge(module, source, _in_order(module, layers)))
    finish(module)
    return merged


def _siblings(module: GraphModule) -> tuple[Node, list[Node]] | None:
    """The first tensor of the graph that several layers of a kind read, and those."""
    for source in module.graph.nodes:
        groups: dict[Hashable, list[Node]] = {}
        for user in source.users:
            if (kind := _kind(user, source)) is not None:
                groups.setdefault(kind, []).append(user)
        for layers in groups.values():
            if len(layers) > 1:
                return source, layers
    return None


def _kind(node: Node, source: Node) -> Hashable | None:
    """What siblings must have in common; None for a layer that can't be merged."""
    if node.target not in (*_CONVOLUTIONS, aten.linear.default) or node.args[0] is not source:
        return None
    weight, bias = argument(node, 1), argument(node, 2)
    if owned_parameter(weight) is None or (bias is not None and owned_parameter(bias) is None):
        return None
    if any(user.target is aten.split_with_sizes.default for user in node.users):
        return None  # wide already
    geometry: Hashable = ()
    if node.target in _CONVOLUTIONS:
        if argument(node, 6, 1) != 1:
            return None
        rank = weight.meta["val"].dim() - 2
        spread = [_each(argument(node, place, default), rank) for place, default in ((3, 1), (4, 0), (5, 1))]
        geometry = (tuple(int(k) for k in weight.meta["val"].shape[2:]), *spread)
    return node.target, geometry, weight.meta["val"].dtype, _norm_and_activation(node)


def _norm_and_activation(node: Node) -> Hashable:
    """Which batch norm and which fused activation alone follow a layer."""
    found: list[Hashable] = []
    for _ in range(2):
        users = list(node.users)
        if len(users) != 1 or users[0].args[0] is not node:
            break
        node = users[0]
        if node.target is aten.batch_norm.default and not found:
            found.append((node.target, tuple(node.args[6:8])))
        elif node.target in FUSED:
            found.append((node.target, tuple(node.args[1:])))
            break
        else:
            break
    return tuple(found)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (values * rank if len(values) == 1 else values))


def _in_order(module: GraphModule, layers: Sequence[Node]) -> list[Node]:
    """In the order in which a concatenation takes them, if one does; else in the order of the graph."""
    place = {node: index for index, node in enumerate(module.graph.nodes)}
    return sorted(layers, key=lambda node: (_place_in_concatenation(node), place[node]))


def _place_in_concatenation(node: Node) -> int:
    """Where the tensor stands that comes of a layer without another operator than a norm and an activation."""
    for _ in range(3):
        users = list(node.users)
        if len(users) != 1:
            break
        node, before = users[0], node
        if node.target is aten.cat.default:
            return list(node.args[0]).index(before)  # type: ignore[arg-type]
        if node.target is not aten.batch_norm.default and node.target not in FUSED:
            break
    return 1 << 30


def _merge(module: GraphModule, source: Node, layers: list[Node]) -> dict[str, Any]:
    graph = module.graph
    place = {node: index for index, node in enumerate(graph.nodes)}
    first = min(layers, key=place.__getitem__)
    names = [layer_name(node) for node in layers]
    weights = [attribute(module, str(node.args[1].target)).detach() for node in layers]  # type: ignore[union-attr]
    name = free_name(module, merged_name([str(node.args[1].target) for node in layers]))  # type: ignore[union-attr]
    inputs = [source, parameter_before(module, first, f"{name}.weight", torch.cat(weights))]
    sizes = [int(weight.shape[0]) for weight in weights]
    biases = [argument(node, 2) for node in layers]
    if any(bias is not None for bias in biases):
        parts = [tensor_of(module, bias, 0.0, size) for bias, size in zip(biases, sizes, strict=True)]
        bias = parameter_before(module, first, f"{name}.bias", torch.cat(parts).to(weights[0].dtype))
        inputs.append(bias)
    elif len(first.args) > 2:
        inputs.append(None)  # type: ignore[arg-type]
    dim = 1 if first.target in _CONVOLUTIONS else first.meta["val"].dim() - 1
    with graph.inserting_before(first):
        wide = graph.call_function(first.target, (*inputs, *first.args[3:]))  # type: ignore[arg-type]
        split = graph.call_function(aten.split_with_sizes.default, (wide, sizes, dim))
        parts_of = [graph.call_function(operator.getitem, (split, index)) for index in range(len(layers))]
    wide.meta = {**first.meta, "val": resized(first.meta["val"], dim, sum(sizes))}
    split.meta = {**first.meta, "val": [node.meta["val"] for node in layers]}
    for node, part in zip(layers, parts_of, strict=True):
        part.meta = dict(node.meta)
        node.replace_all_uses_with(part)
        graph.erase_node(node)
    return {"layers": names, "into": name, "outputs": sizes}


def merged_name(weights: Sequence[str]) -> str:
    """What to call a layer made of several: after the module that holds them all, and the first."""
    paths = [name.rpartition(".")[0] or name for name in weights]
    levels = itertools.takewhile(
        lambda level: len(set(level)) == 1, zip(*(p.split(".")[:-1] for p in paths), strict=False)
    )
    together = [level[0] for level in levels]
    rest = paths[0].split(".")[len(together) :]
    return ".".join([*together, "_".join([*rest, "merged"])])
