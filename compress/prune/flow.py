"""How channels flow through a graph: who shares a channel with whom, and what must be cut together.

Every channel gets an identity where it is made (a row of a convolution's weight, say). The rules of
:mod:`edgekit.compress.prune.rules` carry the identities along the nodes; where two tensors meet (a residual addition,
a grouped convolution), their channels become one. What is left are classes of channels that stand or fall together,
and for each class the slices of parameters that hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.compress.prune.balance import bundles
from edgekit.program import layer_name, shape_of

Kept = Callable[[np.ndarray], np.ndarray]
"""Given channel identities, tells for each whether it stays (a boolean array of the same length)."""


@dataclass(frozen=True)
class Labels:
    """The channel identities of a tensor along one of its dimensions.

    Attributes:
        dim: The dimension that holds channels, counted from the front.
        ids: int64, one identity for each position along it.
    """

    dim: int
    ids: np.ndarray


@dataclass(frozen=True)
class Slot:
    """One dimension of one parameter, bound to channel identities.

    Attributes:
        parameter: Dotted name of the parameter or buffer.
        dim: Which of its dimensions.
        ids: The identity that each index along it belongs to; with several groups, those of one after the other.
        role: ``out`` and ``in`` for weights, ``vector`` for biases and normalization.
        node: The node that uses it.
        groups: Into how many runs of rows (along dimension 0) the parameter is divided, each with identities of its own
            along ``dim``, as the weight of a grouped convolution is: each group reads other channels.
    """

    parameter: str
    dim: int
    ids: np.ndarray
    role: Literal["out", "in", "vector"]
    node: Node
    groups: int = 1

    @property
    def size(self) -> int:
        """The size of the dimension."""
        return len(self.ids) // self.groups

    def slices(self, value: torch.Tensor) -> torch.Tensor:
        """What belongs to each identity in the parameter, or in a tensor of its shape: (identities, elements)."""
        by_group = value.unflatten(0, (self.groups, -1))
        return by_group.movedim(self.dim + 1, 1).reshape(len(self.ids), -1)


@dataclass(frozen=True)
class Work:
    """A dimension that an operator without weights multiplies over, as attention does: its MACs go with the channels left.

    Attributes:
        name: The node, and which of its products where it has several.
        dim: A number for each dimension of the same product.
        ids: The identity of each index along it.
    """

    name: str
    dim: int
    ids: np.ndarray


@dataclass(frozen=True)
class Barrier:
    """A node that channels can't be followed through; what it reads is left as it is.

    Attributes:
        node: Name of the node in the program.
        layer: Its place in the user's module hierarchy.
        operator: The ATen operator.
        remedy: What to do about it.
    """

    node: str
    layer: str
    operator: str
    remedy: str


@dataclass
class Flow:
    """The state that the rules work on, and the result of the analysis.

    Attributes:
        module: The graph that is analysed; rules don't change it.
        slots: Every bound parameter dimension.
        work: What operators without weights multiply.
        barriers: Where the analysis stopped.
        edits: Changes of constants in the graph (group counts, view sizes …), made when channels are cut.
    """

    module: GraphModule
    slots: list[Slot] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    barriers: list[Barrier] = field(default_factory=list)
    edits: list[Callable[[Kept], None]] = field(default_factory=list)
    _labels: dict[Node, Any] = field(default_factory=dict)
    _parent: list[int] = field(default_factory=list)
    _frozen: set[int] = field(default_factory=set)
    _unbalanced: list[tuple[np.ndarray, int]] = field(default_factory=list)

    def fresh(self, count: int) -> np.ndarray:
        """New identities, each a class of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def find(self, identity: int) -> int:
        """The representative of the identity's class."""
        root = identity
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[identity] != root:
            self._parent[identity], identity = root, self._parent[identity]
        return root

    def roots(self, ids: np.ndarray) -> np.ndarray:
        """The class of each identity."""
        return np.array([self.find(int(i)) for i in ids], dtype=np.int64)

    def unite(self, first: np.ndarray, second: np.ndarray) -> None:
        """Makes the channels of two tensors the same, position by position."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            root_a, root_b = self.find(a), self.find(b)
            if root_a != root_b:
                self._parent[root_b] = root_a
                if root_b in self._frozen:
                    self._frozen.add(root_a)

    def balance(self, ids: np.ndarray, groups: int) -> None:
        """Asks that each of so many equal runs of these channels loses as many as the others (see :meth:`settle`)."""
        self._unbalanced.append((ids, groups))

    def settle(self, ids: np.ndarray | None = None) -> None:
        """Makes those channels the same that have to go together for groups to stay equal; what has no counterpart stays.

        It is put off to the end of the analysis, as long as more of them may become the same in other ways.

        Args:
            ids: Only where these channels have a part in it; None for all.
        """
        later = []
        for members, groups in self._unbalanced:
            roots = self.roots(members)
            if ids is not None and not np.isin(roots, self.roots(ids)).any():
                later.append((members, groups))
                continue
            classes, begins, place = np.unique(roots, return_index=True, return_inverse=True)
            counts = np.zeros((len(classes), groups), dtype=np.int64)
            np.add.at(counts, (place, np.arange(len(roots)) // (len(roots) // groups)), 1)
            free = [i for i in np.argsort(begins) if int(classes[i]) not in self._frozen and np.ptp(counts[i])]
            found, left = bundles(counts[free])
            for first, *others in found:
                for other in others:
                    self.unite(classes[free[first], None], classes[free[other], None])
            self._frozen.update(int(classes[free[i]]) for i in left)
        self._unbalanced = later

    def freeze(self, labels: Any) -> None:
        """Forbids to cut the channels of these labels (also lists of labels; None is fine)."""
        if isinstance(labels, Labels):
            self._frozen.update(self.find(int(i)) for i in labels.ids)
        elif isinstance(labels, (list, tuple)):
            for item in labels:
                self.freeze(item)

    def is_frozen(self, root: int) -> bool:
        """Whether the class of this representative must stay."""
        return root in self._frozen

    def labels(self, node: Any) -> Any:
        """The labels of a node's value: Labels, a list of them for operators with several results, or None."""
        return self._labels.get(node) if isinstance(node, Node) else None

    def bind(
        self, source: Any, dim: int, ids: np.ndarray, role: Literal["out", "in", "vector"], node: Node, groups: int = 1
    ) -> None:
        """Binds a dimension of a parameter node to identities; a None in place of the node is fine (no bias).

        With several groups (see :class:`Slot`) the channels are those of one after the other, and have to be balanced.
        Where the graph computes a weight (from another one, say), its channels have to stay.
        """
        if isinstance(source, Node) and source.op != "get_attr":
            self.freeze(Labels(dim, ids))
        elif isinstance(source, Node):
            self.slots.append(Slot(str(source.target), dim, ids, role, node, groups))

    def barrier(self, node: Node, remedy: str = "") -> None:
        """Stops here: everything that the node reads is frozen, and the report will name it."""
        stopped = [self.labels(source) for source in node.all_input_nodes]
        if any(label is not None for label in stopped):
            self.freeze(stopped)
            remedy = remedy or "Register a rule with edgekit.compress.prune.rules.rule, or accept that it stays whole."
            self.barriers.append(Barrier(node.name, layer_name(node), str(node.target), remedy))

    def counts(self) -> dict[tuple[str, int], int]:
        """The size of every bound parameter dimension."""
        return {(slot.parameter, slot.dim): slot.size for slot in self.slots}


