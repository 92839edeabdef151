"""Operators on all parts of a split move before it, and a split whose parts are only put together again goes.

What makes horizontal fusion pay: one wide activation in place of several, and no copy where none is needed.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.edit import buffer_before, finish, free_name, owned_parameter, parameter_before
from edgekit.compress.rewrite.siblings import merged_name
from edgekit.program import aten, attribute, shape_of

# Each element by itself: before the split or after it is the same.
_ELEMENT_WISE = (
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.leaky_relu.default,
    aten.elu.default, aten.gelu.default, aten.silu.default, aten.hardswish.default, aten.hardsigmoid.default,
    aten.sigmoid.default, aten.tanh.default, aten.softplus.default, aten.mish.default,
)  # fmt: skip


def hoist_over_splits(module: GraphModule) -> int:
    """Computes what follows on every part of a split once, before it, in place; returns how many operators are saved.

    Activations, and batch norms of the same epsilon and momentum.
    """
    saved = 0
    for node in list(module.graph.nodes):
        while node.target is aten.split_with_sizes.default and (readers := _same_on_every_part(node)) is not None:
            _hoist(module, node, readers)
            saved += len(readers) - 1
    finish(module)
    return saved


def remove_splits_before_concatenation(module: GraphModule) -> int:
    """Gives a concatenation the whole in place of all its parts in their order, in place; returns how many splits went."""
    removed = 0
    for node in list(module.graph.nodes):
        if node.target is not aten.split_with_sizes.default:
            continue
        parts = _parts(node)
        if parts is None or any(len(part.users) != 1 for part in parts):
            continue
        reader = next(iter(parts[0].users))
        if reader.target is not aten.cat.default or not _same_dim(node, reader):
            continue
        given = list(reader.args[0])  # type: ignore[arg-type]
        start = given.index(parts[0])
        if given[start : start + len(parts)] == parts and all(given.count(part) == 1 for part in parts):
            reader.update_arg(0, [*given[:start], node.args[0], *given[start + len(parts) :]])
            if len(reader.args[0]) == 1:  # type: ignore[arg-type]
                reader.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            removed += 1
    finish(module)
    return removed


def _parts(split: Node) -> list[Node] | None:
    """The parts of a split in order; None if one is not read, or read in another way."""
    found: dict[int, Node] = {}
    for user in split.users:
        if user.target is not operator.getitem or user.args[1] in found:
            return None
        found[user.args[1]] = user  # type: ignore[index]
    parts = [found[index] for index in sorted(found)]
    return parts if len(parts) == len(split.args[1]) else None  # type: ignore[arg-type]


def _same_dim(split: Node, concatenation: Node) -> bool:
    rank = len(shape_of(split.args[0]))  # type: ignore[arg-type]
    dims = [node.args[place] if len(node.args) > place else 0 for node, place in ((split, 2), (concatenation, 1))]
    return dims[0] % rank == dims[1] % rank  # type: ignore[operator]


def _same_on_every_part(split: Node) -> list[Node] | None:
    """The operators that alone read a part each, if they are all the same."""
    parts = _parts(split)
    if parts is None or any(len(part.users) != 1 for part in parts):
        return None
    readers = [next(iter(part.users)) for part in parts]
    first = readers[0]
    if any(reader.args[0] is not part for reader, part in zip(readers, parts, strict=True)):
        return None
    if first.target in _ELEMENT_WISE:
        alike = all((r.target, r.args[1:], r.kwargs) == (first.target, first.args[1:], first.kwargs) for r in readers)
        return readers if alike else None
    if first.target is aten.batch_norm.default:
        along_channels = split.args[2] in (1, 1 - len(shape_of(split.args[0])))  # type: ignore[arg-type]
        alike = all(r.target is first.target and r.args[5:] == first.args[5:] for r in readers)
        return readers if along_channels and alike and _have_own_tensors(readers) else None
    return None


def _have_own_tensors(norms: list[Node]) -> bool:
    """Whether each of the four tensors is there, and read by no other, in all of some batch norms."""
    return all(owned_parameter(tensor) is not None for norm in norms for tensor in norm.args[1:5])


def _hoist(module: GraphModule, split: Node, readers: list[Node]) -> None:
    first, source = readers[0], split.args[0]
    tensors = _wide_norm(module, split, readers) if first.target is aten.batch_norm.default else []
    with module.graph.inserting_before(split):
        wide = module.graph.call_function(
            first.target,  # type: ignore[arg-type]
            (source, *tensors, *first.args[1 + len(tensors) :]),
            first.kwargs,
        )
    wide.meta = {**first.meta, "val": source.meta["val"]}  # type: ignore[union-attr]
    split.update_arg(0, wide)
    for reader in readers:
        reader.replace_all_uses_with(reader.args[0])  # type: ignore[arg-type]
        module.graph.erase_node(reader)


def _wide_norm(module: GraphModule, split: Node, norms: list[Node]) -> list[Node]:
    """Scale, shift, mean and variance of all the norms, one after the other."""
    weights = [str(norm.args[1].target) for norm in norms]  # type: ignore[union-attr]
    name = free_name(module, merged_name(weights))
    made: list[Node] = []
    for place, leaf in enumerate(("weight", "bias", "running_mean", "running_var"), 1):
        values: list[Any] = [attribute(module, str(norm.args[place].target)) for norm in norms]  # type: ignore[union-attr]
        whole = torch.cat([value.detach() for value in values])
        put = parameter_before if place < 3 else buffer_before
        made.append(put(module, split, f"{name}.{leaf}", whole))
    return made
