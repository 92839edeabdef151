"""INT8 quantization against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.quantize.bias import bias_scale
from edgekit.compress.quantize.calibration.observe import observe_ranges, parameters_of
from edgekit.compress.quantize.plan import insert, make_plan
from edgekit.compress.quantize.scheme import affine_parameters, quantize_weight, weight_scales
from edgekit.compress.rewrite import (
    fold_batch_norm,
    global_pool_to_mean,
    remove_dropout,
    strided_slice_to_pool,
)
from edgekit.data.dataset import Dataset
from edgekit.errors import StepError
from edgekit.evaluation import sqnr
from edgekit.program import aten, attribute, export_program, quantized, trainable
from edgekit.testing import networks


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 6.0), (-3.0, 0.5), (0.2, 5.0), (-7.0, -1.0), (0.0, 0.0)])
def test_affine_parameters_hold_zero_exactly_and_cover_the_range(low: float, high: float) -> None:
    found = affine_parameters(low, high)
    assert -128 <= found.zero_point <= 127
    grid = (np.arange(-128, 128, dtype=np.float64) - found.zero_point) * found.scale
    assert 0.0 in grid
    # The zero point is rounded, so an end of the range may lie half a step outside.
    assert grid[0] <= min(low, 0) + 0.51 * found.scale
    assert grid[-1] >= max(high, 0) - 0.51 * found.scale


def test_weights_are_rounded_to_the_nearest_step_of_their_channel() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1, 10, 0.1, 1, 1, 0]
    ).view(-1, 1, 1, 1)
    scales = weight_scales(weight)
    values = quantize_weight(weight, scales)
    w = weight.numpy().astype(np.float64)
    expected = np.abs(w).reshape(6, -1).max(1) / 127
    np.testing.assert_allclose(scales.numpy()[:5], expected[:5], rtol=1e-6)
    error = np.abs(values.numpy() * scales.numpy().astype(np.float64).reshape(-1, 1, 1, 1) - w)
    assert (error <= 0.5001 * scales.numpy().reshape(-1, 1, 1, 1)).all()
    assert values.abs().amax() == 127
    assert (values[5] == 0).all()
    assert scales[5] > 0


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_batch_norm_folds_exactly(name: str) -> None:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    x = networks.images(3)
    expected = module(x)
    norms = sum(node.target is aten.batch_norm.default for node in module.graph.nodes)
    remove_dropout(module)
    assert fold_batch_norm(module) == norms
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_format_rewrites_are_exact() -> None:
    module = trainable(export_program(networks.make("residual"), networks.INPUT_SHAPE))
    x = networks.images(3)
    expected = module(x)
    assert strided_slice_to_pool(module) == 1
    assert torch.equal(module(x), expected)
    assert global_pool_to_mean(module) == 1
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)


def _quantized(name: str) -> tuple[torch.fx.GraphModule, torch.fx.GraphModule]:
    program = export_program(networks.make(name), networks.INPUT_SHAPE)
    floating = trainable(program)
    module = trainable(program)
    remove_dropout(module)
    fold_batch_norm(module)
    plan = make_plan(module)
    insert(module, plan, parameters_of(plan, observe_ranges(module, plan, [networks.images(32).numpy()])))
    return floating, module


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_quantized_network_stays_near_and_is_small(name: str) -> None:
    floating, module = _quantized(name)
    x = networks.images(32)
    expected, got = floating(x), module(x)
    assert 10 * torch.log10((expected**2).sum() / ((expected - got) ** 2).sum()) > 20
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    weights = [n for n in module.graph.nodes if n.target in (aten.conv2d.default, aten.linear.default)]
    assert all(n.args[1].target is quantized.dequantize_per_channel.default for n in weights)
    assert all(n.args[0].target is quantized.dequantize_per_tensor.default for n in weights), "every input is int8"
    assert targets.count(quantized.quantize_per_tensor.default) == targets.count(
        quantized.dequantize_per_tensor.default
    )
    floats = sum(p.numel() for p in module.parameters())
    assert floats == sum(n.args[2].meta["val"].numel() for n in weights if len(n.args) > 2), "only biases stay in float"


def test_first_layer_against_integer_arithmetic_in_numpy() -> None:
    """The simulated output of a quantized convolution is what integers would give, step for step."""
    _, module = _quantized("concat")
    x = networks.images(2)
    nodes = {node.name: node for node in module.graph.nodes}
    conv = next(node for node in module.graph.nodes if node.target is aten.conv2d.default)
    q_in, out_q = conv.args[0].args[0], next(iter(next(iter(conv.users)).users))
    assert out_q.target is quantized.quantize_per_tensor.default
    s_in, z_in = q_in.args[1], q_in.args[2]
    s_out, z_out = out_q.args[1], out_q.args[2]
    w = module.get_buffer(conv.args[1].args[0].target).numpy().astype(np.int64)
    s_w = module.get_buffer(conv.args[1].args[1].target).numpy().astype(np.float64)
    bias = module.get_parameter(conv.args[2].target).detach().numpy().astype(np.float64)

    q = np.clip(np.round(x.numpy().astype(np.float64) / s_in) + z_in, -128, 127).astype(np.int64) - z_in
    padded = np.pad(q, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    accumulated = np.einsum("nchwij,ocij->nohw", windows, w)
    real = np.maximum(accumulated * (s_in * s_w).reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1), 0)
    expected = np.clip(np.round(real / s_out) + z_out, -128, 127)

    values: dict[str, torch.Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            result = super().run_node(n)
            values[n.name] = result
            return result

    with torch.no_grad():
        Recorder(module).run(x)
    assert out_q.name in nodes
    difference = np.abs(values[out_q.name].numpy().astype(np.int64) - expected)
    # float32 sums may fall on the other side of a tie, by one step, rarely.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.002


def test_concatenation_and_reshapes_share_one_scale() -> None:
    _, module = _quantized("concat")
    cat = next(node for node in module.graph.nodes if node.target is aten.cat.default)
    bounds = {node.args[1:3] for node in cat.args[0]} | {next(iter(cat.users)).args[1:3]}
    assert len(bounds) == 1


def test_layers_kept_in_float_are_named() -> None:
    module = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
    fold_batch_norm(module)
    plan = make_plan(module, ("conv1", "he*"))
    assert [reason for _, reason in plan.in_float] == ["kept in float on request"] * 2
    assert len(plan.compute) == 2


def test_a_channel_of_next_to_no_weight_leaves_room_for_its_bias() -> None:
    """Its scale alone would put the bias beyond int32; batch norms make such channels."""
    module = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
    fold_batch_norm(module)
    with torch.no_grad():
        module.conv2.weight[3] *= 1e-9
        module.conv2.bias[3] = 2.0
    expected = module(networks.images(8))
    plan = make_plan(module)
    insert(module, plan, parameters_of(plan, observe_ranges(module, plan, [networks.images(32).numpy()])))
    for node in plan.compute:
        steps = attribute(module, str(node.args[2].target)) / bias_scale(module, node)
        assert steps.abs().max() < 2**31
    got = module(networks.images(8))
    assert 10 * torch.log10((expected**2).sum() / ((expected - got) ** 2).sum()) > 20


def test_calibration_names_the_layer_that_is_not_finite() -> None:
    module = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
    fold_batch_norm(module)
    with torch.no_grad():
        module.conv2.bias[0] = float("nan")
    plan = make_plan(module)
    with pytest.raises(StepError, match="not finite"):
        observe_ranges(module, plan, [networks.images(2).numpy()])


def test_wider_activations_lose_less_and_float_ones_no_more_than_the_weights(before: Bundle, data: Dataset) -> None:
    x = torch.from_numpy(_inputs(before, data))
    with torch.no_grad():
        reference = before.module()(x).numpy()
        noise = {}
        for bits in (8, 16, 32):
            small = compress(before, f"quantize:activation_bits={bits},images=64,bias_correction=false", data)
            noise[bits] = sqnr(reference, small.module()(x).numpy())
            pairs = [n for n in small.program.graph.nodes if n.target is quantized.quantize_per_tensor.default]
            assert {n.args[3:] for n in pairs} == {
                8: {(-128, 127, torch.int8)}, 16: {(-32768, 32767, torch.int16)}, 32: set(),
            }[bits]  # fmt: skip
    assert noise[16] > noise[8] + 1
    assert noise[16] == pytest.approx(noise[32], abs=0.5)


def _inputs(bundle: Bundle, data: Dataset) -> np.ndarray:
    x, _ = next(iter(data.validation.batches(bundle.preprocessing, 64)))
    return x
