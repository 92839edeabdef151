"""Where the dimensions of a tensor lie: as the user's code sees them, and as they are computed.

A tensor of a user's code may be a transpose, a split and a merge of what is really computed. Dimensions are made of atoms,
the pieces that no view in sight takes apart; a :class:`Value` says how the atoms of a computed node make up the tensor that
it stands for. Views and transposes then change that saying and compute nothing, and an operator that needs the tensor in
some order gets it by :meth:`Layout.arrange`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.program import aten

Size = tuple[int, int]
"""A factor, and the power of the batch: ``(3, 1)`` is three times the batch."""


class UnfitError(Exception):
    """A shape or a view that atoms can't express; it never leaves the pass."""


@dataclass(frozen=True, eq=False)
class Atom:
    """A piece of a dimension; two of equal size are not the same."""

    size: Size

    @property
    def is_batch(self) -> bool:
        """Whether the batch is in it."""
        return self.size[1] > 0


# What two readers of a tensor may share.
_MOVES = (
    aten.permute.default, aten.unflatten.int, aten.flatten.using_ints, aten.squeeze.dim, aten.unsqueeze.default,
    aten.slice.Tensor, aten.select.int,
)  # fmt: skip

Group = tuple[Atom, ...]
"""The atoms of one dimension, the outer first; none for a dimension of size 1."""


@dataclass(frozen=True)
class Value:
    """A computed node, and the tensor that it stands for.

    Attributes:
        node: What is computed.
        physical: For each dimension of the node its atoms.
        logical: For each dimension of the tensor in the user's code its atoms.
    """

    node: Node
    physical: tuple[Group, ...]
    logical: tuple[Group, ...]

    def split(self, atom: Atom, parts: Group) -> Value:
        """The same with an atom taken apart."""

        def new(groups: tuple[Group, ...]) -> tuple[Group, ...]:
            return tuple(tuple(p for a in group for p in (parts if a is atom else (a,))) for group in groups)

        return Value(self.node, new(self.physical), new(self.logical))

    def seen_as(self, logical: Sequence[Group]) -> Value:
        """Another tensor made of the same atoms."""
        return Value(self.node, self.physical, tuple(logical))


