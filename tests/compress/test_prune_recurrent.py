"""Recurrent layers: which cells go together, held against the whole network in which nothing reads the cells that were cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from edgekit.compress.prune.channels import PruneChannels, prune, weight_costs
from edgekit.compress.prune.flow import Flow, analyse
from edgekit.compress.prune.groups import coupled_groups
from edgekit.compress.prune.importance import class_scores
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.selection import select
from edgekit.compress.prune.surgery import cut
from edgekit.cost import cost_of
from edgekit.program import aten, export_program, set_training, trainable

STEPS, FEATURES, CHANNELS, CELLS = 7, 5, 6, 8
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Recurrent(nn.Module):
    """A convolution over time, a recurrent layer, and a linear layer that reads it in one of several ways."""

    def __init__(
        self, kind: str, *, layers: int = 1, both: bool = False, batch_first: bool = True, reads: str = "last",
        **more: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.both, self.batch_first, self.reads, self.layers = both, batch_first, reads, layers
        self.conv = nn.Conv1d(FEATURES, CHANNELS, 3, padding=1)
        self.recurrent = KINDS[kind](
            CHANNELS, CELLS, layers, bidirectional=both, batch_first=batch_first, dropout=0.5 * (layers > 1), **more
        )
        width = more.get("proj_size") or CELLS
        self.head = nn.Linear(width * (1 + both) * (layers if reads == "all states" else 1), 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        y, states = self.recurrent(x if self.batch_first else x.transpose(0, 1))
        hidden = states[0] if isinstance(states, tuple) else states
        if self.reads == "state":  # of the last layer, as most code has it
            return self.head(torch.cat([hidden[-2], hidden[-1]], 1) if self.both else hidden[-1])
        if self.reads == "all states":
            return self.head(hidden.transpose(0, 1).flatten(1))
        if self.reads == "mean":
            return self.head(y.mean(1 if self.batch_first else 0))
        return self.head(y[:, -1] if self.batch_first else y[-1])


def _exported(network: nn.Module) -> GraphModule:
    """In float64, where a network that has been cut and a whole one agree to the last digits but a few."""
    return _in(torch.float64, trainable(export_program(network.eval(), (STEPS, FEATURES))))


def _in(dtype: torch.dtype, module: GraphModule) -> GraphModule:
    for node in module.graph.nodes:
        if "dtype" in node.kwargs:
            node.update_kwarg("dtype", dtype)
    module.recompile()
    return module.to(dtype)


def _inputs() -> torch.Tensor:
    return torch.randn(3, STEPS, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _roots(flow: Flow, parameter: str, dim: int) -> list[int]:
    return next(flow.roots(s.ids).tolist() for s in flow.slots if (s.parameter, s.dim) == (parameter, dim))


def _unread(module: GraphModule, parameter: str, columns: list[int]) -> None:
    with torch.no_grad():
        module.get_parameter(parameter)[:, columns] = 0


def _cut_and_silenced(
    network: nn.Module, gone: dict[int, list[int]], channels: list[int]
) -> tuple[GraphModule, GraphModule]:
    """The network without some cells of each layer, and the whole one in which no weight reads them."""
    whole, pruned = _exported(network), _exported(network)
    flow = analyse(pruned, RULES)
    assert not flow.barriers
    inputs = _roots(flow, "recurrent.weight_ih_l0", 1)
    removed = {inputs[channel] for channel in channels}
    layers, both = network.layers, network.both
    suffixes = ("", "_reverse") if both else ("",)
    for suffix in suffixes:
        _unread(whole, f"recurrent.weight_ih_l0{suffix}", channels)
    for layer, cells in gone.items():
        for suffix in suffixes:
            roots = _roots(flow, f"recurrent.weight_hh_l{layer}{suffix}", 1)
            removed |= {roots[cell] for cell in cells}
            _unread(whole, f"recurrent.weight_hh_l{layer}{suffix}", cells)
        outputs = [cell + CELLS * direction for direction in range(1 + both) for cell in cells]
        for suffix in suffixes if layer + 1 < layers else ():
            _unread(whole, f"recurrent.weight_ih_l{layer + 1}{suffix}", outputs)
        if network.reads == "all states":
            _unread(whole, "head.weight", [cell + CELLS * (1 + both) * layer for cell in outputs])
        elif layer + 1 == layers:
            _unread(whole, "head.weight", outputs)
    cut(flow, removed)
    return pruned, whole


@pytest.mark.parametrize(
    ("kind", "layers", "both", "batch_first", "reads"),
    [
        ("lstm", 1, False, True, "last"),
        ("lstm", 1, True, False, "mean"),
        ("lstm", 2, False, False, "last"),
        ("lstm", 2, True, True, "state"),
        ("gru", 1, False, False, "state"),
        ("gru", 1, True, True, "last"),
        ("gru", 2, False, True, "mean"),
        ("gru", 2, True, False, "last"),
        ("rnn", 2, True, True, "last"),
    ],
)
def test_cut_cells_are_those_that_nothing_reads(
    kind: str, layers: int, both: bool, batch_first: bool, reads: str
) -> None:
    torch.manual_seed(0)
    network = Recurrent(kind, layers=layers, both=both, batch_first=batch_first, reads=reads)
    gone = {0: [0, 3, 5], 1: [1, 2]} if layers == 2 else {0: [0, 3, 5]}
    pruned, whole = _cut_and_silenced(network, gone, [2, 4])
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[kind]
    for layer, cells in gone.items():
        left = CELLS - len(cells)
        assert pruned.get_parameter(f"recurrent.weight_hh_l{layer}").shape == (gates * left, left)
    torch.testing.assert_close(pruned(_inputs()), whole(_inputs()), rtol=1e-11, atol=1e-12)
    # What is left is exported again, and is followed again.
    again = trainable(export_program(_in(torch.float32, pruned), (STEPS, FEATURES)))
    assert not analyse(again, RULES).barriers
    torch.testing.assert_close(again(_inputs().float()), whole(_inputs()).float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "both"), [("lstm", True), ("gru", False)])
def test_layers_whose_states_are_read_together_lose_the_same_cells(kind: str, both: bool) -> None:
    torch.manual_seed(0)
    network = Recurrent(kind, layers=2, both=both, reads="all states")
    flow = analyse(_exported(network), RULES)
    assert _roots(flow, "recurrent.weight_hh_l0", 1) == _roots(flow, "recurrent.weight_hh_l1", 1)
    pruned, whole = _cut_and_silenced(network, {0: [1, 6], 1: [1, 6]}, [])
    torch.testing.assert_close(pruned(_inputs()), whole(_inputs()), rtol=1e-11, atol=1e-12)


def test_layers_of_equal_width_stay_one_operator() -> None:
    network = Recurrent("lstm", layers=2)
    pruned, whole = _cut_and_silenced(network, {0: [1, 6], 1: [0, 2]}, [])
    assert sum(node.target is aten.lstm.input for node in pruned.graph.nodes) == 1
    torch.testing.assert_close(pruned(_inputs()), whole(_inputs()), rtol=1e-11, atol=1e-12)
    pruned, _ = _cut_and_silenced(network, {0: [1, 6], 1: [0]}, [])
    assert sum(node.target is aten.lstm.input for node in pruned.graph.nodes) == 2
    # Between them stands the dropout that was between the layers.
    batch = _inputs()
    assert torch.equal(pruned(batch), pruned(batch))
    set_training(pruned, True)
    assert not torch.equal(pruned(batch), pruned(batch))


def test_a_projection_loses_outputs_and_the_cells_behind_it_stay() -> None:
    torch.manual_seed(0)
    network = Recurrent("lstm", layers=2, both=True, proj_size=5)
    whole, pruned = _exported(network), _exported(network)
    flow = analyse(pruned, RULES)
    assert not flow.barriers
    removed = {_roots(flow, f"recurrent.weight_hr_l{layer}", 0)[cell] for layer, cell in ((0, 1), (1, 2), (1, 4))}
    for suffix in ("", "_reverse"):
        _unread(whole, f"recurrent.weight_hh_l0{suffix}", [1])
        _unread(whole, f"recurrent.weight_ih_l1{suffix}", [1, 6])
        _unread(whole, f"recurrent.weight_hh_l1{suffix}", [2, 4])
    _unread(whole, "head.weight", [2, 4, 7, 9])
    cut(flow, removed)
    assert pruned.get_parameter("recurrent.weight_hr_l1").shape == (3, CELLS)
    assert pruned.get_parameter("recurrent.weight_hh_l1").shape == (4 * CELLS, 3)
    torch.testing.assert_close(pruned(_inputs()), whole(_inputs()), rtol=1e-11, atol=1e-12)


class Begins(nn.Module):
    """A GRU whose initial state comes from somewhere."""

    def __init__(self, begins: str) -> None:
        super().__init__()
        self.begins = begins
        self.recurrent, self.head = nn.GRU(FEATURES, CELLS, batch_first=True), nn.Linear(CELLS, 4)
        self.encoder, self.linear = nn.GRU(FEATURES, CELLS, batch_first=True), nn.Linear(FEATURES, CELLS)
        self.learned = nn.Parameter(torch.randn(1, 1, CELLS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        begin = {
            "ones": lambda: torch.ones(1, x.shape[0], CELLS, dtype=x.dtype).to(x.device),
            "new": lambda: x.new_zeros(1, x.shape[0], CELLS),
            "learned": lambda: self.learned.expand(1, x.shape[0], CELLS).contiguous(),
            "repeated": lambda: self.learned.repeat(1, x.shape[0], 1),
            "linear": lambda: self.linear(x[:, 0]).unsqueeze(0),
            "encoder": lambda: self.encoder(x.flip(1))[1],
            "input": lambda: torch.cumsum(nn.functional.pad(x[:, 0], (0, 3)), 1).unsqueeze(0),
        }[self.begins]()
        y, hidden = self.recurrent(x, begin)
        return self.head(y.mean(1) + hidden.squeeze(0))


@pytest.mark.parametrize("begins", ["ones", "new", "learned", "repeated", "linear", "encoder"])
def test_initial_states_follow_their_cells(begins: str) -> None:
    torch.manual_seed(0)
    network = Begins(begins)
    whole, pruned = _exported(network), _exported(network)
    flow = analyse(pruned, RULES)
    assert not [barrier for barrier in flow.barriers if "gru" in barrier.operator]
    roots = _roots(flow, "recurrent.weight_hh_l0", 1)
    cells = [0, 3, 5]
    assert not any(flow.is_frozen(root) for root in roots)
    for parameter in ("recurrent.weight_hh_l0", "head.weight", *["encoder.weight_hh_l0"] * (begins == "encoder")):
        _unread(whole, parameter, cells)
    cut(flow, {roots[cell] for cell in cells})
    assert pruned.get_parameter("recurrent.weight_hh_l0").shape == (15, 5)
    torch.testing.assert_close(pruned(_inputs()), whole(_inputs()), rtol=1e-11, atol=1e-12)


def test_a_computed_initial_state_keeps_its_cells_and_is_named() -> None:
    flow = analyse(_exported(Begins("input")), RULES)
    (barrier,) = [barrier for barrier in flow.barriers if "gru" in barrier.operator]
    assert "initial state" in barrier.remedy
    assert all(flow.is_frozen(root) for root in _roots(flow, "recurrent.weight_hh_l0", 1))


def test_two_layers_that_share_one_state_each_get_their_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LSTM(FEATURES, CELLS), nn.LSTM(CELLS, CELLS)
            self.head = nn.Linear(CELLS, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            zeros = torch.zeros(1, x.shape[0], CELLS)
            y = self.first(x.transpose(0, 1), (zeros, zeros))[0]
            return self.head(self.second(y, (zeros, zeros))[0][-1])

    module = trainable(export_program(Two().eval(), (STEPS, FEATURES)))
    flow = analyse(module, RULES)
    cut(flow, {*_roots(flow, "first.weight_hh_l0", 1)[:3], *_roots(flow, "second.weight_hh_l0", 1)[:1]})
    assert module(_inputs().float()).shape == (3, 4)
    assert module.get_parameter("second.weight_ih_l0").shape == (28, 5)


@pytest.mark.parametrize(("measure", "both"), [("macs", True), ("parameters", False), ("bytes", True)])
def test_costs_shrink_as_in_fact_along_both_dimensions(measure: str, both: bool) -> None:
    torch.manual_seed(0)
    module = trainable(export_program(Recurrent("gru", layers=2, both=both), (STEPS, FEATURES)))
    before, flow = cost_of(module), analyse(module, RULES)
    costs = weight_costs(module, flow, measure)
    biases = 0 if measure != "parameters" else sum(p.numel() for p in (module.conv.bias, module.head.bias))
    assert sum(costs.values()) + biases == pytest.approx(getattr(before, measure))
    found = select(flow, class_scores(flow, "l2"), costs, goal=0.4)
    cut(flow, found.removed)
    after = trainable(export_program(module, (STEPS, FEATURES)))
    now = sum(weight_costs(after, analyse(after, RULES), measure).values())
    assert found.fraction == pytest.approx(now / sum(costs.values()), rel=1e-9)
    assert 0.3 < found.fraction <= 0.4
    shapes = [after.get_parameter(f"recurrent.weight_hh_l{layer}").shape for layer in range(2)]
    assert all(rows == 3 * columns for rows, columns in shapes)
    assert min(columns for _, columns in shapes) < CELLS


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_cell_is_one_part_of_each_weight_against_numpy(kind: str) -> None:
    torch.manual_seed(0)
    network = Recurrent(kind)
    module = trainable(export_program(network.eval(), (STEPS, FEATURES)))
    flow = analyse(module, RULES)
    roots = _roots(flow, "recurrent.weight_hh_l0", 1)
    w_in, w_hidden = (
        getattr(network.recurrent, f"weight_{name}_l0").detach().double().numpy() for name in ("ih", "hh")
    )
    head = network.head.weight.detach().double().numpy()
    gates = len(w_hidden) // CELLS
    of_cell = [list(range(cell, gates * CELLS, CELLS)) for cell in range(CELLS)]
    for name, order in (("l1", 1), ("l2", 2)):
        parts = np.array([
            [np.linalg.norm(w_in[rows].ravel(), order) for rows in of_cell],
            [np.linalg.norm(w_hidden[rows].ravel(), order) for rows in of_cell],
            [np.linalg.norm(w_hidden[:, cell], order) for cell in range(CELLS)],
            [np.linalg.norm(head[:, cell], order) for cell in range(CELLS)],
        ])  # fmt: skip
        wanted = np.linalg.norm(parts / parts.mean(1, keepdims=True), order, axis=0)
        scores = class_scores(flow, name)
        np.testing.assert_allclose([scores[root] for root in roots], wanted, rtol=1e-6)
    distances = np.zeros(CELLS)
    for weight in (w_in, w_hidden):
        own = np.array([sum(np.linalg.norm(weight[a] - weight[b]) for b in of_cell) for a in of_cell])
        distances += own / own.mean()
    scores = class_scores(flow, "geometric-median")
    np.testing.assert_allclose([scores[root] for root in roots], distances, rtol=1e-5)


def test_taylor_is_the_slope_of_the_loss_along_a_cell() -> None:
    """d/da L at a = 1 by finite differences, where a is a factor on all that a cell's class holds, once for each dimension."""
    torch.manual_seed(0)
    module = _exported(Recurrent("lstm"))
    flow = analyse(module, RULES)
    x, y = _inputs(), torch.tensor([0, 1, 2])
    cell = _roots(flow, "recurrent.weight_hh_l0", 1)[3]
    slots = [(s.parameter, s.dim, np.flatnonzero(flow.roots(s.ids) == cell)) for s in flow.slots]
    before = {name: value.detach().clone() for name, value in module.named_parameters()}

    def loss(factor: float) -> float:
        with torch.no_grad():
            for name, value in before.items():
                module.get_parameter(name).copy_(value)
            for name, dim, places in slots:
                module.get_parameter(name).index_copy_(
                    dim,
                    torch.tensor(places),
                    factor * module.get_parameter(name).index_select(dim, torch.tensor(places)),
                )
            return float(nn.functional.cross_entropy(module(x), y))

    slope = (loss(1 + 1e-5) - loss(1 - 1e-5)) / 2e-5
    loss(1)
    assert class_scores(flow, "taylor", batches=[(x, y)])[cell] == pytest.approx(slope**2, rel=1e-6)


