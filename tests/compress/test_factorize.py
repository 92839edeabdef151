"""Low rank: each decomposition against what it must be, ranks, the plan, and the step on data and in every format."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

import edgekit
from edgekit.bundle import Bundle
from edgekit.compress.chain import chain_macs, chain_parameters
from edgekit.compress.factorize import evbmf
from edgekit.compress.factorize.algebra import relative_error
from edgekit.compress.factorize.clock import Clock
from edgekit.compress.factorize.layer import Layer, flat, layers_of
from edgekit.compress.factorize.method import METHODS, method
from edgekit.compress.factorize.plan import Choice, whole
from edgekit.compress.factorize.ranks import by_energy, uniform, within
from edgekit.compress.factorize.replace import replace
from edgekit.compress.factorize.statistics import Patches, measure
from edgekit.compress.pipeline import compress
from edgekit.compress.prune.stopwatch import Stopwatch
from edgekit.compress.rewrite import finish
from edgekit.compress.step import parse_step
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset, to_inputs
from edgekit.errors import StepError, UsageError
from edgekit.evaluation import evaluate
from edgekit.program import export_program, trainable
from edgekit.runtimes.comparison import Comparison
from edgekit.testing import networks

LAYER = Layer("node", "layer", "layer.weight", 12, 16, (3, 3), (1, 1), (1, 1), (1, 1), (10, 10))


def _weight_and_covariance(layer: Layer = LAYER) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(layer.channels_out, layer.channels_in, *layer.kernel, generator=generator, dtype=torch.float64)
    seen = torch.randn(layer.columns, 2 * layer.columns, generator=generator, dtype=torch.float64)
    seen = seen * torch.linspace(0.05, 2, layer.columns, dtype=torch.float64)[:, None]
    return weight, seen @ seen.T / seen.shape[1]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_chain_computes_what_the_product_says(name: str, share: float) -> None:
    """The stages, run by torch with the padding and strides they name, against one convolution with the product."""
    layer = Layer("n", "l", "w", 6, 10, (3, 5), (2, 1), (1, 2), (1, 1), (9, 8))
    weight, covariance = _weight_and_covariance(layer)
    decomposition = method(name)
    rank = max(1, int(share * decomposition.full_rank(layer)))
    factors = decomposition.decompose(layer, weight, covariance)(rank)
    stages = decomposition.stages(layer, rank)
    x = torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.nn.functional.conv2d(x, decomposition.product(factors), stride=(2, 1), padding=(1, 2))
    assert wanted.shape[2:] == layer.whole().reads(layer.space)
    for stage, factor in zip(stages, factors, strict=True):
        assert tuple(factor.shape) == stage.shape
        x = torch.nn.functional.conv2d(x, factor, None, stage.stride, stage.padding, stage.dilation, stage.groups)
    torch.testing.assert_close(x, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["channel", "spatial", "tucker"])
def test_nothing_is_lost_at_full_rank(name: str) -> None:
    weight, covariance = _weight_and_covariance()
    decomposition = method(name)
    product = decomposition.product(decomposition.decompose(LAYER, weight, covariance)(decomposition.full_rank(LAYER)))
    # The ridge of the regressions is 1e-6 of a variance.
    torch.testing.assert_close(product, weight, rtol=1e-4, atol=1e-4)


def test_channel_decomposition_without_data_is_the_truncated_svd() -> None:
    weight, _ = _weight_and_covariance()
    singular = np.linalg.svd(weight.flatten(1).numpy(), compute_uv=False)
    plain = torch.eye(LAYER.columns, dtype=torch.float64)
    factors = method("channel").decompose(LAYER, weight, plain)
    for rank in (1, 5, 12):
        error = relative_error(flat(weight), flat(method("channel").product(factors(rank))), plain)
        assert error == pytest.approx((singular[rank:] ** 2).sum() / (singular**2).sum(), rel=1e-9)


def test_channel_decomposition_misses_least_of_the_output() -> None:
    """Against the optimum of weighted low-rank approximation, in NumPy: the SVD of W C^(1/2)."""
    weight, covariance = _weight_and_covariance()
    values, vectors = np.linalg.eigh(covariance.numpy())
    half = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    singular = np.linalg.svd(weight.flatten(1).numpy() @ half, compute_uv=False)
    factors = method("channel").decompose(LAYER, weight, covariance)
    for rank in (1, 5, 12):
        error = relative_error(flat(weight), flat(method("channel").product(factors(rank))), covariance)
        assert error == pytest.approx((singular[rank:] ** 2).sum() / (singular**2).sum(), rel=1e-6)


def test_spatial_svd_without_data_is_the_truncated_svd() -> None:
    """Jaderberg's scheme 2 is the SVD of the weight as (outputs × x, inputs × y)."""
    weight, _ = _weight_and_covariance()
    matrix = weight.numpy().transpose(0, 3, 1, 2).reshape(16 * 3, 12 * 3)
    singular = np.linalg.svd(matrix, compute_uv=False)
    plain = torch.eye(LAYER.columns, dtype=torch.float64)
    factors = method("spatial").decompose(LAYER, weight, plain)
    for rank in (3, 10, 20):
        error = relative_error(flat(weight), flat(method("spatial").product(factors(rank))), plain)
        assert error == pytest.approx((singular[rank:] ** 2).sum() / (singular**2).sum(), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_what_data_shows_lowers_the_error_of_the_output(name: str) -> None:
    weight, covariance = _weight_and_covariance()
    plain = torch.eye(LAYER.columns, dtype=torch.float64)
    decomposition = method(name)
    for rank in (4, 9):
        both = (decomposition.decompose(LAYER, weight, c)(rank) for c in (covariance, plain))
        aware, blind = (relative_error(flat(weight), flat(decomposition.product(f)), covariance) for f in both)
        assert aware < 0.9 * blind


def test_cp_finds_a_tensor_of_known_rank() -> None:
    generator = torch.Generator().manual_seed(3)
    sides = [torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (16, 12, 3, 3)]
    weight = torch.einsum("or,ir,yr,xr->oiyx", *sides)
    plain = torch.eye(LAYER.columns, dtype=torch.float64)
    product = method("cp").product(method("cp").decompose(LAYER, weight, plain)(3))
    assert relative_error(flat(weight), flat(product), plain) < 1e-3


def test_costs_are_those_of_the_program() -> None:
    """MACs and parameters of a chain as planned, against those counted on the graph that it becomes."""
    module = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
    for name, rank in (("channel", 4), ("spatial", 6), ("tucker", 7), ("cp", 5)):
        graph = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
        layer = next(found for found in layers_of(graph) if found.name == "conv2")
        before, decomposition = cost_of(graph), method(name)
        covariance = torch.eye(layer.columns, dtype=torch.float64)
        replace(graph, layer, decomposition, rank, Patches(torch.zeros(layer.columns, dtype=torch.float64), covariance))
        finish(graph)
        after = cost_of(trainable(export_program(graph, networks.INPUT_SHAPE)))
        stages = decomposition.stages(layer, rank)
        assert after.macs == before.macs - layer.macs + chain_macs(stages, layer.space), name
        assert after.parameters == before.parameters - layer.parameters + chain_parameters(stages), name
    assert {layer.name for layer in layers_of(module)} == {"conv1", "conv2", "hidden", "head"}


@pytest.mark.parametrize(
    ("rows", "columns", "rank", "noise"), [(60, 200, 7, 0.1), (200, 60, 7, 1.0), (64, 576, 20, 2.0)]
)
def test_variational_bayes_finds_the_rank_under_noise(rows: int, columns: int, rank: int, noise: float) -> None:
    generator = np.random.default_rng(0)
    signal = generator.standard_normal((rows, rank)) @ generator.standard_normal((rank, columns))
    assert evbmf.rank(signal + noise * generator.standard_normal((rows, columns))) == rank
    assert evbmf.rank(noise * generator.standard_normal((rows, columns))) == 0


def _choices() -> dict[str, list[Choice]]:
    generator = np.random.default_rng(0)
    found = {}
    for name in "abcd":
        layer = Layer(name, name, name, 8, 8, (3, 3), (1, 1), (1, 1), (1, 1), (int(generator.integers(4, 12)),) * 2)
        ranks = range(2, 12, 3)
        errors = np.sort(generator.uniform(0, 0.8, len(ranks)))[::-1]
        chains = [
            Choice(
                layer, method("spatial"), r, chain_macs(method("spatial").stages(layer, r), layer.space), r, float(e)
            )
            for r, e in zip(ranks, errors, strict=True)
        ]
        found[name] = [*chains, whole(layer)]
    return found


def test_a_budget_is_divided_in_the_best_way_of_all() -> None:
    choices = _choices()
    budget = 0.6 * sum(options[-1].macs for options in choices.values())
    plan = within(choices, "macs", budget)
    assert sum(choice.macs for choice in plan.values()) <= budget
    every = itertools.product(*choices.values())
    fitting = [o for o in every if sum(c.macs for c in o) <= budget]
    best = max(np.prod([1 - c.error for c in o]) for o in fitting)
    assert np.prod([1 - c.error for c in plan.values()]) == pytest.approx(best, rel=1e-6)
    even = uniform(choices, "macs", budget)
    assert sum(choice.macs for choice in even.values()) <= budget
    assert np.prod([1 - c.error for c in even.values()]) <= best * (1 + 1e-9)


def test_energy_is_kept_in_every_layer() -> None:
    plan = by_energy(_choices(), 0.7)
    assert all(choice.error <= 0.3 + 1e-9 for choice in plan.values())
    assert any(choice.method is not None for choice in plan.values())


def test_less_than_the_smallest_chains_is_refused() -> None:
    with pytest.raises(StepError, match="smallest chains take"):
        within(_choices(), "macs", 10)


def test_the_mean_of_the_output_stays(before: Bundle, data: Dataset) -> None:
    """What the images' mean gives through the missing part of the weight comes back by a bias or a batch norm."""
    x = to_inputs(data.train.images(np.arange(128)), before.preprocessing)
    plain, graph = before.module(), before.module()
    layers = layers_of(graph)
    found = measure(graph, layers, x)
    layer = next(found for found in layers if found.name == "conv1")
    replace(graph, layer, method("channel"), 4, Patches(*(t.double() for t in found[layer.node])))
    finish(graph)
    reader = next(n for n in plain.graph.nodes if n.name == layer.node)
    norm = next(iter(reader.users)).name
    values = {}
    for key, module in (("was", plain), ("now", graph)):
        catcher = _Catcher(module, norm)
        with torch.no_grad():
            catcher.run(torch.from_numpy(x))
        assert catcher.value is not None
        values[key] = catcher.value.mean((0, 2, 3))
    # The means are over sampled positions.
    torch.testing.assert_close(values["now"], values["was"], rtol=0, atol=2e-3)


class _Catcher(torch.fx.Interpreter):
    """Keeps the value of one node."""

    def __init__(self, module: torch.fx.GraphModule, name: str) -> None:
        super().__init__(module)
        self.name, self.value = name, None

    def run_node(self, n: torch.fx.Node) -> object:
        result = super().run_node(n)
        if n.name == self.name:
            self.value = result
        return result


def _top1(bundle: Bundle, data: Dataset) -> float:
    return evaluate(bundle.module(), data.validation, bundle.preprocessing).top1


def test_data_and_refitting_keep_accuracy_before_any_training(before: Bundle, data: Dataset) -> None:
    blind = compress(before, "factorize:macs=0.35,images=0,reconstruct=0,multiple=2,epochs=0", data)
    aware = compress(before, "factorize:macs=0.35,images=256,reconstruct=0,multiple=2,epochs=0", data)
    refitted = compress(before, "factorize:macs=0.35,images=256,reconstruct=256,multiple=2,epochs=0", data)
    for bundle in (blind, aware, refitted):
        assert cost_of(bundle.module()).macs <= 0.35 * cost_of(before.module()).macs
    assert _top1(aware, data) >= _top1(blind, data)
    assert _top1(refitted, data) > _top1(blind, data)
    assert _top1(refitted, data) > _top1(before, data) - 3


def test_refitting_through_the_relu_is_closer_behind_it(before: Bundle, data: Dataset) -> None:
    x = torch.from_numpy(to_inputs(data.train.images(np.arange(192)), before.preprocessing))
    wanted = _behind_the_second_relu(before, x)
    errors = {}
    for rectified in ("false", "true"):
        step = f"factorize:macs=0.35,images=192,reconstruct=192,multiple=2,epochs=0,rectified={rectified}"
        errors[rectified] = float((_behind_the_second_relu(compress(before, step, data), x) - wanted).square().mean())
    assert errors["true"] < errors["false"]


def _behind_the_second_relu(bundle: Bundle, x: torch.Tensor) -> torch.Tensor:
    module = bundle.module()
    relus = [n.name for n in module.graph.nodes if n.target is torch.ops.aten.relu.default]
    catcher = _Catcher(module, relus[1])
    with torch.no_grad():
        catcher.run(x)
    assert catcher.value is not None
    return catcher.value


@pytest.mark.parametrize("name", METHODS)
def test_chains_are_right_in_every_format(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = Bundle(export_program(networks.make("residual"), networks.INPUT_SHAPE), networks.INPUT_SHAPE)
    coarse = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    x = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear").numpy()
    small = compress(bundle, f"factorize:macs=0.8,method={name},multiple=1,epochs=0")
    assert cost_of(small.module()).macs < cost_of(bundle.module()).macs
    small = small.with_samples(x, np.zeros(len(x), np.int64))
    # Proved in each runtime: export fails where a file computes something else.
    assert len(edgekit.export(small, ["onnx", "tflite", "ncnn"], output=tmp_path)) == 3


@pytest.mark.parametrize(
    "text",
    ["energy=0.9", "rank=0.4,method=spatial", "ranks=[conv1=6,conv2=8]", "vbmf=true", "parameters=0.5", "size=0.5"],
)
def test_every_way_to_tell_ranks(text: str, before: Bundle, data: Dataset) -> None:
    small = compress(before, f"factorize:{text},images=64,reconstruct=0,multiple=2,epochs=0", data)
    report = small.steps[-1]["report"]
    changed = {row["layer"]: row for row in report["layers"] if row["method"] != "whole"}
    assert changed
    assert all(row["macs"] < 1 and row["parameters"] < 1 for row in changed.values())
    assert report["macs"]["ratio"] < 1
    if text.startswith("ranks"):
        assert {name: row["rank"] for name, row in changed.items()} == {"conv1": 6, "conv2": 8}
    if text.startswith("energy"):
        assert all(row["error"] <= 0.1 for row in report["layers"])
    if text.startswith("size"):
        # By the tensors that the bundle holds; ranks of two at a time may leave a little unused, not a lot.
        was, now = (sum(v.nbytes for v in b.program.state_dict.values()) for b in (before, small))
        assert 0.4 < now / was <= 0.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "macs=0.5,energy=0.9",
        "macs=1.5",
        "ranks=[conv1]",
        "vbmf=true,method=cp",
        "macs=0.5,multiple=0",
        "latency=0.5@no",
    ],
)
def test_settings_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_step(f"factorize:{text}")