Rule = Callable[[Flow, Node], Any]


def analyse(module: GraphModule, rules: Mapping[Any, Rule], *, frozen_outputs: bool = True) -> Flow:
    """Follows the channels through a graph.

    Args:
        module: A graph in ATen training IR whose nodes carry ``meta["val"]``.
        rules: For each operator how channels flow through it; an operator without one is a barrier.
        frozen_outputs: Whether the channels that the graph returns have to stay.
    """
    flow = Flow(module)
    for node in module.graph.nodes:
        if node.op == "output":
            for source in node.all_input_nodes if frozen_outputs else ():
                flow.freeze(flow.labels(source))
        elif node.op == "call_function":
            rule = rules.get(node.target)
            if rule is None:
                flow.barrier(node)
            else:
                flow._labels[node] = rule(flow, node)
    _freeze_shared_parameters(flow)
    flow.settle()
    return flow


def _freeze_shared_parameters(flow: Flow) -> None:
    """A parameter that two nodes read through different channels has to keep them in step: they become one."""
    first: dict[tuple[str, int], Slot] = {}
    for slot in flow.slots:
        known = first.setdefault((slot.parameter, slot.dim), slot)
        if known is not slot and known.groups != slot.groups:
            flow.freeze([Labels(s.dim, s.ids) for s in (known, slot)])
        elif known is not slot:
            flow.unite(known.ids, slot.ids)
    # A parameter that is also read by a node without a binding can't change its shape.
    bound = {(slot.parameter, slot.node) for slot in flow.slots}
    names = {slot.parameter for slot in flow.slots}
    for node in flow.module.graph.nodes:
        if node.op == "get_attr" and str(node.target) in names:
            for user in node.users:
                if (str(node.target), user) not in bound:
                    for slot in flow.slots:
                        if slot.parameter == str(node.target):
                            flow.freeze(Labels(slot.dim, slot.ids))


__all__ = ["Barrier", "Flow", "Kept", "Labels", "Rule", "Slot", "Work", "analyse", "shape_of"]
