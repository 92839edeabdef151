"""Parallel branches that are added become one convolution (structural re-parameterization).

Ding et al., "RepVGG", CVPR 2021, section 3.3: a 3×3 convolution, a 1×1 convolution and the identity, each with its batch
norm, are one 3×3 convolution, because convolution is linear in its kernel. Found by structure, whatever the source calls
it: RepVGG's blocks, MobileOne's (several equal branches, depthwise too), asymmetric kernels beside a square one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.batch_norm import scale_and_shift, tensor_of
from edgekit.compress.rewrite.edit import argument, finish, free_name, owned_parameter, parameter_before
from edgekit.compress.rewrite.siblings import merged_name
from edgekit.program import aten, attribute, layer_name, shape_of

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)


@dataclass(frozen=True)
class _Branch:
    """One summand: a convolution of ``source`` if there is one, then a batch norm if there is one."""

    source: Node
    convolution: Node | None
    norm: Node | None
    end: Node


def merge_branches(module: GraphModule) -> list[dict[str, Any]]:
    """Merges branches that read the same tensor and are added, in place.

    The kernel of one of them must cover those of all others (so that nothing is computed in vain), with paddings that lay
    their centers on each other, equal strides and groups, no dilation, and weights that no other layer reads. Exact;
    computed in float64 and rounded once.

    Returns:
        For each merged layer: its name, and the branches that it was made of.
    """
    merged: list[dict[str, Any]] = []
    for node in list(module.graph.nodes):
        if _is_sum(node) and not any(_is_sum(user) for user in node.users if len(node.users) == 1):
            merged += _merge_in_sum(module, node)
    finish(module)
    return merged


def _is_sum(node: Node) -> bool:
    if node.target is not aten.add.Tensor or node.kwargs:
        return False
    return all(isinstance(part, Node) and shape_of(part) == shape_of(node) for part in node.args)


def _summands(node: Node, *, root: bool = True) -> list[Node]:
    if _is_sum(node) and (root or len(node.users) == 1):
        return [leaf for part in node.args for leaf in _summands(part, root=False)]  # type: ignore[arg-type]
    return [node]


def _merge_in_sum(module: GraphModule, node: Node) -> list[dict[str, Any]]:
    leaves = _summands(node)
    groups: dict[tuple[Node, Hashable], list[_Branch]] = {}
    for leaf in leaves:
        branch = _branch(leaf)
        if branch.convolution is not None and _mergeable(branch.convolution):
            groups.setdefault((branch.source, _geometry(branch.convolution)), []).append(branch)
    plain = [branch for leaf in leaves if (branch := _branch(leaf)).convolution is None]
    merged, rest = [], list(leaves)
    for (source, _), branches in groups.items():
        cover = max(branches, key=lambda b: math.prod(_kernel(b.convolution))).convolution
        assert cover is not None
        chosen = [branch for branch in branches if _covers(cover, branch.convolution)]
        if _keeps_shape(cover, source):
            chosen += [branch for branch in plain if branch.source is source and branch.end in rest]
        if len(chosen) < 2:
            continue
        wide, name = _merge(module, node, source, cover, chosen)
        parts = [
            layer_name(b.convolution) if b.convolution else layer_name(b.norm) if b.norm else "identity" for b in chosen
        ]
        merged.append({"layers": parts, "into": name})
        for branch in chosen:
            rest.remove(branch.end)
        rest.append(wide)
    if merged:
        _sum_up(module, node, rest)
    return merged


def _branch(leaf: Node) -> _Branch:
    end, norm = leaf, None
    if leaf.target is aten.batch_norm.default and len(leaf.users) == 1:
        norm, leaf = leaf, leaf.args[0]  # type: ignore[assignment]
    if leaf.target in _CONVOLUTIONS and len(leaf.users) == 1:
        return _Branch(leaf.args[0], leaf, norm, end)  # type: ignore[arg-type]
    return _Branch(leaf, None, norm, end)


def _mergeable(node: Node) -> bool:
    weight, bias = argument(node, 1), argument(node, 2)
    owned = owned_parameter(weight) is not None and (bias is None or owned_parameter(bias) is not None)
    return owned and all(d == 1 for d in argument(node, 5, [1]))


def _kernel(node: Node | None) -> tuple[int, ...]:
    assert node is not None
    return tuple(int(k) for k in node.args[1].meta["val"].shape[2:])  # type: ignore[union-attr]


def _spread(node: Node, place: int, default: int) -> tuple[int, ...]:
    values = argument(node, place, [default])
    return tuple(values) * (len(_kernel(node)) if len(values) == 1 else 1)


def _geometry(node: Node) -> Hashable:
    return node.target, _spread(node, 3, 1), argument(node, 6, 1)


def _offset(cover: Node, other: Node) -> tuple[int, ...]:
    """Where the other kernel's first element lies in the covering one."""
    return tuple(a - b for a, b in zip(_spread(cover, 4, 0), _spread(other, 4, 0), strict=True))


