"""Cross-layer equalization: the same function, even ranges, and a repaired network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.quantize.equalize import neighbours
from edgekit.compress.rewrite import fold_batch_norm, remove_dropout
from edgekit.data.references import load_data
from edgekit.evaluation import evaluate, sqnr
from edgekit.program import attribute, export_program, layer_name, trainable
from edgekit.sources.load import load
from edgekit.testing import networks


def _bundle(network: nn.Module) -> Bundle:
    return Bundle(export_program(network, networks.INPUT_SHAPE), networks.INPUT_SHAPE)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_function_stays_the_same(name: str) -> None:
    before = _bundle(networks.make(name))
    after = compress(before, "equalize")
    x = networks.images(4)
    torch.testing.assert_close(after.module()(x), before.module()(x), rtol=1e-4, atol=1e-5)


class Chain(nn.Module):
    """What may stand between two layers, and what may not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.d = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, groups=3)
        self.e, self.f = nn.Linear(12, 10), nn.Linear(10, networks.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        x = torch.nn.functional.relu6(self.c(torch.max_pool2d(x, 2)))
        x = self.d(x).mean((2, 3))
        return self.f(torch.nn.functional.leaky_relu(self.e(x), 0.1))


def test_which_layers_are_neighbours() -> None:
    module = trainable(export_program(Chain().eval(), networks.INPUT_SHAPE))
    # c and d: ReLU6 saturates; d is grouped, its own inputs are coupled, its outputs are not.
    expected = [("a", "b"), ("b", "c"), ("d", "e"), ("e", "f")]
    assert [(layer_name(one), layer_name(two)) for one, two in neighbours(module)] == expected


def test_ranges_meet_in_the_middle() -> None:
    """Equation 9: after equalization both layers have the same range in each channel."""
    bundle = compress(_bundle(Chain().eval()), "equalize")
    module = bundle.module()
    e, f = attribute(module, "e.weight").detach().numpy(), attribute(module, "f.weight").detach().numpy()
    d = attribute(module, "d.weight").detach().numpy()
    np.testing.assert_allclose(np.abs(e).max(1), np.abs(f).max(0), rtol=1e-2)
    np.testing.assert_allclose(np.abs(d).reshape(12, -1).max(1), np.abs(e).max(0), rtol=1e-2)


def _spoiled() -> tuple[Bundle, str]:
    """The embedded network with single channels of its second convolution scaled by up to 1000, undone in the next."""
    bundle = load("zoo:digits-cnn")
    module = bundle.module()
    remove_dropout(module)
    fold_batch_norm(module)
    first, second = neighbours(module)[0]
    scale = torch.ones(int(first.meta["val"].shape[1]))
    scale[0], scale[1] = 1000.0, 30.0
    weight, bias = (attribute(module, str(first.args[i].target)) for i in (1, 2))
    weight.data *= scale.view(-1, 1, 1, 1)
    bias.data *= scale
    after = attribute(module, str(second.args[1].target))
    after.data /= scale.view([1, -1, *[1] * (after.dim() - 2)])
    return replace(bundle.with_module(module), labels=bundle.labels), layer_name(first)


def test_a_layer_scaled_by_a_thousand_is_named_and_repaired() -> None:
    data = load_data("digits")
    spoiled, layer = _spoiled()
    reference = evaluate(spoiled.module(), data.validation, spoiled.preprocessing)
    broken = compress(spoiled, "quantize:images=128", data)
    notes = broken.steps[-1]["report"]["notes"]
    assert any(note.startswith(f"{layer} loses its content") for note in notes), notes
    repaired = compress(spoiled, ["equalize", "quantize:images=128"], data)
    assert not repaired.steps[-1]["report"]["notes"]
    noise = {
        name: sqnr(reference.logits, evaluate(bundle.module(), data.validation, bundle.preprocessing).logits) or 200.0
        for name, bundle in {"broken": broken, "repaired": repaired}.items()
    }
    assert noise["repaired"] > 20
    assert noise["repaired"] > noise["broken"] + 10
    pair = repaired.steps[0]["report"]["pairs"][0]
    assert pair["layers"][0] == layer
    assert pair["range_ratio_after"] < pair["range_ratio_before"] / 50
