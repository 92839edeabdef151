"""Recurrent layers lose hidden cells, each with its rows in all gates, its columns in the recurrent weight, and its readers.

Wen et al., "Learning Intrinsic Sparse Structures within Long Short-Term Memory", ICLR 2018, section 3.1: whatever is left is
a layer of the same kind with fewer cells, so that no runtime needs to know. torch stacks the gates in a weight's rows (four
of them in an LSTM, three in a GRU), so a cell's identity stands there once for each gate.

A node of the graph holds several layers and both directions, and torch keeps all their states in one tensor, of one width.
Layers that lose different numbers of cells become a node each, as they are in every format that files are written for.
Both directions of a layer stay one operator there too, and so lose as many cells: the same positions in both. Layers whose
states are given or read as a whole (``h_n`` but for ``h_n[-1]``) lose the same positions likewise.

Where an LSTM's output is projected, it loses outputs of the projection, and its cells stay: torch tells that there is one
by states of different widths.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from edgekit.compress.prune.flow import Barrier, Flow, Kept, Labels
from edgekit.compress.prune.reshapes import bind_constant
from edgekit.compress.prune.rules import rule
from edgekit.program import aten, layer_name

GATES: dict[Any, int] = {aten.lstm.input: 4, aten.gru.input: 3, aten.rnn_tanh.input: 1, aten.rnn_relu.input: 1}
"""The recurrent operators, and how many gates a weight of each has in its rows."""
# Operators that make a state of one value, and where they have its sizes; those through which it may pass on its way.
_MAKERS: dict[Any, int] = {
    aten.zeros.default: 0, aten.ones.default: 0, aten.full.default: 0,
    aten.new_zeros.default: 1, aten.new_ones.default: 1, aten.new_full.default: 1,
}  # fmt: skip
_PASSES = (
    aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.contiguous.default, aten.clone.default,
    aten.detach.default,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of one direction of one layer.

    Attributes:
        inputs: (gates × cells, inputs).
        hidden: (gates × cells, outputs).
        biases: (gates × cells,) each; none, or one for each of the two.
        projection: (outputs, cells), where an LSTM's output is projected.
    """

    inputs: Any
    hidden: Any
    biases: tuple[Any, ...]
    projection: Any

    def all(self) -> list[Any]:
        """In torch's order."""
        return [self.inputs, self.hidden, *self.biases, *([] if self.projection is None else [self.projection])]


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the arguments of a recurrent node say.

    Attributes:
        states: The initial ones, each (layers × directions, batch, width): hidden, and in an LSTM the cells'.
        layers: For each layer the parameters by direction.
        rest: The arguments behind the number of layers: dropout, train, bidirectional, batch_first.
        has_biases: Whether it has.
    """

    states: tuple[Any, ...]
    layers: tuple[tuple[Parameters, ...], ...]
    rest: tuple[Any, ...]
    has_biases: bool

    @property
    def directions(self) -> int:
        """2 where the sequence is read from its end too."""
        return len(self.layers[0])

    @property
    def outputs(self) -> int:
        """The width of what one direction gives: cells, or what they are projected to."""
        return int(self.layers[0][0].hidden.meta["val"].shape[1])

    @classmethod
    def of(cls, node: Node) -> Form:
        """The form of a node of one of the operators in :data:`GATES`."""
        _, states, parameters, has_biases, count, *rest = node.args
        flat: Any = parameters
        directions = 2 if rest[2] else 1
        each = len(flat) // (int(count) * directions)  # type: ignore[call-overload]
        biases = 2 if has_biases else 0
        found = [
            Parameters(
                inputs=flat[at],
                hidden=flat[at + 1],
                biases=tuple(flat[at + 2 : at + 2 + biases]),
                projection=flat[at + 2 + biases] if each > 2 + biases else None,
            )
            for at in range(0, len(flat), each)
        ]
        layers = tuple(tuple(found[at : at + directions]) for at in range(0, len(found), directions))
        given = tuple(states) if isinstance(states, (list, tuple)) else (states,)
        return cls(states=given, layers=layers, rest=tuple(rest), has_biases=bool(has_biases))


@rule(*GATES)
def recurrent(flow: Flow, node: Node) -> list[Labels | None]:
    """An LSTM, GRU or plain RNN: the output's last dimension holds cells, forward then backward; so do the final states."""
    form = Form.of(node)
    inputs = flow.labels(node.args[0])
    if inputs is not None and inputs.dim != 2:
        flow.freeze(inputs)
        inputs = None
    read = inputs.ids if inputs is not None else None
    cells: list[np.ndarray] = []
    for layer in form.layers:
        made = [flow.fresh(form.outputs) for _ in layer]
        for direction, ids in zip(layer, made, strict=True):
            flow.unite(made[0], ids)  # one width for both, so the same positions
            _bind(flow, node, direction, read, ids)
        cells.append(made[0])
        read = np.concatenate(made)
    states: list[Labels | None] = [_final(flow, node, form, cells, 1 + place) for place in range(len(form.states))]
    if form.layers[0][0].projection is not None:
        states[1:] = [None]  # of the cells, which stay
    _begin(flow, node, form, cells)
    flow.edits.append(lambda kept: _fewer_cells(node, cells, kept))
    return [Labels(2, read if read is not None else cells[-1]), *states]