def _covers(cover: Node, other: Node | None) -> bool:
    assert other is not None
    fits = zip(_offset(cover, other), _kernel(other), _kernel(cover), strict=True)
    return all(offset >= 0 and offset + size <= whole for offset, size, whole in fits)


def _keeps_shape(cover: Node, source: Node) -> bool:
    """Whether the identity can be written as a kernel of this form."""
    strides, paddings = _spread(cover, 3, 1), _spread(cover, 4, 0)
    inside = all(p < k for p, k in zip(paddings, _kernel(cover), strict=True))
    return inside and all(s == 1 for s in strides) and shape_of(cover) == shape_of(source)


def _merge(module: GraphModule, node: Node, source: Node, cover: Node, branches: list[_Branch]) -> tuple[Node, str]:
    like = attribute(module, str(cover.args[1].target))  # type: ignore[union-attr]
    weight = torch.zeros(like.shape, dtype=torch.float64)
    bias = torch.zeros(like.shape[0], dtype=torch.float64)
    for branch in branches:
        kernel, shift = _kernel_and_bias(module, branch, cover, like.shape)
        weight += kernel
        bias += shift
    names = [str(b.convolution.args[1].target) for b in branches if b.convolution]  # type: ignore[union-attr]
    name = free_name(module, merged_name(names))
    made = [
        parameter_before(module, node, f"{name}.{leaf}", value.to(like.dtype))
        for leaf, value in (("weight", weight), ("bias", bias))
    ]
    with module.graph.inserting_before(node):
        wide = module.graph.call_function(cover.target, (source, *made, *cover.args[3:]))  # type: ignore[arg-type]
    wide.meta = {**cover.meta, "val": node.meta["val"]}
    return wide, name


def _kernel_and_bias(
    module: GraphModule, branch: _Branch, cover: Node, shape: torch.Size
) -> tuple[torch.Tensor, torch.Tensor]:
    """A branch as a kernel of the covering one's shape, and a bias, in float64."""
    whole = torch.zeros(shape, dtype=torch.float64)
    bias = torch.zeros(shape[0], dtype=torch.float64)
    if branch.convolution is not None:
        own = attribute(module, str(branch.convolution.args[1].target)).detach().double()  # type: ignore[union-attr]
        offset = _offset(cover, branch.convolution)
        window: list[Any] = [slice(o, o + s) for o, s in zip(offset, own.shape[2:], strict=True)]
        whole[(slice(None), slice(None), *window)] = own
        bias = tensor_of(module, argument(branch.convolution, 2), 0.0, shape[0])
    else:
        # Output channel c is input channel c, which is number c mod (in / groups) of its group.
        channels = torch.arange(shape[0])
        centre: list[Any] = list(_spread(cover, 4, 0))
        whole[(channels, channels % shape[1], *centre)] = 1.0
    if branch.norm is None:
        return whole, bias
    scale, shift = scale_and_shift(module, branch.norm, bias)
    return whole * scale.view(-1, *[1] * (len(shape) - 1)), shift


def _sum_up(module: GraphModule, node: Node, parts: list[Node]) -> None:
    """Puts the sum of these in the place of a sum."""
    total = parts[0]
    with module.graph.inserting_before(node):
        for part in parts[1:]:
            total = module.graph.call_function(aten.add.Tensor, (total, part))
            total.meta = dict(node.meta)
    node.replace_all_uses_with(total)
    module.graph.erase_node(node)
