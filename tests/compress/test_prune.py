"""Channel pruning against an independent reference: the whole network with the cut channels set to zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit import zoo
from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.prune.channels import PruneChannels, prune, weight_costs
from edgekit.compress.prune.flow import Flow, Labels, analyse
from edgekit.compress.prune.importance import class_scores, slice_norms
from edgekit.compress.prune.rules import RULES, rule
from edgekit.compress.prune.selection import select
from edgekit.compress.prune.surgery import cut
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.errors import StepError, UsageError
from edgekit.program import attribute, export_program, trainable
from edgekit.testing import networks
from edgekit.testing.silence import silence


# Without those with layer norm, whose means and variances are over the channels that are left.
@pytest.mark.parametrize("name", [name for name in networks.FEATURES if name not in ("attention", "encoder")])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_pruned_network_equals_the_whole_one_with_those_channels_at_zero(name: str, share: float) -> None:
    _equals_the_silenced_one(networks.make(name), share)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "bilinear antialias", "bicubic antialias"])
def test_resizing_lets_channels_through(mode: str) -> None:
    class Resized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, networks.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            name, _, antialias = mode.partition(" ")
            x = F.interpolate(torch.relu(self.first(x)), size=(9, 7), mode=name, antialias=bool(antialias))
            return self.head(torch.relu(self.second(x)).mean((2, 3)))

    _equals_the_silenced_one(Resized().eval(), 0.4)


def _equals_the_silenced_one(network: nn.Module, share: float) -> None:
    program = export_program(network, networks.INPUT_SHAPE)
    x = networks.images(4)

    whole = trainable(program)
    flow = analyse(whole, RULES)
    costs = _macs_by_weight(whole)
    selection = select(flow, class_scores(flow, "l2"), costs, goal=share)
    assert selection.removed
    silence(whole, flow, selection.removed)
    expected = whole(x)

    pruned = trainable(program)
    again = analyse(pruned, RULES)
    cut(again, select(again, class_scores(again, "l2"), costs, goal=share).removed)
    # Sums run over fewer terms: float32 rounding of values of order 1.
    torch.testing.assert_close(pruned(x), expected, rtol=1e-4, atol=1e-5)

    before, after = cost_of(trainable(program)), cost_of(trainable(export_program(pruned, networks.INPUT_SHAPE)))
    assert after.macs <= share * before.macs
    assert after.parameters < before.parameters
    assert selection.fraction == pytest.approx(after.macs / before.macs, rel=1e-6)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_pruned_program_trains_and_is_pruned_again(name: str) -> None:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    prune(module, PruneChannels(macs=0.6, multiple=1, epochs=0))
    again = trainable(export_program(module, networks.INPUT_SHAPE))
    again(networks.images(2)).sum().backward()
    assert all(p.grad is not None for p in again.parameters())
    prune(again, PruneChannels(macs=0.6, multiple=1, epochs=0))
    assert again(networks.images(2)).shape == (2, networks.CLASSES)


def _macs_by_weight(module: torch.fx.GraphModule) -> dict[str, float]:
    macs = {layer.name: layer.macs for layer in cost_of(module).layers}
    found = {}
    for node in module.graph.nodes:
        if macs.get(node.name) and isinstance(node.args[1], torch.fx.Node) and node.args[1].op == "get_attr":
            found[str(node.args[1].target)] = macs[node.name]
        elif macs.get(node.name):  # recurrent: in each time step every weight once, biases apart
            weights = {str(p.target): attribute(module, str(p.target)) for p in node.args[2]}
            steps = node.args[0].meta["val"].shape[1]  # the batch first
            found |= {name: float(steps * value.numel()) for name, value in weights.items() if value.dim() == 2}
    assert sum(found.values()) == sum(macs.values())
    return found


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "encoder"])
def test_a_goal_in_bytes_counts_all_that_is_stored(name: str) -> None:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    before, flow = cost_of(module), analyse(module, RULES)
    costs = weight_costs(module, flow, "bytes")
    used = {str(n.target) for n in module.graph.nodes if n.op == "get_attr" and n.users}
    assert sum(costs.values()) == before.bytes == sum(4 * attribute(module, name).numel() for name in used)
    removed = select(flow, class_scores(flow, "l2"), costs, goal=0.5)
    cut(flow, removed.removed)
    after = cost_of(trainable(export_program(module, networks.INPUT_SHAPE)))
    assert removed.fraction == pytest.approx(after.bytes / before.bytes, rel=1e-9)
    assert 0.4 < removed.fraction <= 0.5


@pytest.mark.parametrize("name", ["attention", "encoder"])
def test_the_products_of_attention_shrink_in_the_count_as_in_fact(name: str) -> None:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    before, flow = cost_of(module), analyse(module, RULES)
    costs = weight_costs(module, flow, "macs")
    assert sum(costs.values()) == pytest.approx(before.macs)
    found = select(flow, class_scores(flow, "l2"), costs, goal=0.5)
    cut(flow, found.removed)
    after = cost_of(trainable(export_program(module, networks.INPUT_SHAPE)))
    assert found.fraction == pytest.approx(after.macs / before.macs, rel=1e-9)
    assert found.fraction > 0.46


def test_size_is_a_goal_of_the_step(before: Bundle, data: Dataset) -> None:
    small = compress(before, "prune-channels:size=0.5,rounds=2,between=0,epochs=0,multiple=1,reconstruct=0", data)
    was, now = cost_of(before.module()), cost_of(small.module())
    assert 0.45 * was.bytes < now.bytes <= 0.5 * was.bytes
    assert small.steps[-1]["report"]["bytes"]["ratio"] == now.bytes / was.bytes
    with pytest.raises(ValueError, match="exactly one goal"):
        PruneChannels(size=0.5, parameters=0.5)


def test_residual_addition_couples_both_branches() -> None:
    flow = analyse(trainable(export_program(networks.make("residual"), networks.INPUT_SHAPE)), RULES)
    slots = {(slot.parameter, slot.dim): flow.roots(slot.ids) for slot in flow.slots}
    np.testing.assert_array_equal(slots["stem.weight", 0], slots["conv1.weight", 0])
    # 4 padded zeros on each side of the 12 channels of the shortcut
    np.testing.assert_array_equal(slots["conv2.weight", 0][4:16], slots["conv1.weight", 0])


def test_grouped_convolution_keeps_its_groups_equal() -> None:
    module = trainable(export_program(networks.make("grouped"), networks.INPUT_SHAPE))
    prune(module, PruneChannels(macs=0.5, multiple=1, epochs=0))
    weight = module.grouped.weight
    assert module.stem.weight.shape[0] == weight.shape[1] * 4
    assert weight.shape[0] % 4 == 0


def test_depthwise_convolution_follows_its_input() -> None:
    module = trainable(export_program(networks.make("depthwise"), networks.INPUT_SHAPE))
    prune(module, PruneChannels(macs=0.5, multiple=1, epochs=0))
    assert module.depthwise.weight.shape[0] == module.expand.weight.shape[0] == module.project.weight.shape[1] < 24


def test_operator_without_a_rule_is_a_barrier_that_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.third, self.head = nn.Conv2d(8, 12, 3, padding=1), nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.cumsum(self.second(self.first(x)), dim=1)
            return self.head(self.third(x).mean((2, 3)))

    torch.manual_seed(0)
    module = trainable(export_program(Odd(), networks.INPUT_SHAPE))
    flow, _ = prune(module, PruneChannels(macs=0.8, multiple=1, epochs=0))
    assert [barrier.operator for barrier in flow.barriers] == ["aten.cumsum.default"]
    assert module.second.weight.shape[0] == 8, "what the barrier reads must stay whole"
    assert module.first.weight.shape[0] < 8


def test_a_rule_of_the_user_lifts_the_barrier() -> None:
    class Flip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.flip(self.first(x), [3]).mean((2, 3)))

    program = export_program(Flip(), networks.INPUT_SHAPE)
    with pytest.raises(StepError, match=r"aten\.flip"):
        prune(trainable(program), PruneChannels(macs=0.5, multiple=1, epochs=0))
    target = torch.ops.aten.flip.default
    try:
        rule(target)(lambda flow, node: flow.labels(node.args[0]))
        module = trainable(program)
        prune(module, PruneChannels(macs=0.5, multiple=1, epochs=0))
        assert module.first.weight.shape[0] == 8
    finally:
        RULES.pop(target, None)


def test_channel_shuffle_split_and_slice_are_followed() -> None:
    class Shuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.grouped = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1, groups=2)
            self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.tail, self.head = nn.Conv2d(6, 10, 1), nn.Linear(10, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.grouped(torch.relu(self.stem(x))))
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            a, b = x.chunk(2, 1)
            x = torch.relu(self.left(a) + self.right(b))
            return self.head(torch.relu(self.tail(x[:, 1:7])).mean((2, 3)))

    torch.manual_seed(3)
    network = Shuffle().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    program = export_program(network, networks.INPUT_SHAPE)
    whole = trainable(program)
    flow = analyse(whole, RULES)
    selection = select(flow, class_scores(flow, "l1"), _macs_by_weight(whole), goal=0.6)
    silence(whole, flow, selection.removed)
    pruned = trainable(program)
    flow = analyse(pruned, RULES)
    assert not flow.barriers
    cut(flow, select(flow, class_scores(flow, "l1"), _macs_by_weight(whole), goal=0.6).removed)
    x = networks.images(3)
    torch.testing.assert_close(pruned(x), whole(x), rtol=1e-4, atol=1e-5)


def test_norms_against_numpy() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 4, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(slice_norms(weight, 1, "l1"), [np.abs(weight[:, i]).sum() for i in range(4)], rtol=1e-6)
    np.testing.assert_allclose(slice_norms(weight, 0, "l2"), [np.linalg.norm(weight[i]) for i in range(5)], rtol=1e-6)


def test_the_weakest_filter_goes_first_whatever_batch_norm_hides() -> None:
    """A filter of large weights behind a batch norm of small scale is weak in what is deployed."""
    torch.manual_seed(0)
    network = networks.make("plain")
    with torch.no_grad():
        network.conv1.weight[3] *= 100
        network.bn1.weight[3] = 1e-6
        network.bn1.bias[3] = 0
        network.bn1.running_var.fill_(1)
    module = trainable(export_program(network, networks.INPUT_SHAPE))
    flow = analyse(module, RULES)
    scores = class_scores(flow, "l2")
    roots = next(flow.roots(s.ids) for s in flow.slots if s.parameter == "conv1.weight" and s.dim == 0)
    own = [scores[int(root)] for root in roots]
    assert int(np.argmin(own)) == 3


def test_layer_scope_cuts_every_group_by_the_same_share() -> None:
    module = trainable(export_program(networks.make("concat"), networks.INPUT_SHAPE))
    prune(module, PruneChannels(macs=0.3, multiple=1, scope="layer", epochs=0))
    kept = [module.stem.weight.shape[0] / 10, module.left.weight.shape[0] / 8, module.right.weight.shape[0] / 12]
    assert max(kept) - min(kept) < 0.2


def test_layers_that_are_kept_keep_their_channels_and_those_that_go_with_them() -> None:
    module = zoo.build("resnet20-cifar")[0]
    widths = {name: layer.out_channels for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)}
    program = export_program(module, (3, 32, 32))
    graph = trainable(program)
    prune(graph, PruneChannels(macs=0.5, multiple=1, keep=("layer?.0.conv2",), epochs=0))
    left = {name: attribute(graph, f"{name}.weight").shape[0] for name in widths}
    # Of each stage one is named; the others write into the same stream.
    assert all(left[name] == width for name, width in widths.items() if name.endswith("conv2") or name == "conv1")
    assert sum(left[name] < width for name, width in widths.items() if name.endswith(".conv1")) > 5
    with pytest.raises(StepError, match="no layer that makes channels is called 'layer9"):
        prune(trainable(program), PruneChannels(macs=0.5, keep=("layer9.*",), epochs=0))
    with pytest.raises(StepError, match="no channel of this network can be cut"):
        prune(trainable(program), PruneChannels(macs=0.5, keep=("*",), epochs=0))


def test_unreachable_goal_and_wrong_settings_are_refused() -> None:
    module = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
    with pytest.raises(StepError, match="can be cut down to"):
        prune(module, PruneChannels(macs=0.01, multiple=1, floor=0.5, epochs=0))
    with pytest.raises(ValueError, match="exactly one goal"):
        PruneChannels(macs=0.5, ratio=0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        PruneChannels(macs=1.5)


def test_labels_hold_one_identity_per_channel() -> None:
    flow = Flow(trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE)))
    labels = Labels(1, flow.fresh(3))
    flow.unite(labels.ids[:1], labels.ids[2:])
    assert flow.find(0) == flow.find(2) != flow.find(1)
    flow.freeze(Labels(1, labels.ids[2:]))
    assert flow.is_frozen(flow.find(0))
    assert not flow.is_frozen(flow.find(1))


def test_multiple_keeps_widths_on_the_runtimes_grid() -> None:
    module = zoo.build("resnet20-cifar")[0]
    graph = trainable(export_program(module, (3, 32, 32)))
    prune(graph, PruneChannels(macs=0.5, multiple=8, epochs=0))
    exported = trainable(export_program(graph, (3, 32, 32)))
    widths = [layer.output_shape[1] for layer in cost_of(exported).layers if layer.macs][:-1]
    assert all(width % 8 == 0 for width in widths), widths
    assert cost_of(exported).macs <= 0.5 * 40_551_040
    assert min(widths) < 64


def test_a_rest_that_fills_no_chunk_stays() -> None:
    graph = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
    with pytest.raises(StepError, match="multiple"):
        prune(graph, PruneChannels(macs=0.05, multiple=8, epochs=0))


def _first_layer(network: nn.Module) -> tuple[torch.fx.GraphModule, Flow, list[int]]:
    module = trainable(export_program(network, networks.INPUT_SHAPE))
    flow = analyse(module, RULES)
    roots = next(flow.roots(s.ids) for s in flow.slots if s.parameter == "conv1.weight" and s.dim == 0)
    return module, flow, roots.tolist()


def test_geometric_median_against_numpy() -> None:
    module, flow, roots = _first_layer(networks.make("plain"))
    bn = module.bn1
    scale = (bn.weight / torch.sqrt(bn.running_var + 1e-5)).detach().double().view(-1, 1, 1, 1)
    filters = (module.conv1.weight.detach().double() * scale).numpy().reshape(len(roots), -1)
    distances = np.array([sum(np.linalg.norm(a - b) for b in filters) for a in filters])
    scores = class_scores(flow, "geometric-median")
    np.testing.assert_allclose([scores[root] for root in roots], distances / distances.mean(), rtol=1e-6)


def test_energy_against_numpy() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1, self.conv2 = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 6, 3)
            self.head = nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.conv2(torch.relu(self.bn1(self.conv1(x))))).mean((2, 3)))

    network = Two().eval()
    nn.init.normal_(network.bn1.weight, generator=torch.Generator().manual_seed(0))
    _, flow, roots = _first_layer(network)
    made, scale, read = (
        layer.weight.detach().double().numpy() for layer in (network.conv1, network.bn1, network.conv2)
    )
    energies = ((made**2).sum((1, 2, 3)) + scale**2 + (read**2).sum((0, 2, 3))) / 3
    scores = class_scores(flow, "energy")
    np.testing.assert_allclose([scores[root] for root in roots], energies / energies.mean(), rtol=1e-6)


def test_batch_norm_scales_rank_and_a_layer_without_is_named() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
            self.head = nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.bn1(self.conv1(x))).mean((2, 3)))

    network = Normed().eval()
    nn.init.normal_(network.bn1.weight, generator=torch.Generator().manual_seed(0))
    _, flow, roots = _first_layer(network)
    scores = class_scores(flow, "batch-norm")
    np.testing.assert_allclose([scores[root] for root in roots], network.bn1.weight.detach().abs())
    with pytest.raises(StepError, match="hidden has no batch norm"):
        class_scores(
            analyse(trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE)), RULES), "batch-norm"
        )


def test_taylor_is_the_slope_of_the_loss_along_a_channel() -> None:
    """d/da L(a w) at a = 1, by finite differences in float64, over all parameters of a class."""
    module, flow, roots = _first_layer(networks.make("plain"))
    module.double()
    x, y = networks.images(8).double(), torch.arange(8) % networks.CLASSES
    scores = class_scores(flow, "taylor", batches=[(x, y)])
    for root in roots[:4]:
        losses = []
        for factor in (1 + 1e-5, 1 - 1e-5):
            scaled = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE)).double()
            for slot in flow.slots:
                value = attribute(scaled, slot.parameter)
                if not isinstance(value, nn.Parameter):
                    continue
                mine = torch.from_numpy(flow.roots(slot.ids) == root)
                shape = [1] * value.dim()
                shape[slot.dim] = -1
                value.data = value.data * (1 + (factor - 1) * mine.double()).view(shape)
            with torch.no_grad():
                losses.append(float(nn.functional.cross_entropy(scaled(x), y)))
        slope = (losses[0] - losses[1]) / 2e-5
        assert scores[root] == pytest.approx(slope**2, rel=1e-4)


def test_chance_is_the_same_for_the_same_seed() -> None:
    _, flow, _ = _first_layer(networks.make("plain"))
    assert class_scores(flow, "random", seed=1) == class_scores(flow, "random", seed=1)
    assert class_scores(flow, "random", seed=1) != class_scores(flow, "random", seed=2)


@pytest.mark.parametrize("importance", ["energy", "geometric-median", "taylor", "random"])
def test_every_importance_prunes_to_the_goal(importance: str, before: Bundle, data: Dataset) -> None:
    step = f"prune-channels:macs=0.6,epochs=0,importance={importance}"
    small, again = compress(before, step, data), compress(before, step, data)
    assert cost_of(small.module()).macs <= 0.6 * cost_of(before.module()).macs
    assert small.fingerprint == again.fingerprint


def test_taylor_without_data_is_refused(before: Bundle) -> None:
    with pytest.raises(UsageError, match="data"):
        compress(before, "prune-channels:macs=0.6,epochs=0,importance=taylor")


@pytest.mark.parametrize(
    ("network", "importance", "layers"),
    [
        ("attention", "fisher", {"query", "key"}),
        ("grouped", "lasso", {"stem"}),
        ("recurrent", "fisher", {"lstm", "gru"}),
        ("recurrent", "taylor", set()),
        ("residual", "lasso", set()),
    ],
)
def test_what_a_criterion_can_not_score_is_told(network: str, importance: str, layers: set[str]) -> None:
    settings = PruneChannels(ratio=0.2, multiple=1, importance=importance, reconstruct=0, epochs=0)  # type: ignore[arg-type]
    module = trainable(export_program(networks.make(network), networks.INPUT_SHAPE))
    batches = [(networks.images(8), torch.arange(8) % 3)]
    flow, _ = prune(module, settings, batches=batches)
    assert {barrier.layer for barrier in flow.barriers} == layers
    assert all(f"importance={importance} has no score" in barrier.remedy for barrier in flow.barriers)
    assert not analyse(trainable(export_program(networks.make(network), networks.INPUT_SHAPE)), RULES).barriers


@pytest.mark.parametrize("importance", ["fisher", "lasso", "taylor", "l2"])
def test_a_network_of_one_layer_can_not_be_cut(importance: str) -> None:
    settings = PruneChannels(macs=0.5, multiple=1, importance=importance, reconstruct=0, epochs=0)  # type: ignore[arg-type]
    module = trainable(export_program(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), (3, 2, 2)))
    with pytest.raises(StepError, match="no channel of this network can be cut"):
        prune(module, settings, batches=[(torch.rand(8, 3, 2, 2), torch.arange(8) % 3)])
