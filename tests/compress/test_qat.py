"""Learned steps: their gradient, and that what was trained is what is deployed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.quantize.calibration.observe import observe_ranges, parameters_of
from edgekit.compress.quantize.learned_step import LearnedOddStep, LearnedSign, LearnedStep, convert, prepare
from edgekit.compress.quantize.plan import make_plan
from edgekit.compress.rewrite import fold_batch_norm, remove_dropout
from edgekit.compress.step import parse_step
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset, Split
from edgekit.errors import UnsupportedOperatorError, UsageError
from edgekit.evaluation import evaluate, sqnr
from edgekit.export.run import export
from edgekit.program import attribute, duplicate, export_program, quantized, trainable
from edgekit.sources.load import load
from edgekit.testing import networks


def test_the_gradient_is_that_of_the_paper() -> None:
    """Equation 3: round(v/s) - v/s inside, Qn or Qp outside, times the gradient scale; equation 5 for the values."""
    x = torch.tensor([-9.0, -1.3, -0.4, 0.2, 0.9, 2.6, 30.0], requires_grad=True)
    made = LearnedStep(torch.tensor(0.5), -4, 3, elements=7)
    weight = torch.arange(1.0, 8.0)
    (made(x) * weight).sum().backward()
    v = x.detach().double().numpy() / 0.5
    inside = (v > -4) & (v < 3)
    by_step = np.where(v <= -4, -4, np.where(v >= 3, 3, np.round(v) - v))
    expected = (by_step * weight.numpy()).sum() / np.sqrt(7 * 3)
    assert float(made.scale.grad) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), np.where(inside, weight.numpy(), 0.0))


def test_signs_and_their_scales() -> None:
    """SYQ: s starts at the mean magnitude; dL/ds sums the gradient times the sign, dL/dw passes where |w| <= 1."""
    weight = torch.tensor([[0.5, -0.25, 0.0, -1.5], [2.0, 0.1, -0.1, -0.2]], requires_grad=True)
    made = LearnedSign(weight.detach())
    scale = weight.detach().abs().mean(1)
    np.testing.assert_allclose(made.scale.detach(), scale)
    factors = torch.arange(1.0, 9.0).view(2, 4)
    signs = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1]])
    quantized_weight = made(weight)
    assert torch.equal(quantized_weight, signs * scale[:, None])
    (quantized_weight * factors).sum().backward()
    assert torch.equal(weight.grad, torch.where(weight.detach().abs() <= 1, factors, 0.0))
    np.testing.assert_allclose(made.scale.grad, (factors * signs).sum(1) / np.sqrt(4))
    assert torch.equal(made.levels(weight), signs)


def test_four_levels_without_a_zero() -> None:
    """The nearest of -3, -1, 1 and 3 steps; equation 3 of LSQ with what is nearest; the best step for a normal distribution."""
    weight = torch.tensor([[-9.0, -1.3, -0.4, 0.2, 0.9, 2.6, 1.7]], requires_grad=True)
    made = LearnedOddStep(weight.detach())
    made.scale.data = torch.tensor([0.5])
    v = weight.detach().double().numpy() / 0.5
    nearest = np.array([-3, -1, 1, 3])[np.abs(v[..., None] - [-3, -1, 1, 3]).argmin(-1)]
    assert np.array_equal(made.levels(weight).detach().numpy(), nearest)
    factors = torch.arange(1.0, 8.0)
    quantized_weight = made(weight)
    np.testing.assert_allclose(quantized_weight.detach().numpy(), 0.5 * nearest)
    (quantized_weight * factors).sum().backward()
    inside = np.abs(v) < 4
    expected = (np.where(inside, nearest - v, nearest) * factors.numpy()).sum() / np.sqrt(7 * 3)
    assert float(made.scale.grad) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(weight.grad.numpy(), np.where(inside, factors.numpy(), 0.0))
    normal = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    started = LearnedOddStep(normal)
    errors = {}
    for times in (0.9, 1.0, 1.1):
        started.scale.data = LearnedOddStep(normal).scale.data * times
        errors[times] = float(((started(normal) - normal) ** 2).mean().detach())
    assert min(errors, key=lambda times: errors[times]) == 1.0


@pytest.mark.parametrize("network", networks.NETWORKS)
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(4, 8), (4, 4), (2, 8), (1, 8)])
def test_conversion_gives_the_network_that_was_trained(network: str, weight_bits: int, activation_bits: int) -> None:
    """Batch norms with negative and zero factors included; up to one rounding of the biases."""
    floats = trainable(export_program(networks.make(network), networks.INPUT_SHAPE))
    remove_dropout(floats)
    with torch.no_grad():
        for name, parameter in floats.named_parameters():
            if "bn" in name and name.endswith("weight"):
                parameter[1] *= -1
                parameter[2] = 0
    folded = duplicate(floats)
    fold_batch_norm(folded)
    images = networks.images(32)
    plan = make_plan(folded)
    parameters = parameters_of(plan, observe_ranges(folded, plan, [images.numpy()]))
    module = duplicate(floats)
    edges = {plan.compute[0].name, plan.compute[-1].name}
    bits = {node.name: 8 if node.name in edges else weight_bits for node in plan.compute}
    inputs = {node.name: 8 if node.name in edges else activation_bits for node in plan.compute}
    found = prepare(module, plan, parameters, bits, inputs, images.numpy())
    assert bool(found.inputs) == (activation_bits < 8)
    with torch.no_grad():
        # As if trained: steps that are no longer what calibration gave.
        for position, (_, made) in enumerate(sorted(module.named_children())):
            if isinstance(made, LearnedStep):
                made.scale *= 1 + 0.01 * (position % 5)
        expected = module(images)
    after = duplicate(floats)
    convert(after, module, found, ())
    with torch.no_grad():
        got = after(images)
    assert sqnr(expected.numpy(), got.numpy()) is None or sqnr(expected.numpy(), got.numpy()) > 30
    for node in after.graph.nodes:
        if node.target is quantized.dequantize_per_channel.default:
            assert int(attribute(after, str(node.args[0].target)).abs().max()) <= node.args[5]
    if activation_bits == 4:
        for place, readers in found.inputs.values():
            for reader in readers:
                node = next(n for n in after.graph.nodes if n.name == reader)
                step = float(module.get_submodule(place).step().detach())
                assert node.args[0].args[1] == step


@pytest.mark.parametrize(("bits", "levels"), [(1, {-1, 1}), (2, {-3, -1, 1, 3})])
def test_one_and_two_bit_weights_take_two_bits_in_the_file(
    before: Bundle, data: Dataset, tmp_path: Path, bits: int, levels: set[int]
) -> None:
    small = compress(before, f"qat:weight_bits={bits},epochs=8,learning_rate=0.02", data)
    assert small.steps[-1]["report"]["converted_validation_top1"] > 90
    module = small.module()
    weights = [
        attribute(module, str(node.args[0].target))
        for node in module.graph.nodes
        if node.target is quantized.dequantize_per_channel.default
    ]
    for weight in weights[1:-1]:
        assert set(weight.unique().tolist()) == levels
    # Its bits, and a scale and a bias of four bytes for each channel.
    inner = [layer for layer in cost_of(module).layers if layer.parameters][1:-1]
    expected = [-(-weight.numel() * bits // 8) + 8 * len(weight) for weight in weights[1:-1]]
    assert [layer.bytes for layer in inner] == expected
    (file,) = export(small, "onnx", data=data, output=tmp_path)
    model = onnx.load(file.path)
    stored = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT2]
    assert [len(tensor.raw_data) for tensor in stored] == [-(-weight.numel() // 4) for weight in weights[1:-1]]
    assert file.parity["int8_macs_share"] == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_recovers_what_rounding_loses(before: Bundle, data: Dataset, precision: str) -> None:
    rounded = compress(before, "quantize:weight_bits=2", data)
    step = f"qat:weight_bits=2,activation_bits=4,epochs=8,learning_rate=0.02,precision={precision}"
    trained = compress(before, step, data)
    report = trained.steps[-1]["report"]
    top1 = [evaluate(b.module(), data.validation, b.preprocessing).top1 for b in (rounded, trained)]
    assert top1[1] > top1[0] + 5
    assert top1[1] == report["converted_validation_top1"]
    assert report["converted_validation_top1"] == pytest.approx(report["best_validation_top1"], abs=1.0)
    bits = [row["bits"] for row in report["quantized_layers"]]
    assert bits == [8, *[2] * (len(bits) - 2), 8]


def test_few_bit_activations_are_deployed_in_onnx_and_refused_elsewhere(
    before: Bundle, data: Dataset, tmp_path: Path
) -> None:
    small = compress(before, "qat:weight_bits=4,activation_bits=4,epochs=1,distill=0.5", data)
    (file,) = export(small, "onnx", data=data, output=tmp_path)
    assert file.parity["agreement"]["sqnr_db"] is None or file.parity["agreement"]["sqnr_db"] > 30
    for name in ("tflite", "ncnn"):
        with pytest.raises(UnsupportedOperatorError, match="fewer than 8 bits"):
            export(small, name, data=data, output=tmp_path)


def test_eight_bit_activations_are_deployed_in_every_format(before: Bundle, data: Dataset, tmp_path: Path) -> None:
    small = compress(before, "qat:weight_bits=4,epochs=1", data)
    for file in export(small, ["onnx", "tflite", "ncnn"], data=data, output=tmp_path):
        # ncnn has a grid of its own for int8; the others must give what was simulated.
        found = file.parity["agreement_with_program"]["sqnr_db"]
        assert found is None or found > (20 if file.parity["format"] == "ncnn" else 35), file.parity["format"]


@pytest.mark.parametrize("text", ["weight_bits=0", "activation_bits=9", "epochs=0", "distill=2"])
def test_settings_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_step(f"qat:{text}")


class Unusual(nn.Module):
    """A normalized weight, a convolution of three dimensions, and a number that all images share."""

    def __init__(self) -> None:
        super().__init__()
        self.normalized = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.deep, self.head = nn.Conv3d(8, 8, (1, 3, 3)), nn.Linear(8, networks.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.normalized(x)) * self.head.weight.mean()
        return self.head(self.deep(x.unsqueeze(2)).squeeze(2).mean((2, 3)))


def test_unusual_networks_are_trained() -> None:
    torch.manual_seed(0)
    bundle = load(Unusual().eval(), input_shape=networks.INPUT_SHAPE)
    names = {name for name, _ in bundle.module().named_parameters()}
    assert names == {f"{layer}.{kind}" for layer in ("normalized", "deep", "head") for kind in ("weight", "bias")}
    split = Split(networks.images(32).numpy(), np.arange(32) % networks.CLASSES)
    data = Dataset("smooth", tuple(map(str, range(networks.CLASSES))), split, split, split)
    report = compress(bundle, "qat:weight_bits=4,epochs=1,images=16", data).steps[-1]["report"]
    assert {row["layer"] for row in report["quantized_layers"]} >= {"normalized", "head"}