def parameter_costs(node: Node, macs: float | None) -> dict[str, float]:
    """What each parameter of a recurrent node costs, by name: its share of the node's MACs, or its size.

    Args:
        node: One of the operators in :data:`GATES`.
        macs: Of the node; each weight has a share, being used once in a time step, and biases have none. None for sizes.
    """
    flat = [p for layer in Form.of(node).layers for direction in layer for p in direction.all()]
    sizes = [(str(p.target) if p.op == "get_attr" else p.name, p.meta["val"]) for p in flat]
    if macs is None:
        return {name: float(value.numel()) for name, value in sizes}
    weights = [(name, value.numel()) for name, value in sizes if value.dim() == 2]
    costs: dict[str, float] = {}
    for name, count in weights:
        costs[name] = costs.get(name, 0.0) + macs * count / sum(count for _, count in weights)
    return costs


def _bind(flow: Flow, node: Node, own: Parameters, read: np.ndarray | None, ids: np.ndarray) -> None:
    """The parameters of one direction of a layer that reads these channels and makes those."""
    if read is not None:
        flow.bind(own.inputs, 1, read, "in", node)
    flow.bind(own.hidden, 1, ids, "in", node)
    if own.projection is not None:
        flow.bind(own.projection, 0, ids, "out", node)
        return
    rows = np.tile(ids, GATES[node.target])
    for weight in (own.inputs, own.hidden):
        flow.bind(weight, 0, rows, "out", node)
    for bias in own.biases:
        flow.bind(bias, 0, rows, "vector", node)


def _together(flow: Flow, cells: list[np.ndarray]) -> Labels:
    for other in cells[1:]:
        flow.unite(cells[0], other)
    return Labels(2, cells[0])


