"""The sensitivity table against networks quantized by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.compress.quantize.scheme import quantize_weight, weight_scales
from edgekit.compress.quantize.session import Session
from edgekit.compress.quantize.static import Quantize
from edgekit.compress.quantize.table import sensitivity_table
from edgekit.compress.step import Context
from edgekit.data.dataset import Dataset
from edgekit.evaluation import sqnr
from edgekit.program import attribute, duplicate, quantized


def test_alone_quantizes_one_weight_and_what_is_around_it(before: Bundle, data: Dataset) -> None:
    session = Session(before, Quantize(images=64), Context(data=data))
    choice = session.first_choice()
    for layer in session.layers:
        module = session.alone(choice, layer)
        targets = [node.target for node in module.graph.nodes]
        assert targets.count(quantized.dequantize_per_channel.default) == 1
        assert targets.count(quantized.quantize_per_tensor.default) in (1, 2)


def test_weights_alone_are_what_rounding_them_by_hand_gives(before: Bundle, data: Dataset) -> None:
    session = Session(before, Quantize(images=64), Context(data=data))
    plan, _ = session._planned(())
    node = plan.compute[2]
    by_hand = duplicate(session.floats)
    weight = attribute(by_hand, str(node.args[1].target))
    scales = weight_scales(weight, 3)
    weight.data = quantize_weight(weight, scales, 3) * scales.view(-1, 1, 1, 1)
    x = torch.from_numpy(session.few)
    with torch.no_grad():
        got = session._alone(plan, {}, node, 3, weights_only=True)(x)
        torch.testing.assert_close(got, by_hand(x), rtol=1e-5, atol=1e-5)


def test_the_table(before: Bundle, data: Dataset) -> None:
    rows = sensitivity_table(before, data, Quantize(weight_bits=3, images=64), images=100)
    session = Session(before, Quantize(weight_bits=3, images=64), Context(data=data))
    assert {row["layer"] for row in rows} == set(session.layers)
    assert [row["alone_sqnr_db"] for row in rows] == sorted(row["alone_sqnr_db"] for row in rows)
    x = torch.from_numpy(session.few)
    with torch.no_grad():
        reference = session.floats(x).numpy()
        first = session.alone(session.first_choice(), rows[0]["layer"])(x).numpy()
    assert rows[0]["alone_sqnr_db"] == pytest.approx(sqnr(reference, first))
    assert all(np.isfinite(list(row.values())[1:]).all() for row in rows)
    # All layers together lose more than the worst alone.
    module, _ = session.quantized(session.first_choice())
    with torch.no_grad():
        assert sqnr(reference, module(x).numpy()) < rows[0]["alone_sqnr_db"]
