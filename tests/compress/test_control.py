"""Bits below eight, bits by a budget, sensitivities, and accuracy control."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.quantize import control
from edgekit.compress.quantize.allocation import choose_bits
from edgekit.compress.quantize.session import Choice
from edgekit.compress.step import parse_step
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.errors import StepError, UsageError
from edgekit.program import attribute, quantized


def _widths(bundle: Bundle) -> dict[str, int]:
    return {row["layer"]: row["bits"] for row in bundle.steps[-1]["report"]["quantized_layers"]}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_lie_on_the_grid_of_their_bits(bits: int, before: Bundle, data: Dataset) -> None:
    after = compress(before, f"quantize:weight_bits={bits},images=64", data)
    module, top = after.module(), 2 ** (bits - 1) - 1
    nodes = [n for n in module.graph.nodes if n.target is quantized.dequantize_per_channel.default]
    assert nodes
    for node in nodes:
        values = attribute(module, str(node.args[0].target))
        assert int(values.abs().max()) == top == node.args[5]
    weights = sum(attribute(module, str(n.args[0].target)).numel() for n in nodes)
    others = cost_of(module).bytes - weights * bits / 8
    assert 0 < others < 5000, "the theory of the size does not follow the bits"


def test_one_scale_for_a_layer_and_no_zero_points(before: Bundle, data: Dataset) -> None:
    module = compress(before, "quantize:granularity=per-tensor,symmetric=true,images=64", data).module()
    for node in module.graph.nodes:
        if node.target is quantized.dequantize_per_channel.default:
            assert len(set(attribute(module, str(node.args[1].target)).tolist())) == 1
        if node.target is quantized.quantize_per_tensor.default:
            assert node.args[2] == 0


def test_bits_of_some_layers(before: Bundle, data: Dataset) -> None:
    names = list(_widths(compress(before, "quantize:images=32", data)))
    after = compress(before, f"quantize:images=32,weight_bits=4,layer_bits=[{names[0]}=8]", data)
    assert _widths(after) == {name: 8 if name == names[0] else 4 for name in names}


@pytest.mark.parametrize(
    "text",
    [
        "weight_bits=9",
        "layer_bits=[conv=1]",
        "layer_bits=[conv]",
        "size=0.5",
        "images=0",
        "bit_operations=2",
        "size=0.1,bit_operations=0.5",
    ],
)
def test_settings_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_step(f"quantize:{text}")


def test_a_layer_that_is_not_there_is_refused(before: Bundle, data: Dataset) -> None:
    with pytest.raises(StepError, match="no layer is called 'nothing\\*'"):
        compress(before, "quantize:keep_float=[nothing*]", data)


def test_bits_by_integer_programme_are_the_best_of_all() -> None:
    generator = np.random.default_rng(0)
    elements = {name: int(generator.integers(100, 5000)) for name in "abcde"}
    widths = (2, 4, 8)
    noise = {name: {b: float(generator.uniform(0.5, 2)) * 4.0**-b for b in widths} for name in elements}
    budget = 0.6 * sum(elements.values())
    found = choose_bits(noise, elements, 8 * budget)
    assert sum(elements[n] * b / 8 for n, b in found.items()) <= budget
    options = (dict(zip(elements, c, strict=True)) for c in itertools.product(widths, repeat=5))
    fitting = [o for o in options if sum(elements[n] * b / 8 for n, b in o.items()) <= budget]
    best = min(sum(noise[n][b] for n, b in o.items()) for o in fitting)
    assert sum(noise[n][b] for n, b in found.items()) == pytest.approx(best, rel=1e-6)
    with pytest.raises(StepError, match="smallest widths"):
        choose_bits(noise, elements, 10)


def test_a_budget_is_kept_and_beats_equal_bits(before: Bundle, data: Dataset) -> None:
    from edgekit.evaluation import evaluate, sqnr

    reference = evaluate(before.module(), data.validation, before.preprocessing).logits
    mixed = compress(before, "quantize:size=0.125", data)
    equal = compress(before, "quantize:weight_bits=4", data)
    floats = cost_of(before.module())
    weights = sum(layer.parameters for layer in floats.layers)
    taken = sum(
        row["bits"] / 8 * next(x.parameters for x in cost_of(mixed.module()).layers if x.path == row["layer"])
        for row in mixed.steps[-1]["report"]["quantized_layers"]
    )
    assert taken <= 0.126 * 4 * weights
    noise = [sqnr(reference, evaluate(b.module(), data.validation, b.preprocessing).logits) for b in (mixed, equal)]
    assert noise[0] > noise[1]


def test_a_budget_of_bit_operations_is_kept(before: Bundle, data: Dataset) -> None:
    mixed = compress(before, "quantize:bit_operations=0.5", data)
    macs = {layer.path: layer.macs for layer in cost_of(mixed.module()).layers}
    rows = mixed.steps[-1]["report"]["quantized_layers"]
    share = sum(row["bits"] * macs[row["layer"]] for row in rows) / (8 * sum(macs[row["layer"]] for row in rows))
    assert 0.35 < share <= 0.5
    assert len({row["bits"] for row in rows}) > 1


def test_control_gives_back_what_costs_most(before: Bundle, data: Dataset) -> None:
    loose = compress(before, "quantize:weight_bits=2,images=128", data)
    held = compress(before, "quantize:weight_bits=2,images=128,max_drop=1.0", data)
    report = held.steps[-1]["report"]["accuracy_control"]
    assert report["trials"][0]["drop"] > 1.0, "two bits lose nothing here: the test would prove nothing"
    assert report["within"]
    assert report["drop"] <= 1.0
    assert len(report["changed"]) > 0
    assert all(item["to"] == "int8" for item in report["changed"]), "raising bits comes before float"
    changed = {item["layer"] for item in report["changed"]}
    assert _widths(held) == {name: 8 if name in changed else 2 for name in _widths(loose)}


def test_control_that_can_t_be_met_hands_back_the_best(before: Bundle, data: Dataset) -> None:
    # A drop below -100 points is out of reach.
    after = compress(before, "quantize:images=32,max_drop=-100", data)
    report = after.steps[-1]["report"]
    assert not report["accuracy_control"]["within"]
    assert report["accuracy_control"]["drop"] == min(t["drop"] for t in report["accuracy_control"]["trials"])
    assert any("best found" in note for note in report["notes"])
    assert after.precision == "int8"


@pytest.mark.parametrize("needed", range(12))
def test_the_search_finds_the_fewest(needed: int) -> None:
    """With a drop that falls as layers go back, the doubling and halving ends at the first that passes."""
    undone = [(str(i), "float32") for i in range(10)]

    def attempt(changed: int, choice: Choice) -> Any:
        assert len(choice.keep_float) == changed
        return SimpleNamespace(changed=changed, drop=float(needed - changed))

    trials = control._search(attempt, Choice(), undone, 0.0)
    passed = [t.changed for t in trials if t.drop <= 0]
    assert len({t.changed for t in trials}) == len(trials) <= 8
    if 1 <= needed <= 9:
        assert min(passed) == needed
    if needed > 9:
        assert not passed


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_are_packed_in_the_bundle(bits: int, before: Bundle, data: Dataset, tmp_path: Path) -> None:
    after = compress(before, f"quantize:weight_bits={bits},images=64", data, output=tmp_path / "after")
    module = after.module()
    weights = {
        str(node.args[0].target): attribute(module, str(node.args[0].target)).numel()
        for node in module.graph.nodes
        if node.target is quantized.dequantize_per_channel.default
    }
    with zipfile.ZipFile(tmp_path / "after" / "program.pt2") as archive:
        stored = sum(
            entry.compress_size
            for entry in archive.infolist()
            if ("/weights/" in entry.filename or "/constants/" in entry.filename)
            and entry.file_size in weights.values()
        )
    # Entropy coding: a symmetric grid of b bits has one level less than 2^b, and its ends are rare.
    assert stored < sum(weights.values()) * bits / 8 + 100 * len(weights)
