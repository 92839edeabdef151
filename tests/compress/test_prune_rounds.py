"""Cutting in small steps of one cut: each step on the graph that the one before left, traced anew by none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import edgekit
from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.prune.channels import PruneChannels, choose, prune
from edgekit.compress.prune.flow import analyse
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.surgery import cut
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.errors import StepError, UsageError
from edgekit.program import attribute, export_program, refresh_values, set_attribute, shape_of, trainable
from edgekit.testing import networks


def _sizes(module: GraphModule) -> list[Any]:
    values = [node for node in module.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    return [(node.target, shape_of(node), node.meta["val"].dtype) for node in values if node.op == "call_function"]


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_values_after_a_cut_are_those_of_tracing_anew(name: str) -> None:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    prune(module, PruneChannels(macs=0.6, multiple=1, epochs=0))
    assert refresh_values(module)
    traced = trainable(export_program(module, networks.INPUT_SHAPE))
    assert _sizes(module) == _sizes(traced)
    now, anew = cost_of(module), cost_of(traced)
    assert (now.macs, now.parameters, now.bytes, now.memory_access) == (
        anew.macs, anew.parameters, anew.bytes, anew.memory_access
    )  # fmt: skip


class _Merged(nn.Module):
    """Batch and channels in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.conv(x).reshape(-1, 10, 10)
        return self.head(rows.mean(1)).reshape(x.shape[0], -1)


def test_a_size_of_batch_and_channels_at_once_is_told() -> None:
    module = trainable(export_program(_Merged(), (3, 12, 12)))
    assert refresh_values(module)
    for name in ("conv.weight", "conv.bias"):
        set_attribute(module, name, nn.Parameter(attribute(module, name).detach()[:6].clone()))
    assert not refresh_values(module)


@pytest.mark.parametrize("name", ["residual", "concat", "attention"])
def test_rounds_are_cuts_one_after_the_other(name: str) -> None:
    """Against cutting, tracing anew and cutting again."""
    program = export_program(networks.make(name), networks.INPUT_SHAPE)
    settings = PruneChannels(macs=0.4, multiple=1, importance="energy", rounds=4, between=0)
    module, single = trainable(program), trainable(program)
    prune(module, settings)
    whole = cost_of(single).macs
    for number in range(1, 5):
        goal = min(0.4 ** (number / 4) * whole / cost_of(single).macs, 1.0)
        flow, removed = choose(single, settings, goal=goal)
        cut(flow, removed)
        single = trainable(export_program(single, networks.INPUT_SHAPE))
    assert cost_of(single).macs <= 0.4 * whole
    x = networks.images(2)
    with torch.no_grad():
        assert torch.equal(module(x), single(x))
    # Small steps choose otherwise than one, or this test could not fail.
    once = trainable(program)
    prune(once, PruneChannels(macs=0.4, multiple=1, importance="energy"))
    assert any(not torch.equal(a, b) for a, b in zip(once.parameters(), module.parameters(), strict=True))


def test_weights_are_refitted_once_to_the_network_before_the_first_round() -> None:
    """Against one cut of the same channels, refitted."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5)
    ).eval()  # fmt: skip
    program = export_program(network, (10,))
    x = np.random.default_rng(0).standard_normal((300, 10)).astype(np.float32)
    settings = PruneChannels(parameters=0.4, multiple=1, importance="energy", rounds=4, between=0)
    plain, fitted = trainable(program), trainable(program)
    prune(plain, settings)
    _, refits = prune(fitted, settings, images=x)

    at_once = trainable(program)
    flow = analyse(at_once, RULES)
    left = {tuple(row) for row in attribute(plain, "0.weight").tolist()}
    first = [tuple(row) in left for row in attribute(at_once, "0.weight").tolist()]
    left_then = {tuple(row) for row in attribute(plain, "2.weight").tolist()}
    second = [tuple(row) in left_then for row in attribute(at_once, "2.weight")[:, first].tolist()]
    stays = {f"{place}.weight": kept for place, kept in ((0, first), (2, second))}
    scores = {
        root: float(kept)
        for slot in flow.slots
        if slot.role == "out" and slot.parameter in stays
        for root, kept in zip(flow.roots(slot.ids).tolist(), stays[slot.parameter], strict=True)
    }
    share = sum(p.numel() for n, p in plain.named_parameters() if n.endswith("weight")) / sum(
        p.numel() for n, p in at_once.named_parameters() if n.endswith("weight")
    )
    once = PruneChannels(parameters=share + 1e-9, multiple=1)
    _, wanted = prune(at_once, once, scores=scores, images=x)

    assert 0 < sum(first) < 16
    assert 0 < sum(second) < 12
    assert [refit.layer for refit in refits] == [refit.layer for refit in wanted]
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        torch.testing.assert_close(fitted(inputs), at_once(inputs), rtol=1e-4, atol=1e-5)
        original = network(inputs)
        errors = [float(((module(inputs) - original) ** 2).mean()) for module in (plain, fitted)]
    assert errors[1] < 0.8 * errors[0]


def test_the_step_and_the_function_cut_alike(before: Bundle, data: Dataset) -> None:
    settings = {"macs": 0.4, "importance": "energy", "multiple": 1, "reconstruct": 0, "rounds": 8}
    step = "prune-channels:" + ",".join(f"{key}={value}" for key, value in settings.items())
    small = compress(before, f"{step},between=0,epochs=0", data)
    assert cost_of(small.module()).macs <= 0.4 * cost_of(before.module()).macs
    assert small.fingerprint != compress(before, f"{step.replace('rounds=8', 'rounds=1')},epochs=0").fingerprint
    x = torch.rand(2, *before.input_shape, generator=torch.Generator().manual_seed(0))
    network = edgekit.prune(before.module(), x, **settings)
    with torch.no_grad():
        assert torch.equal(network(x), small.module()(x))
    with pytest.raises(UsageError, match="between can't be set"):
        edgekit.prune(before.module(), x, macs=0.5, rounds=2, between=1)


def test_rounds_that_ask_data_look_at_what_is_left(before: Bundle, data: Dataset) -> None:
    step = "prune-channels:macs=0.4,importance=fisher,images=64,multiple=1,reconstruct=64,between=0,epochs=0"
    once, often = (compress(before, f"{step},rounds={rounds}", data) for rounds in (1, 3))
    assert cost_of(often.module()).macs <= 0.4 * cost_of(before.module()).macs
    assert once.fingerprint != often.fingerprint
    report = often.steps[-1]["report"]
    assert all(row["after"] <= row["before"] + 1e-6 for row in report["refitted"])


def test_a_network_that_can_not_be_followed_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.compress.prune.channels.refresh_values", lambda module: False)
    module = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
    with pytest.raises(StepError, match="rounds=1"):
        prune(module, PruneChannels(macs=0.5, multiple=1, rounds=3, between=0))
