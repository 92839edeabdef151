"""``edgekit.prune`` as a user's own script would use it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import edgekit
from edgekit.errors import UsageError
from edgekit.testing import networks


def test_three_lines_in_a_training_script(tmp_path: Path) -> None:
    network, x = networks.make("residual").train(), networks.images(64)
    labels = torch.arange(64) % networks.CLASSES
    small = edgekit.prune(network, x, macs=0.5, multiple=1)
    assert network.training, "the network given was changed"
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05)
    means = small.bn1.running_mean.clone()
    losses = []
    small.train()
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(small(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert not torch.equal(means, small.bn1.running_mean), "batch norm did not see the training"
    small.eval()
    with torch.no_grad():
        torch.testing.assert_close(small(x)[:3], small(x[:3]))
    # It saves, loads and is pruned again.
    bundle = edgekit.load(small, input_shape=networks.INPUT_SHAPE).save(tmp_path / "small")
    with torch.no_grad():
        torch.testing.assert_close(edgekit.Bundle.load(bundle.path).module()(x), small(x))
    again = edgekit.prune(small, x, macs=0.6, multiple=1)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (network, small, again)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert {name for name, _ in small.named_parameters()} == {name for name, _ in network.named_parameters()}


def test_real_inputs_refit_the_weights() -> None:
    network, x = networks.make("plain"), networks.images(128)
    with torch.no_grad():
        wanted = network(x)
        errors = [
            float((edgekit.prune(network, x, macs=0.5, multiple=1, reconstruct=count)(x) - wanted).pow(2).mean())
            for count in (0, 128)
        ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"macs": 0.5, "epochs": 3}, "does not train"),
        ({"macs": 0.5, "importance": "fisher"}, "needs labels"),
        ({}, "goal"),
    ],
)
def test_what_can_not_be_done_is_said(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        edgekit.prune(networks.make("plain"), networks.images(2), **settings)
