"""Float and quantized network side by side: the means of the float one come back, and the noise is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.quantize.bias import bias_scale, round_biases
from edgekit.compress.quantize.calibration.observe import observe_ranges, parameters_of
from edgekit.compress.quantize.plan import insert, make_plan
from edgekit.compress.quantize.rules import RULES, Role
from edgekit.compress.quantize.side_by_side import compare
from edgekit.compress.rewrite import fold_batch_norm, remove_dropout
from edgekit.program import aten, attribute, duplicate, export_program, layer_name, node_values, quantized, trainable
from edgekit.testing import networks


# Linear layers behind tokens have their channels last.
@pytest.mark.parametrize("name", [*networks.NETWORKS, "attention", "encoder"])
def test_every_layer_s_mean_is_the_float_one_again(name: str) -> None:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    remove_dropout(module)
    fold_batch_norm(module)
    images = networks.images(48)
    plan = make_plan(module)
    ranges = observe_ranges(module, plan, [images.numpy()])
    floats = duplicate(module)
    wanted = node_values(floats, images)
    insert(module, plan, parameters_of(plan, ranges))
    before = {n: _largest_shift(node_values(module, images), wanted, n) for n in plan.compute}
    names = [node.name for node in plan.compute]
    _, shifts = compare(floats, module, names, images.numpy(), correct=True, batch_size=20)
    after = {n: _largest_shift(node_values(module, images), wanted, n) for n in plan.compute}
    assert set(shifts) == {layer_name(node) for node in plan.compute}
    assert max(before.values()) > 1e-3, "nothing to correct: the test would prove nothing"
    for node in plan.compute:
        # Biases are multiples of s_x s_w, so up to half of that is left.
        scale = bias_scale(module, node)
        assert scale is not None
        assert after[node] < 0.5 * float(scale.max()) + 1e-6, layer_name(node)
        _on_the_grid(module, node)


def test_rounding_alone_puts_biases_on_the_grid() -> None:
    module = trainable(export_program(networks.make("concat"), networks.INPUT_SHAPE))
    images = networks.images(8)
    plan = make_plan(module)
    insert(module, plan, parameters_of(plan, observe_ranges(module, plan, [images.numpy()])))
    was = {n: attribute(module, str(n.args[2].target)).detach().clone() for n in plan.compute}
    round_biases(module)
    for node in plan.compute:
        moved = (attribute(module, str(node.args[2].target)) - was[node]).detach().abs()
        assert (moved <= 0.51 * bias_scale(module, node)).all()
        assert moved.max() > 0
        _on_the_grid(module, node)


def _on_the_grid(module: torch.fx.GraphModule, node: torch.fx.Node) -> None:
    bias = attribute(module, str(node.args[2].target)).detach().double().numpy()
    steps = bias / bias_scale(module, node).double().numpy()
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


def test_a_layer_without_a_bias_is_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    module = trainable(export_program(network, networks.INPUT_SHAPE))
    images = networks.images(8)
    plan = make_plan(module)
    ranges = observe_ranges(module, plan, [images.numpy()])
    floats = duplicate(module)
    insert(module, plan, parameters_of(plan, ranges))
    noise, shifts = compare(floats, module, [n.name for n in plan.compute], images.numpy(), correct=True)
    assert list(shifts) == ["2"]
    assert [row.layer for row in noise] == ["0", "2"]


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_noise_is_that_of_what_the_next_layer_reads(name: str) -> None:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    remove_dropout(module)
    fold_batch_norm(module)
    images = networks.images(10)
    plan = make_plan(module)
    floats = duplicate(module)
    insert(module, plan, parameters_of(plan, observe_ranges(module, plan, [images.numpy()])))
    noise, shifts = compare(floats, module, [n.name for n in plan.compute], images.numpy(), batch_size=3)
    assert shifts == {}
    wanted, found = node_values(floats, images), node_values(module, images)
    for node, row in zip(plan.compute, noise, strict=True):
        users = list(node.users)
        fused = RULES.get(users[0].target) is Role.FUSED and len(users) == 1
        pair = next(
            (u for u in (users[0] if fused else node).users if u.target is quantized.quantize_per_tensor.default), None
        )
        last = next(iter(pair.users)) if pair is not None else users[0] if fused else node
        reference, got = wanted[(users[0] if fused else node).name].double(), found[last.name].double()
        assert row.sqnr_db == pytest.approx(
            float(10 * torch.log10(reference.square().sum() / (reference - got).square().sum())), abs=1e-3
        )


def _largest_shift(values: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], node: torch.fx.Node) -> float:
    difference = values[node.name].double() - wanted[node.name].double()
    channels = difference.dim() - 1 if node.target is aten.linear.default else 1
    return float(difference.movedim(channels, 0).flatten(1).mean(1).abs().max())