def test_what_can_not_be_done_is_told(before: Bundle, data: Dataset) -> None:
    with pytest.raises(StepError, match="no layer that can be factorized is called 'nowhere'"):
        compress(before, "factorize:ranks=[nowhere=3],images=0,epochs=0", data)
    with pytest.raises(StepError, match="smallest chains"):
        compress(before, "factorize:macs=0.01,images=0,reconstruct=0,epochs=0", data)
    with pytest.raises(StepError, match="no layer of this network"):
        compress(before, "factorize:macs=0.5,keep=[*],epochs=0", data)


def test_a_chain_that_is_not_faster_is_not_made(before: Bundle, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock's verdicts are given: what is held is that the plan goes round the slow ones and still meets its goal."""
    slow: set[tuple[str, str]] = set()

    def verdict(self: Clock, choice: Choice) -> tuple[float, str]:
        assert choice.method is not None
        bad = choice.method.name == "spatial" and choice.layer.name.startswith("conv")
        if bad:
            slow.add((choice.layer.name, choice.method.name))
        return (1.2, "slower") if bad else (0.6, "faster")

    monkeypatch.setattr(Clock, "_time", verdict)
    small = compress(before, "factorize:macs=0.6,images=0,reconstruct=0,multiple=2,epochs=0,stopwatch=onnx", data)
    report = small.steps[-1]["report"]
    assert slow
    assert not any(row["layer"].startswith("conv") and row["method"] == "spatial" for row in report["layers"])
    assert {(row["layer"], row["method"]) for row in report["not_faster"]} == slow
    assert cost_of(small.module()).macs <= 0.6 * cost_of(before.module()).macs


def test_the_clock_times_a_layer_against_its_chain() -> None:
    """Truly measured: a chain of a quarter of a large layer's MACs is faster, and one of rank 1 by far."""
    layer = Layer("n", "l", "w", 64, 64, (3, 3), (1, 1), (1, 1), (1, 1), (28, 28))
    stages = method("channel").stages(layer, 4)
    choice = Choice(layer, method("channel"), 4, chain_macs(stages, layer.space), chain_parameters(stages), 0.5)
    assert Clock("onnx").not_faster({"n": choice, "other": whole(layer)}) == {}


def test_a_goal_in_latency_is_settled_by_trials(before: Bundle, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock by which time goes with the MACs and a fixed part: the goal is met, and the report says by which share."""

    def ratios(self: Stopwatch, bundles: Iterable[Bundle]) -> list[Comparison]:
        whole = cost_of(before.module()).macs
        times = [0.2 + 0.8 * cost_of(bundle.module()).macs / whole for bundle in bundles]
        one = {"label": "small", "baseline": "whole", "verdict": "faster"}
        return [Comparison(**one, ratio=t, low=t - 0.01, high=t + 0.01) for t in times]

    monkeypatch.setattr(Stopwatch, "ratios", ratios)
    small = compress(before, "factorize:latency=0.7@onnx,images=0,reconstruct=0,multiple=2,epochs=0", data)
    found = small.steps[-1]["report"]["stopwatch"]
    left = cost_of(small.module()).macs / cost_of(before.module()).macs
    assert 0.66 <= 0.2 + 0.8 * left <= 0.7
    assert left <= found["settled"]["share"]
