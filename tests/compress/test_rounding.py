"""Learned rounding against an exhaustive search and against rounding to nearest: layer by layer and block by block."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.compress.pipeline import compress
from edgekit.compress.quantize.adaround import layer_parts
from edgekit.compress.quantize.brecq import block_parts
from edgekit.compress.quantize.plan import insert, make_plan
from edgekit.compress.quantize.rounding import learn_rounding
from edgekit.data.references import load_data
from edgekit.evaluation import evaluate, sqnr
from edgekit.program import attribute, duplicate, export_program, layer_name, node_values, trainable
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


def _learn(
    module: torch.fx.GraphModule, floats: torch.fx.GraphModule, x: np.ndarray, **settings: Any
) -> dict[str, dict[str, float]]:
    parts = layer_parts([n for n in floats.graph.nodes if n.target is torch.ops.aten.linear.default])
    return learn_rounding(module, floats, parts, x, **settings)


def test_finds_nearly_the_best_of_all_roundings() -> None:
    floats, module, x = _linear()
    name = next(n.name for n in floats.graph.nodes if n.target is torch.ops.aten.linear.default)
    dequantize = next(n for n in module.graph.nodes if n.name == name).args[1]
    top = dequantize.args[5]
    scales = attribute(module, dequantize.args[1].target).double().numpy()
    weight = attribute(floats, "weight").detach().double().numpy()
    nearest = attribute(module, dequantize.args[0].target).double().numpy()
    facts = next(iter(_learn(module, floats, x, iterations=1000).values()))
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
    first = _learn(module, whole, x, iterations=50, checkpoints=tmp_path)
    values = attribute(module, next(n for n in module.graph.nodes if n.name == name).args[1].args[0].target).clone()
    _, again, _ = _linear()
    # One iteration could not find these: they come from the file.
    assert _learn(again, whole, x, iterations=1, checkpoints=tmp_path) == first
    node = next(n for n in again.graph.nodes if n.name == name)
    assert torch.equal(attribute(again, node.args[1].args[0].target), values)


def test_three_bits_keep_more_of_the_network() -> None:
    data, bundle = load_data("digits"), load("zoo:digits-cnn")
    reference = evaluate(bundle.module(), data.validation, bundle.preprocessing).logits
    noise = {}
    for rounding in ("nearest", "adaround", "brecq"):
        small = compress(bundle, f"quantize:weight_bits=3,rounding={rounding},iterations=300", data)
        noise[rounding] = sqnr(reference, evaluate(small.module(), data.validation, small.preprocessing).logits)
    assert min(noise["adaround"], noise["brecq"]) > noise["nearest"] + 2, noise


class Residual(nn.Module):
    """A stem, a residual block with a convolution in its shortcut, two layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.shortcut, self.after, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))
        x = F.relu(self.after(x)).mean((2, 3))
        return self.head(x.view(x.size(0), -1))


def test_blocks_are_what_lies_between_two_tensors_that_all_goes_through() -> None:
    torch.manual_seed(0)
    floats = trainable(export_program(Residual().eval(), (3, 10, 10)))
    plan = make_plan(floats)
    parts = block_parts(floats, plan.compute)
    named = [[layer_name(node) for node in part.layers] for part in parts]
    assert named == [["stem"], ["first", "second", "shortcut"], ["after"], ["head"]]
    assert [part.output.name for part in parts[:-1]] == ["relu", "relu_2", "relu_3"]
    assert [part.source for part in parts[1:3]] == [part.output for part in parts[:2]]
    assert parts[3].source.name == "view" or parts[3].source.target is torch.ops.aten.reshape.default
    # A layer that stays in float is part of its block, and is not learned.
    kept = [node for node in plan.compute if layer_name(node) != "second"]
    assert [layer_name(node) for node in block_parts(floats, kept)[1].layers] == ["first", "shortcut"]


def test_a_block_rounded_as_a_whole_keeps_more_of_its_output(tmp_path: Path) -> None:
    torch.manual_seed(0)
    floats = trainable(export_program(Residual().eval(), (3, 10, 10)))
    x = torch.randn(256, 3, 10, 10).numpy()
    block = block_parts(floats, make_plan(floats).compute)[1]

    def learned(kind: str, **settings: Any) -> tuple[torch.fx.GraphModule, dict[str, dict[str, float]]]:
        module = duplicate(floats)
        plan = make_plan(module)
        plan.values.clear()
        insert(module, plan, {}, {layer_name(n): 3 for n in plan.compute})
        parts = [block] if kind == "block" else layer_parts(block.layers)
        return module, learn_rounding(module, floats, parts, x, **settings)

    def error(module: torch.fx.GraphModule) -> float:
        with torch.no_grad():
            got, wanted = (node_values(m, torch.from_numpy(x))[block.output.name] for m in (module, floats))
        return float(((got - wanted) ** 2).mean())

    together, facts = learned("block", iterations=600, checkpoints=tmp_path)
    assert list(facts) == ["first", "second", "shortcut"]
    # The stem is in three bits as well, so the whole error is not the block's: it sees the stem's as its input.
    assert error(together) == pytest.approx(facts["first"]["error_learned"], rel=0.02)
    assert error(together) < 0.9 * error(learned("layers", iterations=600)[0])
    again, known = learned("block", iterations=1, checkpoints=tmp_path)
    assert known == facts
    assert error(again) == error(together)
