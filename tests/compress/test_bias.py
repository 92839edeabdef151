"""Bias correction: the means of the float network come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.quantize.bias import bias_scale, correct_biases, output_means, round_biases
from edgekit.compress.quantize.calibration.observe import observe_ranges, parameters_of
from edgekit.compress.quantize.plan import insert, make_plan
from edgekit.compress.rewrite import fold_batch_norm, remove_dropout
from edgekit.program import attribute, export_program, layer_name, node_values, trainable
from edgekit.testing import networks


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_layer_s_mean_is_the_float_one_again(name: str) -> None:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    remove_dropout(module)
    fold_batch_norm(module)
    images = networks.images(48)
    plan = make_plan(module)
    ranges = observe_ranges(module, plan, [images.numpy()])
    means = output_means(module, plan.compute, [images[:20].numpy(), images[20:].numpy()])
    floats = node_values(module, images)
    for node in plan.compute:
        axes = (0, 2, 3) if floats[node.name].dim() == 4 else (0,)
        np.testing.assert_allclose(means[node], floats[node.name].double().numpy().mean(axes), rtol=1e-5, atol=1e-7)
    insert(module, plan, parameters_of(plan, ranges))
    before = {n: _largest_shift(node_values(module, images), means, n) for n in plan.compute}
    shifts = correct_biases(module, means, images.numpy())
    after = {n: _largest_shift(node_values(module, images), means, n) for n in plan.compute}
    assert set(shifts) == set(plan.compute)
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
    means = output_means(module, plan.compute, [images.numpy()])
    insert(module, plan, parameters_of(plan, ranges))
    shifts = correct_biases(module, means, images.numpy())
    assert [layer_name(node) for node in shifts] == ["2"]


def _largest_shift(values: dict[str, torch.Tensor], means: dict, node: torch.fx.Node) -> float:
    value = values[node.name].double()
    axes = (0, 2, 3) if value.dim() == 4 else (0,)
    return float((value.mean(axes) - means[node]).abs().max())