def _final(flow: Flow, node: Node, form: Form, cells: list[np.ndarray], place: int) -> Labels | None:
    """The cells in a final state, whose first dimension holds layers and directions."""
    layers = {index // form.directions if index is not None else None for _, index in _picked(node, form, place)}
    if not layers:
        return None
    (only,) = layers if len(layers) == 1 else (None,)
    return Labels(2, cells[only]) if only is not None else _together(flow, cells)


def _picked(node: Node, form: Form, place: int) -> Iterator[tuple[Node, int | None]]:
    """Who reads a result, and which of its states; None where not just one."""
    count = len(form.layers) * form.directions
    for item in node.users:
        if item.target is operator.getitem and item.args[1] == place:
            for user in item.users:
                one = user.target is aten.select.int and user.args[1] in (0, -3)
                yield user, int(user.args[2]) % count if one else None  # type: ignore[arg-type]


def _begin(flow: Flow, node: Node, form: Form, cells: list[np.ndarray]) -> None:
    """Initial states follow the cells where the graph makes them of one value, holds them, or has them from such cells."""
    projected = form.layers[0][0].projection is not None
    for state in form.states[:1] if projected else form.states:
        if _chain(state):
            continue
        labels = _together(flow, cells)
        given = flow.labels(state)
        if isinstance(given, Labels) and given.dim == 2 and len(given.ids) == form.outputs:
            flow.unite(labels.ids, given.ids)
        elif given is not None or not bind_constant(flow, state, labels, node):
            flow.freeze([labels, given])
            remedy = "Its cells stay, as its initial state is computed: start from zeros or from a parameter."
            flow.barriers.append(Barrier(node.name, layer_name(node), str(node.target), remedy))


def _chain(state: Any) -> list[Node]:
    """The nodes from a state back to the operator that makes it of one value; empty where there is none."""
    found = []
    while isinstance(state, Node):
        found.append(state)
        if state.target in _MAKERS:
            return found
        state = state.args[0] if state.target in _PASSES else None
    return []


def _fewer_cells(node: Node, cells: list[np.ndarray], kept: Kept) -> None:
    form = Form.of(node)
    widths = [int(kept(ids).sum()) for ids in cells]
    if set(widths) == {form.outputs}:
        return
    if len(set(widths)) == 1:
        _begin_with(node, _smaller(node, form, len(cells), widths[0]))
    else:
        _take_apart(node, form, widths)
    for state in dict.fromkeys(form.states):
        for made in _chain(state):
            if not made.users:
                made.graph.erase_node(made)


def _smaller(node: Node, form: Form, layers: int, width: int) -> list[Node]:
    """The initial states for so many layers of another width; those that are not made of one value are as they were."""
    states = []
    for state in form.states:
        now = state
        for old in reversed(_chain(state)):
            with node.graph.inserting_before(node):
                copy = node.graph.node_copy(old, lambda n: n)
            if old.target in _MAKERS:
                sizes = list(old.args[_MAKERS[old.target]])  # type: ignore[arg-type]
                sizes[0] = layers * form.directions
                # An LSTM's cells are of another width where its output is projected, and stay.
                sizes[2] = width if sizes[2] == form.outputs else sizes[2]
                copy.update_arg(_MAKERS[old.target], sizes)
            else:
                copy.update_arg(0, now)
            now = copy
        states.append(now)
    return states


def _begin_with(node: Node, states: list[Node]) -> None:
    node.update_arg(1, states if isinstance(node.args[1], (list, tuple)) else states[0])


def _take_apart(node: Node, form: Form, widths: list[int]) -> None:
    """A node for each layer; the last of them is the one that was, so that its readers stay."""
    graph, directions = node.graph, form.directions
    dropout, train, *rest = form.rest
    readers = [(user, i, place) for place in range(1, 3) for user, i in _picked(node, form, place)]
    source: Any = node.args[0]
    made: list[Node] = []
    for number, (layer, width) in enumerate(zip(form.layers, widths, strict=True)):
        flat = [parameter for direction in layer for parameter in direction.all()]
        states = _smaller(node, form, 1, width)
        last = number == len(widths) - 1
        with graph.inserting_before(node):
            one = node if last else graph.create_node("call_function", node.target)
            one.args = (source, node.args[1], flat, form.has_biases, 1, 0.0, train, *rest)
            _begin_with(one, states)
            made.append(one)
            if last:
                break
            one.meta = dict(node.meta)
            source = _item(one, 0)
            if dropout:  # between layers
                source = graph.call_function(aten.dropout.default, (source, dropout, train))
                source.meta = dict(node.meta)
    for user, index, place in readers:
        if index is None:  # nobody reads more than one layer's, or all had lost the same
            continue
        item: Any = user.args[0]
        layer_of_it = made[index // directions]
        if layer_of_it is not node:
            with graph.inserting_before(node.next):
                user.update_arg(0, _item(layer_of_it, place))
        user.update_arg(2, index % directions)
        if not item.users:
            graph.erase_node(item)


def _item(node: Node, place: int) -> Node:
    item = node.graph.call_function(operator.getitem, (node, place))
    item.meta = dict(node.meta)
    return item
