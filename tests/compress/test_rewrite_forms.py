"""Rewrites into forms that every format has: exact, whatever the arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

from edgekit.compress.rewrite import (
    adaptive_maximum_to_pool,
    attention_in_heads,
    circular_padding_to_concatenation,
    computed_weights_to_parameters,
    crop_transposed_convolutions,
    has_computed_weights,
    powers_to_products,
    repeats_to_concatenation,
    resizing_to_products,
)
from edgekit.program import aten, export_program, shape_of, trainable

SHAPE = (4, 12, 10)


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x if self.layer is None else self.layer(x))


def rewritten(
    network: nn.Module, rewrite: Callable[[GraphModule], int], shape: tuple[int, ...] = SHAPE
) -> tuple[int, GraphModule]:
    """How many were rewritten, and the graph; that it computes the same, with the shapes it says, is checked here."""
    torch.manual_seed(0)
    module = trainable(export_program(network, shape))
    x = torch.randn(3, *shape).abs() * (torch.rand(3, *shape) > 0.3)
    expected = module(x)
    count = rewrite(module)
    torch.testing.assert_close(module(x), expected)
    assert _shapes(module) == _shapes(trainable(export_program(module, shape)))
    return count, module


def _shapes(module: GraphModule) -> list[tuple[int, ...]]:
    values = [node for node in module.graph.nodes if node.op == "call_function"]
    return [shape_of(node)[1:] for node in values if isinstance(node.meta["val"], torch.Tensor)]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, 1),
        ({"kernel_size": 3, "stride": 2, "padding": 1}, 1),
        ({"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 0), "output_padding": (1, 0)}, 1),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "bias": False}, 1),
        ({"kernel_size": 3, "padding": 1, "dilation": 2}, 1),
        ({"kernel_size": 4, "stride": 2, "padding": 1}, 0),  # the same on both sides: TFLite's own
        ({"kernel_size": 3, "padding": 1}, 0),
        ({"kernel_size": 2, "stride": 2}, 0),
        ({"kernel_size": 3, "stride": 2, "output_padding": 1}, 0),  # more than there is to take from
    ],
)
def test_transposed_convolutions_are_cropped(arguments: dict[str, int], count: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, **arguments)  # type: ignore[arg-type]
    found, module = rewritten(Function(lambda y: y, layer), crop_transposed_convolutions)
    assert found == count
    (left,) = [node for node in module.graph.nodes if node.target is aten.conv_transpose2d.input]
    if count:
        assert list(left.args[4]) == list(left.args[5]) == [0, 0]


@pytest.mark.parametrize(("exponent", "count"), [(3, 1), (4.0, 1), (0.5, 1), (2.5, 1), (2, 0), (9, 0), (1.3, 0)])
def test_powers_are_products(exponent: float, count: int) -> None:
    found, module = rewritten(Function(lambda x: x**exponent), powers_to_products)
    assert found == count
    assert (aten.pow.Tensor_Scalar in [node.target for node in module.graph.nodes]) == (not count)


def test_powers_of_negative_numbers_keep_their_sign() -> None:
    module = trainable(export_program(Function(lambda x: x**3), (1,)))
    assert powers_to_products(module) == 1
    assert torch.equal(module(torch.tensor([[-2.0], [0.0]])), torch.tensor([[-8.0], [0.0]]))


@pytest.mark.parametrize("grid", [1, 2, (3, 5), (4, None)])
def test_adaptive_maxima_are_poolings(grid: int | tuple[int | None, int | None]) -> None:
    pool = nn.AdaptiveMaxPool2d(grid)  # type: ignore[arg-type]
    found, module = rewritten(Function(pool), adaptive_maximum_to_pool)
    assert found == 1
    assert aten.max_pool2d.default in [node.target for node in module.graph.nodes]


def test_adaptive_maxima_of_unequal_windows_or_with_places_are_left() -> None:
    functional = nn.functional
    assert rewritten(Function(nn.AdaptiveMaxPool2d(5)), adaptive_maximum_to_pool)[0] == 0
    places = Function(lambda x: functional.adaptive_max_pool2d(x, 2, return_indices=True)[1].float())
    assert rewritten(places, adaptive_maximum_to_pool)[0] == 0


@pytest.mark.parametrize("form", ["plain", "causal", "mask", "mask of each input", "scaled"])
def test_attention_gets_a_head(form: str) -> None:
    attention = nn.functional.scaled_dot_product_attention
    mask = torch.zeros(12, 12).masked_fill(torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) > 0.7, -5.0)
    forms: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "plain": lambda x: attention(x, x * 0.5, x),
        "causal": lambda x: attention(x, x * 0.5, x, is_causal=True),
        "mask": lambda x: attention(x, x, x, attn_mask=mask),
        "mask of each input": lambda x: attention(x, x, x, attn_mask=x @ x.transpose(1, 2)),
        "scaled": lambda x: attention(x, x, x, scale=0.1),
    }
    found, module = rewritten(Function(forms[form]), attention_in_heads, (12, 8))
    assert found == 1
    (node,) = [n for n in module.graph.nodes if n.target is aten.scaled_dot_product_attention.default]
    assert len(shape_of(node)) == 4


def test_attention_in_heads_is_left() -> None:
    heads = Function(lambda x: nn.functional.scaled_dot_product_attention(x, x, x))
    assert rewritten(heads, attention_in_heads)[0] == 0


@pytest.mark.parametrize(
    ("times", "count"), [((1, 3, 1, 1), 1), ((1, 2, 1, 2), 1), ((1, 1, 1, 1), 1), ((1, 40, 1, 1), 0)]
)
def test_repeats_are_concatenations(times: tuple[int, ...], count: int) -> None:
    found, module = rewritten(Function(lambda x: x.repeat(*times)), repeats_to_concatenation)
    assert found == count
    assert (aten.repeat.default in [node.target for node in module.graph.nodes]) == (not count)


def test_repeats_that_add_a_dimension_are_left() -> None:
    assert rewritten(Function(lambda x: x.flatten(1).repeat(2, 1, 1).transpose(0, 1)), repeats_to_concatenation)[0] == 0


@pytest.mark.parametrize(
    ("padding", "mode", "count"),
    [
        ((1, 2, 3, 1), "circular", 1),
        ((0, 2, 0, 0), "circular", 1),
        ((1, 0, 0, 2), "circular", 1),
        ((1, 1, 1, 1), "reflect", 0),
    ],
)
def test_circular_padding_is_concatenation(padding: tuple[int, ...], mode: str, count: int) -> None:
    found, module = rewritten(
        Function(lambda x: nn.functional.pad(x, padding, mode=mode)), circular_padding_to_concatenation
    )
    assert found == count
    assert (aten.pad.default in [node.target for node in module.graph.nodes]) == (not count)


def test_computed_weights_are_parameters() -> None:
    norms = nn.utils.parametrizations
    layers = [
        norms.weight_norm(nn.Conv2d(4, 6, 3)), nn.ReLU(), norms.spectral_norm(nn.Conv2d(6, 8, 3, padding="same")),
        nn.utils.weight_norm(nn.ConvTranspose2d(8, 6, 3)), nn.Flatten(), norms.spectral_norm(nn.Linear(720, 5)),
    ]  # fmt: skip
    network = nn.Sequential(*layers).eval()
    found, module = rewritten(network, lambda module: len(computed_weights_to_parameters(module)))
    assert found == 4
    assert {name for name, _ in module.named_parameters()} == {
        f"{i}.{kind}" for i in (0, 2, 3, 5) for kind in ("weight", "bias")
    }
    assert not has_computed_weights(module.graph)


def test_weights_that_inputs_are_needed_for_stay_computed() -> None:
    layer = nn.Linear(120, 4)
    forms: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: nn.functional.linear(x.flatten(2), layer.weight * x.mean()),
        lambda x: nn.functional.linear(x.flatten(2), layer.weight, layer.bias),
    ]
    for form in forms:
        assert rewritten(Function(form, None), lambda module: len(computed_weights_to_parameters(module)))[0] == 0


RESIZING: dict[str, dict[str, Any]] = {
    "twice": {"scale_factor": 2, "mode": "bicubic"},
    "to a size": {"size": (9, 31), "mode": "bicubic"},
    "corners": {"size": (11, 20), "mode": "bicubic", "align_corners": True},
    "by factors that no size gives": {"scale_factor": (1.3, 0.7), "mode": "bicubic"},
    "smaller, antialiased": {"size": (7, 5), "mode": "bicubic", "antialias": True},
    "bilinear, antialiased": {"scale_factor": 0.4, "mode": "bilinear", "antialias": True},
}


@pytest.mark.parametrize("how", RESIZING.values(), ids=RESIZING)
def test_resizing_is_a_product_along_each_axis(how: dict[str, Any]) -> None:
    network = Function(lambda x: F.interpolate(x, **how).square(), nn.Conv2d(4, 6, 3))
    count, module = rewritten(network, resizing_to_products)
    assert count == 1
    assert sum(node.target is aten.linear.default for node in module.graph.nodes) == 2


def test_resizing_that_every_format_has_is_left_alone() -> None:
    count, module = rewritten(
        Function(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")), resizing_to_products
    )
    assert count == 0
    assert any(node.target is aten.upsample_bilinear2d.vec for node in module.graph.nodes)
