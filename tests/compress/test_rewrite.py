"""Every rewrite against the network as it was, in float64, and on what must be left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

import edgekit
from edgekit.bundle import Bundle
from edgekit.compress import rewrite
from edgekit.compress.pipeline import compress
from edgekit.compress.prune import stopwatch
from edgekit.compress.prune.channels import PruneChannels, prune
from edgekit.compress.prune.flow import analyse
from edgekit.compress.prune.rules import RULES
from edgekit.compress.rewrite.step import Rewrite
from edgekit.compress.step import Context, make_step
from edgekit.cost import cost_of
from edgekit.errors import StepError
from edgekit.program import aten, attribute, export_program, node_values, set_training, trainable
from edgekit.runtimes.measure import Plan
from edgekit.testing import networks
from edgekit.testing.exporters import bundle_of

SHAPE = networks.INPUT_SHAPE


def _program(network: nn.Module, shape: tuple[int, ...] = SHAPE) -> GraphModule:
    """In float64: what is left of a difference is no rounding of the rewrite's float32."""
    module = trainable(export_program(network.eval(), shape))
    return module.double()


def _same(network: nn.Module, module: GraphModule, shape: tuple[int, ...] = SHAPE) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(x), network.double().eval()(x), rtol=1e-10, atol=1e-12)
    # What was edited is still a program: shapes in it hold, and it is exported again.
    again = trainable(export_program(module.float(), shape))
    with torch.no_grad():
        torch.testing.assert_close(again(x.float()).double(), network.double()(x), rtol=1e-4, atol=1e-5)
    shapes = {name: tuple(value.shape[1:]) for name, value in node_values(module, x.float()).items()}
    for node in module.graph.nodes:
        if node.name in shapes:
            assert tuple(node.meta["val"].shape[1:]) == shapes[node.name], node


def _count(module: GraphModule, target: object) -> int:
    return sum(node.target is target for node in module.graph.nodes)


class Siblings(nn.Module):
    """A block of sibling layers that ``use`` puts to use; ``layers`` read the same tensor."""

    def __init__(self, layers: list[nn.Module], use: Callable[[list[torch.Tensor]], torch.Tensor]) -> None:
        super().__init__()
        self.layers, self.use = nn.ModuleList(layers), use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sin(x)
        return self.use([layer(x) for layer in self.layers]).mean((2, 3))