@pytest.mark.parametrize("importance", ["fisher", "lasso", "discrimination", "random", "energy", "geometric-median"])
def test_every_criterion_that_needs_no_batch_norm_ranks_cells(importance: str) -> None:
    torch.manual_seed(0)
    module = trainable(export_program(Recurrent("gru", both=True), (STEPS, FEATURES)))
    flow = analyse(module, RULES)
    x = torch.randn(40, STEPS, FEATURES, generator=torch.Generator().manual_seed(0))
    scores = class_scores(flow, importance, batches=[(x, torch.arange(40) % 4)])
    assert set(_roots(flow, "recurrent.weight_hh_l0", 1)) <= set(scores)
    assert len({scores[root] for root in _roots(flow, "recurrent.weight_hh_l0", 1)}) > 1


def test_what_reads_the_cells_is_refitted_and_recurrent_weights_are_left_alone() -> None:
    torch.manual_seed(0)
    network = Recurrent("lstm", layers=2, reads="mean")
    module = trainable(export_program(network, (STEPS, FEATURES)))
    x = torch.randn(64, STEPS, FEATURES, generator=torch.Generator().manual_seed(0))
    wanted = module(x)
    plain = trainable(export_program(network, (STEPS, FEATURES)))
    settings = PruneChannels(macs=0.6, multiple=1, epochs=0)
    prune(plain, settings)
    _, refitted = prune(module, settings, images=x.numpy())
    assert [refit.layer for refit in refitted] == ["conv", "head"]
    for name, value in module.named_parameters():
        if name.startswith("recurrent"):
            assert torch.equal(value, plain.get_parameter(name))
    missed = [float((network_(x) - wanted).square().mean()) for network_ in (module, plain)]
    assert missed[0] < 0.5 * missed[1]


def test_groups_name_the_recurrent_layer() -> None:
    module = trainable(export_program(Recurrent("gru", layers=2), (STEPS, FEATURES)))
    groups, barriers = coupled_groups(module)
    assert not barriers
    found = [(group.channels, group.made_by, group.read_by, group.fixed) for group in groups]
    own = "recurrent"
    assert found == [
        (CHANNELS, ("conv",), (own,), False),
        (CELLS, (own,), (own,), False),
        (CELLS, (own,), (own, "head"), False),
        (4, ("head",), (), True),
    ]
