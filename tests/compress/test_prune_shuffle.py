"""Grouped convolutions behind channel shuffles: cut so that their groups stay equal, and still the same function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

from edgekit.compress.prune.balance import bundles
from edgekit.compress.prune.channels import PruneChannels, choose
from edgekit.compress.prune.flow import Flow, analyse
from edgekit.compress.prune.importance import class_scores
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.sparse_training import _Groups
from edgekit.compress.prune.surgery import cut
from edgekit.cost import cost_of
from edgekit.program import attribute, export_program, refresh_shapes, trainable
from edgekit.testing.silence import silence, twice
from edgekit.zoo.initialization import settle_statistics
from edgekit.zoo.shufflenet_v1 import WIDTHS, ShuffleNetV1, shuffle

SHAPE = (3, 6, 6)


class Shuffled(nn.Module):
    """A convolution, a shuffle of its groups, a depthwise convolution, and a grouped one."""

    def __init__(self, groups: int, width: int, readers: int, *, dense: bool = False) -> None:
        super().__init__()
        inner = groups * width
        self.groups, self.stem = groups, nn.Conv2d(3, 2 * groups, 1)
        self.reduce, self.norm = nn.Conv2d(2 * groups, inner, 1, groups=1 if dense else groups), nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, 1, 1, groups=inner)
        self.expand = nn.Conv2d(inner, 3 * readers, 1, groups=readers)
        self.mix, self.head = nn.Conv2d(3 * readers, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = shuffle(torch.relu(self.norm(self.reduce(torch.relu(self.stem(x))))), self.groups)
        y = torch.relu(self.expand(torch.relu(self.depthwise(y))))
        return self.head(torch.relu(self.mix(y)).mean((2, 3)))


class Partly(nn.Module):
    """A grouped convolution over channels of which some are also an output."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.hidden = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
        self.grouped, self.head = nn.Conv2d(12, 6, 1, groups=2), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.seen(x)
        y = torch.relu(self.grouped(torch.cat([seen, torch.relu(self.hidden(x))], 1)))
        return torch.cat([self.head(y.mean((2, 3))), seen.mean((2, 3))], 1)


class Shared(nn.Module):
    """One weight, read by a grouped convolution and by a dense one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.Linear(6, 5)
        self.weight = nn.Parameter(torch.zeros(6, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(torch.relu(self.wide(x)), self.weight, groups=2) + F.conv2d(
            torch.relu(self.narrow(x)), self.weight
        )
        return self.head(torch.relu(y).mean((2, 3)))


def _made(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for value in network.parameters():
        with torch.no_grad():
            fan_in = value[0].numel() if value.dim() > 1 else 8
            value.copy_(torch.randn(value.shape, generator=generator) / fan_in**0.5)
    return network.eval()


def _graph(network: nn.Module) -> tuple[GraphModule, Flow]:
    module = trainable(export_program(_made(network), SHAPE))
    return module, analyse(module, RULES)


def _classes(flow: Flow, parameter: str) -> list[int]:
    """Those of a weight's rows that may be cut, in order."""
    slot = next(s for s in flow.slots if s.parameter == parameter and s.role == "out")
    return [r for r in dict.fromkeys(flow.roots(slot.ids).tolist()) if not flow.is_frozen(r)]


def _some(flow: Flow, seed: int, certainly: str) -> set[int]:
    """Classes by chance, one of a weight's rows among them, such that every layer keeps a channel."""
    held = [set(flow.roots(slot.ids).tolist()) for slot in flow.slots]
    free = sorted({root for roots in held for root in roots if not flow.is_frozen(root)})
    generator = np.random.default_rng(seed)
    removed: set[int] = {int(generator.choice(_classes(flow, certainly)))}
    for root in generator.permutation(free).tolist():
        if len(removed) < 0.6 * len(free) and all(roots - removed - {root} for roots in held):
            removed.add(root)
    return removed


def _compare(network: nn.Module, seed: int, certainly: str) -> GraphModule:
    whole, flow, pruned, again = twice(export_program(_made(network), SHAPE))
    removed = _some(flow, seed, certainly)
    silence(whole, flow, removed)
    cut(again, removed)
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    # Sums run over fewer terms: float32 rounding of values of order 1.
    torch.testing.assert_close(pruned(x), whole(x), rtol=1e-4, atol=1e-5)
    return pruned