def _settled(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return network.eval()


def _cat(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts, 1)


def _block(out: int, activation: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Conv2d(3, out, 1, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*parts, *([activation()] if activation else []))


@pytest.mark.parametrize("fold", [True, False])
def test_inception_block_becomes_one_wide_layer(fold: bool) -> None:
    network = networks.make("inception")
    module = _program(network)
    if fold:
        rewrite.fold_batch_norm(module)
    (merged,) = rewrite.merge_siblings(module)
    assert merged["layers"] == ["one", "reduce3", "reduce5"]
    assert merged["outputs"] == [8, 6, 4]
    assert rewrite.hoist_over_splits(module) == (2 if fold else 4)
    assert rewrite.remove_splits_before_concatenation(module) == 0
    assert _count(module, aten.conv2d.default) == 5
    assert _count(module, aten.relu.default) == 5
    assert attribute(module, "one_merged.weight").shape == (18, 12, 1, 1)
    assert not hasattr(module.reduce3, "weight")
    _same(network, module)


def test_all_parts_put_together_again_need_no_split() -> None:
    network = _settled(Siblings([_block(4), _block(6), _block(2)], lambda p: _cat([p[1], p[0], p[2]])))
    module = _program(network)
    rewrite.fold_batch_norm(module)
    (merged,) = rewrite.merge_siblings(module)
    assert merged["outputs"] == [6, 4, 2], "in the order of the concatenation"
    assert rewrite.hoist_over_splits(module) == 2
    assert rewrite.remove_splits_before_concatenation(module) == 1
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert targets == [aten.sin.default, aten.conv2d.default, aten.relu.default, aten.mean.dim]
    _same(network, module)


def test_a_concatenation_with_others_keeps_them() -> None:
    def use(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([parts[2], parts[0], parts[1]], 1)

    network = _settled(Siblings([_block(4), _block(6), nn.Conv2d(3, 5, 3, padding=1)], use))
    module = _program(network)
    rewrite.fold_batch_norm(module)
    assert len(rewrite.merge_siblings(module)) == 1
    rewrite.hoist_over_splits(module)
    assert rewrite.remove_splits_before_concatenation(module) == 1
    _same(network, module)


def test_parts_that_are_not_together_keep_the_split() -> None:
    network = _settled(
        Siblings([_block(4), _block(6), nn.Conv2d(3, 5, 3, padding=1)], lambda p: _cat([p[0], p[2], p[1]]))
    )
    module = _program(network)
    rewrite.merge_siblings(module)
    assert rewrite.hoist_over_splits(module) == 2
    assert rewrite.remove_splits_before_concatenation(module) == 0
    _same(network, module)


def test_different_activations_stay_behind_their_own_layers() -> None:
    layers = [_block(4), _block(6), _block(4, nn.ReLU6), _block(6, nn.ReLU6), _block(4, nn.SiLU), _block(6, nn.Tanh)]
    network = _settled(Siblings(layers, _cat))
    module = _program(network)
    rewrite.fold_batch_norm(module)
    merged = rewrite.merge_siblings(module)
    # Those that runtimes fuse are merged with their like; the others are passes of their own either way.
    assert [group["layers"] for group in merged] == [
        ["layers.0.0", "layers.1.0"], ["layers.2.0", "layers.3.0"], ["layers.4.0", "layers.5.0"],
    ]  # fmt: skip
    assert rewrite.hoist_over_splits(module) == 2
    assert rewrite.remove_splits_before_concatenation(module) == 2
    assert _count(module, aten.split_with_sizes.default) == 1
    _same(network, module)


def test_an_output_used_twice_is_merged_and_its_operator_stays_behind_the_split() -> None:
    layers = [nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1, bias=False)]
    network = _settled(Siblings(layers, lambda p: _cat([torch.sigmoid(p[0]) * p[0], torch.sigmoid(p[1]), p[2]])))
    module = _program(network)
    assert len(rewrite.merge_siblings(module)) == 1
    assert rewrite.hoist_over_splits(module) == 0
    assert rewrite.remove_splits_before_concatenation(module) == 0
    _same(network, module)


def test_siblings_of_siblings_are_found() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
            self.c, self.d = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 7, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.a(x), self.b(x)
            return torch.cat([self.c(a), self.d(a), b], 1).mean((2, 3))

    network = Deep().eval()
    module = _program(network)
    assert [sorted(group["layers"]) for group in rewrite.merge_siblings(module)] == [["a", "b"], ["c", "d"]]
    _same(network, module)


def test_queries_keys_and_values_are_one_linear_layer() -> None:
    network = networks.make("attention")
    module = _program(network)
    (merged,) = rewrite.merge_siblings(module)
    assert merged["layers"] == ["query", "key", "value"]
    assert attribute(module, "query_merged.weight").shape == (72, 24)
    _same(network, module)
    assert not analyse(module, RULES).barriers


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 4, 3, stride=1)],
        [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)],
        [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=0)],
        [nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.Conv2d(3, 4, 3, padding=1)],
        [nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.Conv2d(3, 6, 3, padding=1, groups=3)],
    ],
    ids=["stride", "kernel", "padding", "dilation", "groups"],
)
def test_other_geometry_is_left_alone(layers: list[nn.Module]) -> None:
    network = Siblings(layers, lambda p: _cat([part.mean((2, 3), keepdim=True) for part in p])).eval()
    module = _program(network)
    assert rewrite.merge_siblings(module) == []
    _same(network, module)


