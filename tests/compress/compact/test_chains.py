"""Convolutions as chains of cheaper ones: exact where they can be, and otherwise as good as NumPy's singular values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.compact.chain import Chain, Geometry, geometry_of, kernel_error
from edgekit.compress.compact.replacement import KINDS, offers, replace_until
from edgekit.compress.compact.separable import separable
from edgekit.compress.compact.spatial import spatial
from edgekit.compress.compact.two_small import composed, two_small
from edgekit.compress.rewrite import finish
from edgekit.cost import cost_of
from edgekit.program import aten, attribute, export_program, trainable
from edgekit.testing import networks

SHAPE = (6, 17, 15)


def _layer(kernel: Any, out: int = 8, **settings: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(SHAPE[0], out, kernel, **settings).eval()


def _put(layer: nn.Conv2d, make: Any) -> tuple[torch.fx.GraphModule, Chain]:
    module = trainable(export_program(layer, SHAPE))
    (node,) = (n for n in module.graph.nodes if n.target is aten.conv2d.default)
    chain = make(attribute(module, "weight").detach().double(), geometry_of(node))
    chain.put(module, node)
    finish(module)
    return module, chain


def _images() -> torch.Tensor:
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        (3, {"padding": 1}),
        (3, {"padding": 2, "dilation": 2, "stride": 2, "bias": False}),
        ((5, 3), {"padding": (2, 1), "stride": (2, 1)}),
    ],
)
def test_separable_of_full_rank_is_the_convolution(kernel: Any, settings: dict[str, Any]) -> None:
    layer = _layer(kernel, **settings)
    module, chain = _put(layer, lambda k, g: separable(k, g, multiplier=99))
    assert chain.error < 1e-12
    with torch.no_grad():
        torch.testing.assert_close(module(_images()), layer(_images()), rtol=1e-4, atol=1e-5)
    again = trainable(export_program(module, SHAPE))
    assert cost_of(again).macs == chain.macs(SHAPE[1:])
    assert {"weight", "weight_depthwise.weight"} <= set(again.state_dict())


@pytest.mark.parametrize("multiplier", [1, 2])
def test_separable_misses_what_the_singular_values_of_each_channel_say(multiplier: int) -> None:
    kernel = _layer(3).weight.detach().double()
    chain = separable(kernel, Geometry(), multiplier=multiplier)
    assert chain is not None
    missed = 0.0
    for channel in range(SHAPE[0]):
        values = np.linalg.svd(kernel[:, channel].reshape(8, 9).numpy(), compute_uv=False)
        missed += float((values[multiplier:] ** 2).sum())
    assert chain.error == pytest.approx(missed / float((kernel**2).sum()), rel=1e-9)
    depthwise, pointwise = (link.weight.numpy() for link in chain.links)
    near = np.zeros(kernel.shape)
    for index in range(SHAPE[0] * multiplier):
        near[:, index // multiplier] += pointwise[:, index, 0, 0, None, None] * depthwise[index, 0]
    assert float(((near - kernel.numpy()) ** 2).sum()) == pytest.approx(missed, rel=1e-9)


@pytest.mark.parametrize(
    "settings", [{"padding": 3}, {"padding": (3, 2), "stride": (2, 1)}, {"padding": 1, "stride": (1, 2), "bias": False}]
)
def test_columns_and_rows_of_full_rank_are_the_convolution(settings: dict[str, Any]) -> None:
    layer = _layer(7, **settings)
    module, chain = _put(layer, lambda k, g: spatial(k, g, rank=99))
    assert chain.error < 1e-12
    with torch.no_grad():
        torch.testing.assert_close(module(_images()), layer(_images()), rtol=1e-4, atol=1e-5)
    assert cost_of(trainable(export_program(module, SHAPE))).macs == chain.macs(SHAPE[1:])


def test_columns_and_rows_miss_what_numpy_says_and_halve_the_work() -> None:
    kernel = _layer(5, padding=2).weight.detach().double()
    chain = spatial(kernel, Geometry(padding=(2, 2)))
    assert chain is not None
    rank = chain.links[0].weight.shape[0]
    whole = SHAPE[1] * SHAPE[2] * kernel.numel()
    assert rank == 0.5 * kernel.numel() // (6 * 5 + 8 * 5)
    assert 0.4 * whole < chain.macs(SHAPE[1:]) <= 0.5 * whole
    columns, rows = (link.weight.numpy() for link in chain.links)
    near = np.einsum("rioy,prox->pioyx", columns[:, :, None, :, 0], rows[:, :, :, :].transpose(0, 1, 2, 3))[:, :, 0]
    values = np.linalg.svd(kernel.numpy().transpose(1, 2, 0, 3).reshape(30, 40), compute_uv=False)
    assert float(((near - kernel.numpy()) ** 2).sum()) == pytest.approx(float((values[rank:] ** 2).sum()), rel=1e-9)


def test_kernels_compose_as_the_convolutions_do() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(4, 6, 3, 3, generator=generator, dtype=torch.float64)
    second = torch.randn(8, 4, 3, 3, generator=generator, dtype=torch.float64)
    x = _images().double()
    in_a_row = torch.conv2d(torch.conv2d(x, first), second)
    torch.testing.assert_close(torch.conv2d(x, composed(first, second)), in_a_row)


def test_two_small_kernels_are_found_again_in_the_one_that_they_compose() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(6, 6, 3, 3, generator=generator, dtype=torch.float64)
    second = torch.randn(8, 6, 3, 3, generator=generator, dtype=torch.float64)
    layer = _layer(5, padding=2, stride=2)
    with torch.no_grad():
        layer.weight.copy_(0.1 * composed(first, second))
    module, chain = _put(layer, two_small)
    assert chain.error < 0.02
    with torch.no_grad():
        got, wanted = (network(_images())[:, :, 1:-1, 1:-1] for network in (module, layer))
    # The same function away from the border, but for what the fit misses.
    assert float(((got - wanted) ** 2).sum() / (wanted**2).sum()) < 0.04
    assert cost_of(trainable(export_program(module, SHAPE))).macs == chain.macs(SHAPE[1:])


def test_two_small_kernels_come_nearer_than_the_middle_of_the_large_one() -> None:
    kernel = _layer(5).weight.detach().double()
    chain = two_small(kernel, Geometry(padding=(2, 2)))
    assert chain is not None
    middle = torch.zeros_like(kernel)
    middle[:, :, 1:4, 1:4] = kernel[:, :, 1:4, 1:4]
    assert chain.error < 0.6 * kernel_error(kernel, middle)
    assert chain.error == pytest.approx(
        kernel_error(kernel, composed(chain.links[0].weight, chain.links[1].weight)), rel=1e-9
    )


@pytest.mark.parametrize(
    ("technique", "kernel", "geometry"),
    [
        (separable, (8, 6, 1, 1), Geometry()),
        (separable, (8, 3, 3, 3), Geometry(groups=2)),
        (spatial, (8, 6, 3, 3), Geometry()),
        (two_small, (8, 6, 5, 5), Geometry(padding=(0, 0))),
        (two_small, (8, 6, 3, 3), Geometry(padding=(2, 2))),
    ],
)
def test_what_does_not_fit_gets_no_chain(technique: Any, kernel: tuple[int, ...], geometry: Geometry) -> None:
    assert technique(torch.ones(kernel, dtype=torch.float64), geometry) is None


def test_offers_name_what_is_left_alone_and_why() -> None:
    module = trainable(export_program(networks.make("depthwise"), networks.INPUT_SHAPE))
    found, alone = offers(module, tuple(KINDS))
    assert [(offer.layer, offer.chain.kind) for offer in found] == [("stem", "separable")]
    assert alone == {
        "expand": "its kernel is 1×1 already",
        "depthwise": "it is grouped already",
        "project": "its kernel is 1×1 already",
        "head": "linear is no two-dimensional convolution",
    }


def test_replacing_stops_at_the_cost_that_was_asked_for() -> None:
    module = trainable(export_program(networks.make("residual"), networks.INPUT_SHAPE))
    whole = cost_of(module).macs
    found, _ = offers(module, ("separable",))
    assert len(found) == 3
    done = replace_until(module, found, "macs", 0.6 * whole)
    assert 0 < len(done) < 3
    now = cost_of(trainable(export_program(module, networks.INPUT_SHAPE))).macs
    assert now <= 0.6 * whole
    assert now == whole - sum(o.saved["macs"] for o in found if o.layer in {row.layer for row in done})
