"""AdaRound against an exhaustive search and against rounding to nearest."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.pipeline import compress
from edgekit.compress.quantize.adaround import adaround
from edgekit.compress.quantize.plan import insert, make_plan
from edgekit.data.references import load_data
from edgekit.evaluation import evaluate, sqnr
from edgekit.program import attribute, duplicate, export_program, layer_name, trainable
from edgekit.sources.load import load


def _linear() -> tuple[torch.fx.GraphModule, torch.fx.GraphModule, np.ndarray]:
    """One linear layer of eight weights for each output, on correlated inputs, with nothing but its weight quantized."""
    generator = torch.Generator().manual_seed(4)
    network = nn.Linear(8, 5)
    with torch.no_grad():
        network.weight.normal_(0, 1, generator=generator)
    mixing = torch.randn(8, 3, generator=generator)
    x = torch.randn(512, 3, generator=generator) @ mixing.T + torch.randn(512, 8, generator=generator)
    floats = trainable(export_program(network.eval(), (8,)))
    module = duplicate(floats)
    plan = make_plan(module)
    plan.values.clear()
    insert(module, plan, {}, {layer_name(n): 4 for n in plan.compute})
    return floats, module, x.numpy()


def test_finds_nearly_the_best_of_all_roundings() -> None:
    floats, module, x = _linear()
    name = next(n.name for n in floats.graph.nodes if n.target is torch.ops.aten.linear.default)
    dequantize = next(n for n in module.graph.nodes if n.name == name).args[1]
    top = dequantize.args[5]
    scales = attribute(module, dequantize.args[1].target).double().numpy()
    weight = attribute(floats, "weight").detach().double().numpy()
    nearest = attribute(module, dequantize.args[0].target).double().numpy()
    facts = next(iter(adaround(module, floats, [name], x, iterations=1000).values()))
    learned = attribute(module, dequantize.args[0].target).double().numpy()
    floor = np.floor(weight / scales[:, None])
    # Only up or down, within the grid.
    assert np.isin(learned - np.clip(floor, -top, top), (0, 1)).all()
    second = x.astype(np.float64).T @ x / len(x)

    def error(values: np.ndarray, row: int) -> float:
        e = values * scales[row] - weight[row]
        return float(e @ second @ e)

    choices = np.array(list(itertools.product((0, 1), repeat=8)))
    best = [min(error(np.clip(floor[r] + c, -top, top), r) for c in choices) for r in range(5)]
    found, rounded = ([error(v[r], r) for r in range(5)] for v in (learned, nearest))
    assert sum(rounded) > 1.5 * sum(best), "rounding to nearest is already the best: the test would prove nothing"
    assert sum(found) < 1.3 * sum(best)
    assert facts["error_learned"] == pytest.approx(sum(found) / 5, rel=1e-3)
    assert facts["error_nearest"] == pytest.approx(sum(rounded) / 5, rel=1e-3)


def test_a_finished_layer_is_taken_up_again(tmp_path: Path) -> None:
    whole, module, x = _linear()
    name = next(n.name for n in whole.graph.nodes if n.target is torch.ops.aten.linear.default)
    first = adaround(module, whole, [name], x, iterations=50, checkpoints=tmp_path)
    values = attribute(module, next(n for n in module.graph.nodes if n.name == name).args[1].args[0].target).clone()
    _, again, _ = _linear()
    # One iteration could not find these: they come from the file.
    assert adaround(again, whole, [name], x, iterations=1, checkpoints=tmp_path) == first
    node = next(n for n in again.graph.nodes if n.name == name)
    assert torch.equal(attribute(again, node.args[1].args[0].target), values)


def test_three_bits_keep_more_of_the_network() -> None:
    data, bundle = load_data("digits"), load("zoo:digits-cnn")
    reference = evaluate(bundle.module(), data.validation, bundle.preprocessing).logits
    noise = {}
    for rounding in ("nearest", "adaround"):
        small = compress(bundle, f"quantize:weight_bits=3,rounding={rounding},iterations=300", data)
        noise[rounding] = sqnr(reference, evaluate(small.module(), data.validation, small.preprocessing).logits)
    assert noise["adaround"] > noise["nearest"] + 2, noise
