"""The simulator gives what the program gives, bit for bit."""

from __future__ import annotations

import pytest
import torch

from edgekit.compress.quantize.calibration.observe import observe_ranges, parameters_of
from edgekit.compress.quantize.plan import insert, make_plan
from edgekit.compress.rewrite import fold_batch_norm
from edgekit.program import attribute, export_program, layer_name, node_values, quantized, trainable
from edgekit.simulation import round_to_grid, simulator
from edgekit.testing import networks


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize("bits", [8, 3])
def test_equal_to_the_bit_at_every_node(name: str, bits: int) -> None:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    fold_batch_norm(module)
    images = networks.images(12)
    plan = make_plan(module)
    insert(
        module,
        plan,
        parameters_of(plan, observe_ranges(module, plan, [images.numpy()])),
        dict.fromkeys(map(layer_name, plan.compute), bits),
    )
    code = module.code
    made = simulator(module)
    assert module.code == code
    assert not [n for n in made.graph.nodes if "quantize" in str(n.target) and n.op == "call_function"]
    wanted, found = node_values(module, images), node_values(made, images)
    assert len(found) > 3
    for node, value in found.items():
        assert torch.equal(value, wanted[node]), node


def test_it_shares_parameters() -> None:
    module = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
    made = simulator(module)
    images = networks.images(2)
    before = made(images)
    attribute(module, "head.bias").data += 1
    torch.testing.assert_close(made(images), before + 1)


def test_rounding_is_the_reference_operators() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        scale = float(torch.rand(1, generator=generator).item()) + 1e-3
        x = torch.randn(1000, generator=generator) * 100 * scale
        x[::7] = (torch.randint(-300, 300, x[::7].shape, generator=generator) + 0.5) * scale  # ties
        bounds = (scale, int(torch.randint(-128, 128, (1,), generator=generator)), -128, 127, torch.int8)
        q = quantized.quantize_per_tensor.default(x, *bounds)
        assert torch.equal(round_to_grid(x, *bounds[:4]), quantized.dequantize_per_tensor.default(q, *bounds))