def sizes_of(node: Node) -> tuple[Size, ...]:
    """The sizes of a node's tensor.

    Raises:
        UnfitError: If one is no multiple of a power of the batch.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise UnfitError
    return tuple(_size(size) for size in value.shape)


def _size(size: Any) -> Size:
    if isinstance(size, int):
        return size, 0
    factor, rest = size.node.expr.as_coeff_Mul()
    base, power = rest.as_base_exp()
    if not (factor.is_Integer and base.is_Symbol and power.is_Integer and power > 0):
        raise UnfitError
    return int(factor), int(power)


def whole(node: Node) -> Value:
    """A node that stands for itself, each dimension an atom."""
    groups = tuple((Atom(size),) for size in sizes_of(node))
    return Value(node, groups, groups)


def viewed(value: Value, sizes: Sequence[Size]) -> Value:
    """The tensor seen with other sizes in the same order of elements, as by ``view``.

    Raises:
        UnfitError: If a dimension would take a piece out of the middle of others.
    """
    left = [atom for group in value.logical for atom in group]
    groups: list[Group] = []
    for size in reversed(sizes):
        group: list[Atom] = []
        factor, power = size
        while (factor, power) != (1, 0):
            while left and left[-1].size == (1, 0):
                left.pop()
            if not left:
                raise UnfitError
            atom = left.pop()
            own, batch = atom.size
            if factor % own == 0 and batch <= power:
                group.insert(0, atom)
                factor, power = factor // own, power - batch
            elif own % factor == 0 and power == 0 and batch == 0:
                outer, inner = Atom((own // factor, 0)), Atom((factor, 0))
                value = value.split(atom, (outer, inner))
                left.append(outer)
                group.insert(0, inner)
                factor = 1
            else:
                raise UnfitError
        groups.insert(0, tuple(group))
    if any(atom.size != (1, 0) for atom in left):
        raise UnfitError
    return value.seen_as(groups)


def aligned(value: Value, other: Value) -> tuple[Value, Value]:
    """Two tensors of the same sizes, made of atoms of the same sizes in the same order.

    Raises:
        UnfitError: If their dimensions are not cut alike.
    """
    sizes = [[atom.size for group in v.logical for atom in group] for v in (value, other)]
    fine = viewed(value, sizes[1]), viewed(other, sizes[0])
    groups = tuple(math.prod((1, *(a.size[0] for a in g))) for g in value.logical)
    if groups != tuple(math.prod((1, *(a.size[0] for a in g))) for g in other.logical):
        raise UnfitError
    return fine[0].seen_as(_regroup(fine[0], value)), fine[1].seen_as(_regroup(fine[1], other))


def _regroup(fine: Value, coarse: Value) -> tuple[Group, ...]:
    """The atoms of ``fine`` in the dimensions of ``coarse``."""
    left = [atom for group in fine.logical for atom in group]
    groups = []
    for old in coarse.logical:
        size = [math.prod(a.size[0] for a in old), sum(a.size[1] for a in old)]
        group: list[Atom] = []
        while size != [1, 0]:
            atom = left.pop(0)
            size = [size[0] // atom.size[0], size[1] - atom.size[1]]
            group.append(atom)
        groups.append(tuple(group))
    return tuple(groups)


@dataclass
class Layout:
    """Writes nodes into a graph, each with its shape.

    Attributes:
        module: The graph.
        before: Where new nodes go, and whose place in the user's modules they get.
    """

    module: GraphModule
    before: Node | None = None
    _moved: dict[Any, Node] = field(default_factory=dict)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A new node and its value's shape."""
        assert self.before is not None
        key = (target, str(args), str(kwargs)) if target in _MOVES else None
        if key in self._moved:
            return self._moved[key]
        with self.module.graph.inserting_before(self.before):
            node = self.module.graph.call_function(target, args, kwargs)
        values = torch.fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        with _mode_of(values[0]):
            node.meta["val"] = target(*values[0], **values[1])
        if "nn_module_stack" in self.before.meta:
            node.meta["nn_module_stack"] = self.before.meta["nn_module_stack"]
        if key is not None:
            self._moved[key] = node
        return node

    def arrange(self, value: Value, groups: Sequence[Group]) -> Node:
        """The tensor with dimensions of these atoms, in this order; every atom of more than one element once."""
        groups = [tuple(a for a in group if a.size != (1, 0)) for group in groups]
        node, pieces = value.node, [tuple(a for a in group if a.size != (1, 0)) for group in value.physical]
        if pieces == groups:
            return node
        for place in reversed(range(len(pieces))):
            piece = pieces[place]
            if not piece:
                node = self.call(aten.squeeze.dim, node, place)
                del pieces[place]
            elif len(piece) > 1 and not any(_within(piece, group) for group in groups):
                sizes = [-1 if atom.is_batch else atom.size[0] for atom in piece]
                node = self.call(aten.unflatten.int, node, place, sizes)
                pieces[place : place + 1] = [(atom,) for atom in piece]
        order = [atom for group in groups for atom in group]
        wanted = sorted(range(len(pieces)), key=lambda i: order.index(pieces[i][0]))
        if wanted != list(range(len(pieces))):
            node = self.call(aten.permute.default, node, wanted)
        held = [pieces[i] for i in wanted]
        for place, group in enumerate(groups):
            count = 0
            while sum(len(piece) for piece in held[place : place + count]) < len(group):
                count += 1
            if not count:
                node = self.call(aten.unsqueeze.default, node, place)
                held.insert(place, ())
            elif count > 1:
                node = self.call(aten.flatten.using_ints, node, place, place + count - 1)
                held[place : place + count] = [group]
        return node


def _within(piece: Group, group: Group) -> bool:
    """Whether the atoms stand in the group side by side, in order."""
    return any(group[i : i + len(piece)] == piece for i in range(len(group)))


def _mode_of(args: Any) -> Any:
    from torch._guards import detect_fake_mode

    return detect_fake_mode(list(torch.utils._pytree.tree_leaves(args)))