def test_shared_weights_are_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(torch.relu(self.conv(x))) + self.other(torch.relu(self.other(x)))
            return torch.cat([y, self.conv(x) + x], 1).mean((2, 3))

    network = Shared().eval()
    module = _program(network)
    assert rewrite.merge_siblings(module) == []
    assert rewrite.merge_branches(module) == []
    assert rewrite.merge_sequences(module) == []
    _same(network, module)


@pytest.mark.parametrize("folded_before", [True, False])
def test_rep_vgg_blocks_are_one_convolution_each(folded_before: bool) -> None:
    network = networks.make("rep-vgg")
    module = _program(network)
    if folded_before:
        rewrite.fold_batch_norm(module)
    merged = rewrite.merge_branches(module)
    assert [len(group["layers"]) for group in merged] == [2, 3, 3]
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    block = [aten.conv2d.default, aten.relu.default]
    assert targets == [*block * 3, aten.mean.dim, aten.linear.default]
    _same(network, module)


def test_rep_vgg_kernel_against_numpy() -> None:
    """W = W3 s3 + pad(W1 s1) + I s0 and b = t3 + t1 + t0, with s = g / sqrt(v + e) and t = b - m s."""
    network = networks.make("rep-vgg")
    module = _program(network)
    rewrite.merge_branches(module)
    s, t = zip(
        *(
            (g / np.sqrt(v + n.eps), b - m * g / np.sqrt(v + n.eps))
            for n in list(network.norms)[2:5]
            for g, b, m, v in [[p.detach().double().numpy() for p in (n.weight, n.bias, n.running_mean, n.running_var)]]
        ),
        strict=True,
    )
    expected = network.wide2.weight.detach().double().numpy() * s[0][:, None, None, None]
    expected[:, :, 1, 1] += network.narrow2.weight.detach().double().numpy()[:, :, 0, 0] * s[1][:, None]
    expected[range(12), range(12), 1, 1] += s[2]
    np.testing.assert_allclose(attribute(module, "wide2_merged.weight").detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(attribute(module, "wide2_merged.bias").detach().numpy(), sum(t), rtol=1e-10)


class Sum(nn.Module):
    """Branches of the same tensor, added, with something else in the sum."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches, self.other = nn.ModuleList(branches), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sin(x)
        total = torch.tanh(self.other(x))
        for branch in self.branches:
            total = branch(x) + total
        return total.mean((2, 3))


def test_asymmetric_and_equal_branches_merge_beside_other_summands() -> None:
    network = Sum(
        nn.Conv2d(3, 3, (1, 3), padding=(0, 1)), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, (3, 1), padding=(1, 0)),
        nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Identity(),
    ).eval()  # fmt: skip
    module = _program(network)
    (merged,) = rewrite.merge_branches(module)
    assert len(merged["layers"]) == 5
    assert _count(module, aten.conv2d.default) == 2
    assert _count(module, aten.add.Tensor) == 1
    _same(network, module)


@pytest.mark.parametrize(
    "branches",
    [
        (nn.Conv2d(3, 3, (1, 3), padding=(0, 1)), nn.Conv2d(3, 3, (3, 1), padding=(1, 0))),
        (nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=2, dilation=2)),
        (nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, groups=3)),
    ],
    ids=["none covers the other", "dilated", "groups"],
)
def test_branches_that_are_no_one_convolution_stay(branches: tuple[nn.Module, ...]) -> None:
    network = Sum(*branches).eval()
    module = _program(network)
    assert rewrite.merge_branches(module) == []
    _same(network, module)


@pytest.mark.parametrize("name", ["residual", "depthwise", "squeeze-excite"])
def test_a_residual_of_several_layers_is_no_branch(name: str) -> None:
    network = networks.make(name)
    module = _program(network)
    rewrite.fold_batch_norm(module)
    # The first block of "residual" is one convolution and the identity: that is a 3×3 convolution.
    assert len(rewrite.merge_branches(module)) == (name == "residual")
    _same(network, module)


@pytest.mark.parametrize(
    ("layers", "merges"),
    [
        ((nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 3, padding=1)), True),
        ((nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3)), True),
        ((nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, stride=2, padding=1)), False),  # the bias would come into the padding
        ((nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.Conv2d(8, 4, 1)), True),
        ((nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 16, 1)), False),  # a bottleneck is cheaper than its product
        ((nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)), False),
        ((nn.Conv2d(3, 9, 1), nn.Conv2d(9, 3, 3, groups=3)), False),
        ((nn.Conv2d(3, 9, 3), nn.Conv2d(9, 3, 3)), False),
    ],
)
def test_sequences_merge_where_it_is_exact_and_pays(layers: tuple[nn.Module, ...], merges: bool) -> None:
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    module = _program(network)
    before = cost_of(module)
    assert len(rewrite.merge_sequences(module)) == merges
    assert cost_of(module).macs < before.macs if merges else cost_of(module).macs == before.macs
    _same(network, module)


def test_linear_layers_in_a_row_merge() -> None:
    network = nn.Sequential(nn.Linear(6, 20), nn.Dropout(), nn.Linear(20, 12, bias=False), nn.Linear(12, 5)).eval()
    module = _program(network, (6,))
    rewrite.remove_dropout(module)
    assert len(rewrite.merge_sequences(module)) == 2
    assert _count(module, aten.linear.default) == 1
    _same(network, module, (6,))


def test_what_does_nothing_is_taken_out() -> None:
    class Idle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.dropout(torch.relu(torch.relu(x * 1)), training=self.training)
            x = F.max_pool2d(F.avg_pool2d(x + 0.0, 1), 1).permute(0, 1, 2, 3).clone().to(x.dtype)
            return torch.cat([x.reshape(x.shape)], 1).mean((2, 3)).contiguous()

    module = trainable(export_program(Idle(), SHAPE))
    rewrite.remove_dropout(module)
    assert rewrite.remove_identities(module) >= 8
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert targets == [aten.relu.default, aten.mean.dim]
    _same(Idle(), module)


@pytest.mark.parametrize("name", networks.FEATURES)
def test_the_step_is_exact_on_every_network(name: str) -> None:
    bundle = bundle_of(name)
    after, report = Rewrite().apply(bundle, Context())
    Rewrite().ensures(bundle, after)
    json.dumps(report)
    assert report["max_abs_difference"] <= 2e-5 * max(1, report["largest_output"])
    assert report["operators"]["after"] <= report["operators"]["before"] + 2 * len(report["siblings"])
    again, nothing = Rewrite().apply(after, Context())
    assert nothing["siblings"] == nothing["branches"] == nothing["sequences"] == []
    assert [n.target for n in again.module().graph.nodes] == [n.target for n in after.module().graph.nodes]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_rewritten_network_trains_and_is_pruned(batch_norm: bool) -> None:
    bundle, _ = Rewrite(batch_norm=batch_norm).apply(bundle_of("inception"), Context())
    module = bundle.module()
    assert _count(module, aten.batch_norm.default) == (0 if batch_norm else 5)
    set_training(module, True)
    module(networks.images(8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters() if p.requires_grad)
    module = bundle.module()
    whole = cost_of(module).macs
    images = networks.images(64).numpy()
    flow, refitted = prune(module, PruneChannels(macs=0.5, multiple=1, epochs=0), images=images)
    assert not flow.barriers
    assert refitted
    small = bundle.with_module(module)
    assert cost_of(small.module()).macs <= 0.5 * whole
    assert attribute(small.module(), "one_merged.weight").shape[0] < 18


# The float file's split comes to TFLite by the same converter as the int8 file's.
@pytest.mark.parametrize(
    ("precision", "formats"), [("float32", ["onnx", "ncnn"]), ("int8", ["onnx", "tflite", "ncnn"])]
)
def test_a_rewritten_network_is_exported_and_proved(precision: str, formats: list[str], tmp_path: Path) -> None:
    x = networks.images(32)
    bundle, _ = Rewrite().apply(bundle_of("inception"), Context())
    if precision == "int8":
        bundle = bundle_of(bundle, "int8")
    files = edgekit.export(bundle.with_samples(x.numpy(), np.zeros(len(x), np.int64)), formats, output=tmp_path)
    for file in files:
        assert file.parity["agreement"]["samples"] == 32
        assert all(layer["tensor"] for layer in file.parity["layers"]), file.path
        if precision == "int8":
            assert file.parity["int8_macs_share"] == 1, file.path


def test_the_stopwatch_decides_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "Plan", lambda **_: Plan(rounds=3, runs=3, seconds=0.01))
    bundle = bundle_of("inception")
    after, report = Rewrite(pays="onnx").apply(bundle, Context())
    pays = report["pays"]
    assert pays["low"] <= pays["ratio"] <= pays["high"]
    assert pays["merged"] == (pays["high"] < 1) == bool(report["siblings"])
    assert (_count(after.module(), aten.split_with_sizes.default) == 1) == pays["merged"]
    assert "of the time in onnxruntime" in report["notes"][0]


def test_settings_that_contradict_and_quantized_bundles_are_refused() -> None:
    with pytest.raises(ValueError, match="siblings"):
        Rewrite(siblings=False, pays="onnx")
    with pytest.raises(edgekit.errors.UsageError, match="no format"):
        make_step("rewrite", {"pays": "onxx"})
    with pytest.raises(StepError, match="float weights"):
        compress(bundle_of("plain", "int8"), "rewrite")


def test_a_wrong_rewrite_would_be_found() -> None:
    bundle = bundle_of("inception")
    after, _ = Rewrite().apply(bundle, Context())
    module = after.module()
    attribute(module, "one_merged.weight").data[8:] *= 1.05
    with pytest.raises(StepError, match="differs"):
        Rewrite().ensures(bundle, Bundle(export_program(module, SHAPE), SHAPE))


def test_a_network_that_magnifies_rounding_is_held_against_its_own() -> None:
    """A batch norm that takes off a mean far larger than its variance: float32 leaves few digits, the fold all of them."""
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    nn.init.constant_(network[0].bias, 1e5)  # type: ignore[arg-type]
    nn.init.constant_(network[1].running_mean, 1e5)  # type: ignore[arg-type]
    bundle = Bundle(export_program(network, SHAPE), SHAPE)
    after, report = Rewrite().apply(bundle, Context())
    assert report["max_abs_difference"] > 1e-3 * report["largest_output"]
    Rewrite().ensures(bundle, after)


class SpaceMean(nn.Module):
    """A mean over some dimensions of a map, and a layer behind it."""

    def __init__(self, dims: tuple[int, ...], keep: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)
        self.dims, self.keep = dims, keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.conv(x).mean(self.dims, self.keep)
        return self.fc(mean.flatten(1)[:, :4])


@pytest.mark.parametrize(
    ("dims", "keep", "done"), [((2, 3), False, 1), ((-1, -2), False, 1), ((2, 3), True, 0), ((3,), False, 0)]
)
def test_a_mean_over_space_keeps_its_dimensions_and_is_flattened(dims: tuple[int, ...], keep: bool, done: int) -> None:
    network = SpaceMean(dims, keep)
    module = _program(network)
    assert rewrite.mean_over_space_in_two(module) == done
    means = [node for node in module.graph.nodes if node.target is aten.mean.dim]
    assert [len(node.args) > 2 and bool(node.args[2]) for node in means] == [keep or bool(done)]
    _same(network, module)


def test_a_mean_that_is_quantized_is_left_to_its_integers() -> None:
    whole = Bundle(export_program(SpaceMean((2, 3), keep=False), SHAPE), SHAPE)
    module = bundle_of(whole, "int8").module()
    assert rewrite.mean_over_space_in_two(module) == 0
    assert _count(module, aten.mean.dim) == 1