# Groups that are shuffled, channels of each, groups of the reader: where the last divides the second, each of the reader's
# groups holds whole columns of the shuffle, elsewhere some columns lie across their bounds.
@pytest.mark.parametrize(
    ("groups", "width", "readers"),
    [
        (2, 8, 2), (2, 9, 2), (3, 9, 3), (3, 20, 3), (3, 7, 3), (4, 8, 4), (4, 17, 4), (8, 16, 8), (8, 12, 8),
        (2, 12, 3), (3, 8, 2), (3, 8, 4), (4, 6, 3), (8, 9, 4),
    ],
)  # fmt: skip
def test_what_is_left_is_the_whole_network_without_those_channels(groups: int, width: int, readers: int) -> None:
    for seed, dense in enumerate((False, True)):
        pruned = _compare(Shuffled(groups, width, readers, dense=dense), seed, "reduce.weight")
        left = pruned.reduce.weight.shape[0]
        assert left < groups * width
        assert pruned.expand.weight.shape[1] * readers == pruned.depthwise.weight.shape[0] == left


def test_columns_of_a_shuffle_go_one_of_each_group_and_those_across_the_bounds_together() -> None:
    # Three groups of 20, column n at the positions 3n to 3n + 2 behind the shuffle, read by three groups of 20: columns 6
    # and 13 lie across the bounds at 20 and 40, with 2 + 1 and 1 + 2 channels.
    counts = np.array([np.bincount(np.arange(3 * n, 3 * n + 3) // 20, minlength=3) for n in range(20)])
    found, left = bundles(counts)
    assert sorted(found) == [*([t, 7 + t, 14 + t] for t in range(6)), [6, 13]]
    assert not left
    _, flow = _graph(Shuffled(3, 20, 3))
    assert len(_classes(flow, "reduce.weight")) == 7


def test_channels_that_are_alone_go_at_the_same_place_of_each_group() -> None:
    counts = np.repeat(np.eye(4, dtype=np.int64), 6, axis=0)
    assert bundles(counts) == ([[p, p + 6, p + 12, p + 18] for p in range(6)], [])


def test_bundles_hold_as_many_of_each_group_and_nothing_is_left_of_equal_groups() -> None:
    generator = np.random.default_rng(0)
    for _ in range(40):
        groups, width = generator.integers(2, 9, 2)
        classes = int(generator.integers(1, groups * width + 1))
        counts = np.zeros((classes, groups), np.int64)
        np.add.at(counts, (generator.integers(0, classes, groups * width), np.arange(groups * width) % groups), 1)
        found, left = bundles(counts)
        assert not left
        assert sorted(place for members in found for place in members) == list(range(classes))
        assert all(np.ptp(counts[members].sum(0)) == 0 for members in found)
        # Without one of them the rest may have no counterpart, but what is bundled is still equal.
        found, left = bundles(counts[1:])
        assert sorted([*left, *(place for members in found for place in members)]) == list(range(classes - 1))
        assert all(np.ptp(counts[1:][members].sum(0)) == 0 for members in found)


def test_channels_without_a_counterpart_stay() -> None:
    # Four channels of the first group have to stay, so of the second one, too, only two can go.
    _, flow = _graph(Partly())
    assert len(_classes(flow, "hidden.weight")) == 2
    for seed in range(3):
        _compare(Partly(), seed, "hidden.weight")


def test_a_weight_that_is_read_with_other_groups_keeps_its_inputs() -> None:
    _, flow = _graph(Shared())
    assert not _classes(flow, "wide.weight")
    assert not _classes(flow, "narrow.weight")


def test_norms_of_a_column_across_a_bound_against_numpy() -> None:
    # Two groups of five channels behind the shuffle: column 2 holds the last of the first and the first of the second.
    module, flow = _graph(Shuffled(2, 5, 2))
    *_, root = _classes(flow, "reduce.weight")
    depthwise, expand, reduce = (
        attribute(module, f"{name}.weight").detach().double().numpy() for name in ("depthwise", "expand", "reduce")
    )
    folded = reduce[:, :, 0, 0] * (module.norm.weight.detach().double().numpy() / np.sqrt(1 + 1e-5))[:, None]
    for order, norm in ((1, "l1"), (2, "l2")):
        made, spread = np.linalg.norm(folded, order, axis=1), np.linalg.norm(depthwise.reshape(10, 9), order, axis=1)
        read = np.linalg.norm(expand.reshape(2, 3, 5), order, axis=1)  # (groups, places)
        parts = [
            *made[[2, 7]] / made.mean(),
            *spread[[4, 5]] / spread.mean(),
            *np.array([read[0, 4], read[1, 0]]) / np.linalg.norm(read, order, axis=0).mean(),
        ]
        assert class_scores(flow, norm)[root] == pytest.approx(np.linalg.norm(parts, order), rel=1e-6)


def test_what_the_penalties_and_taylor_sum_up_is_what_a_cut_takes() -> None:
    program = export_program(_made(Shuffled(3, 7, 3)), SHAPE)
    module = trainable(program)
    flow = analyse(module, RULES)
    groups = _Groups(flow)
    squares = groups.squares(module)
    x, y = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2)), torch.arange(4)
    scores = class_scores(flow, "taylor", batches=[(x, y)])
    F.cross_entropy(module(x), y).backward()
    weights = {slot.parameter for slot in flow.slots if slot.role != "vector"}

    def sums(graph: GraphModule) -> tuple[float, float, int]:
        values = {name: value.detach().double() for name, value in graph.named_parameters()}
        held = [values[name] for name in weights]
        return (
            float(sum(v.square().sum() for v in held)),
            float(sum(v.sum() for v in values.values())),
            sum(v.numel() for v in held),
        )

    for root, place in groups.places.items():
        now = []
        for product in (False, True):
            smaller = trainable(program)
            again = analyse(smaller, RULES)
            if product:
                for name, value in smaller.named_parameters():
                    value.data.mul_(module.get_parameter(name).grad)
            before = sums(smaller)
            cut(again, {root})
            now.append([b - a for a, b in zip(sums(smaller), before, strict=True)])
        # Differences of float64 sums of float32 values.
        assert float(squares[place].detach()) == pytest.approx(now[0][0], rel=1e-5)
        assert float(groups.sizes[place]) == now[0][2]
        assert scores[root] == pytest.approx(now[1][1] ** 2, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("groups", WIDTHS)
def test_shufflenet_v1_is_cut_in_all_of_its_group_counts(groups: int) -> None:
    torch.manual_seed(0)
    network, shape = ShuffleNetV1(groups, units=(2, 1, 1), classes=10), (3, 64, 64)
    settle_statistics(network, shape)
    program = export_program(network, shape)
    before = cost_of(trainable(program))
    x = F.interpolate(torch.randn(2, 3, 5, 5), size=64, mode="bilinear")
    for share, multiple in ((0.7, 1), (0.4, 1), (0.5, 8)):
        whole, flow, pruned, again = twice(program)
        _, removed = choose(pruned, PruneChannels(macs=share, multiple=multiple, epochs=0))
        silence(whole, flow, removed)
        cut(again, removed)
        torch.testing.assert_close(pruned(x), whole(x), rtol=1e-4, atol=1e-4)
        refresh_shapes(pruned, x[:1])
        after = cost_of(pruned)
        assert 0.95 * share * before.macs < after.macs <= share * before.macs
        assert sum(value.numel() for value in pruned.parameters()) == _parameters(pruned, groups)
        lost = {
            slot.parameter: slot.size - attribute(pruned, slot.parameter).shape[0]
            for slot in flow.slots
            if slot.dim == 0
        }
        assert all(count % multiple == 0 for count in lost.values()), lost


def _parameters(network: GraphModule, groups: int) -> int:
    """By the widths of its batch norms, as the paper's figure 2 builds the units."""
    made = {name: len(value) for name, value in network.named_buffers() if name.endswith("running_mean")}
    width = made.pop("bn.running_mean")
    total = 27 * width + 2 * width
    for unit, stride in enumerate((2, 1, 2, 2)):
        inner, out = made[f"stages.{unit}.bn1.running_mean"], made[f"stages.{unit}.bn3.running_mean"]
        assert made[f"stages.{unit}.bn2.running_mean"] == inner
        total += width * inner // (groups if unit else 1) + 9 * inner + inner * out // groups + 2 * (2 * inner + out)
        width = width + out if stride == 2 else out
    return total + 10 * (width + 1)
