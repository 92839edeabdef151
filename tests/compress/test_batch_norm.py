"""Batch norm after refitting: evaluation stays as it was, and training begins with the same function."""

from __future__ import annotations

import pytest
import torch

from edgekit.compress.prune.batch_norm import settle_batch_norm
from edgekit.program import export_program, set_training, trainable
from edgekit.testing import networks


@pytest.mark.parametrize("name", ["plain", "depthwise"])
def test_both_modes_agree_afterwards_and_evaluation_has_not_changed(name: str) -> None:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    for node in module.graph.nodes:
        if "dropout" in str(node.target):
            node.update_arg(1, 0.0)
    module.recompile()
    x = networks.images(32)
    with torch.no_grad():
        wanted = module(x)
        before = set_training(module, True)(x)
        module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
        norms = sum("batch_norm" in str(node.target) for node in module.graph.nodes)
        assert settle_batch_norm(module, x.split(10)) == norms
        torch.testing.assert_close(module(x), wanted, rtol=1e-3, atol=1e-4)
        for node in module.graph.nodes:
            if "dropout" in str(node.target):
                node.update_arg(1, 0.0)
        module.recompile()
        trained = set_training(module, True)(x)
    torch.testing.assert_close(trained, wanted, rtol=1e-3, atol=1e-3)
    assert float((before - wanted).abs().mean()) > 10 * float((trained - wanted).abs().mean())


def test_running_statistics_are_those_of_the_inputs() -> None:
    module = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
    x = networks.images(20)
    with torch.no_grad():
        inner = torch.conv2d(x, module.conv1.weight, padding=1).double().transpose(0, 1).flatten(1)
        settle_batch_norm(module, x.split(7))
    torch.testing.assert_close(module.bn1.running_mean.double(), inner.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.bn1.running_var.double(), inner.var(1, unbiased=False), rtol=1e-5, atol=1e-6)
