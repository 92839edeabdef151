"""Discrimination-aware importance against NumPy in float64, and by what is left of a trained network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.bundle import Bundle
from edgekit.compress import samples
from edgekit.compress.prune.channels import PruneChannels, prune
from edgekit.compress.prune.discrimination import _places, _slope, discrimination, entering, fit_classifier, pooled
from edgekit.compress.prune.flow import analyse
from edgekit.compress.prune.moments import moments
from edgekit.compress.prune.rules import RULES
from edgekit.compress.step import Context
from edgekit.data.dataset import Dataset
from edgekit.errors import UsageError
from edgekit.evaluation import evaluate
from edgekit.program import attribute, export_program, node_values, set_attribute, trainable
from edgekit.testing import networks
from edgekit.walk import Walk

STEP = 1e-6


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]))


def test_channels_enter_by_the_slope_of_the_joint_loss() -> None:
    """One linear layer in front of the output: both losses by NumPy, slopes by differences, fits by lstsq."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    module = trainable(export_program(network, (6,))).double()
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 4
    flow = analyse(module, RULES)
    scores = discrimination(flow, [(x[:24], y[:24]), (x[24:], y[24:])])

    weights = [p.detach().double().numpy() for p in network.parameters()]
    hidden = np.maximum(x.numpy() @ weights[0].T + weights[1], 0)
    old, wanted, labels = weights[2], hidden @ weights[2].T + weights[3], y.numpy()
    centred, target = hidden - hidden.mean(0), wanted - wanted.mean(0)
    variance = np.square(target).mean(0).sum()

    def joint(weight: np.ndarray) -> float:
        outputs = centred @ weight.T
        missed = 0.5 * np.square(target - outputs).mean(0).sum() / variance
        return missed + _cross_entropy(outputs + wanted.mean(0), labels)

    inside: list[int] = []
    expected = np.zeros(5)
    for _ in range(5):
        weight = np.zeros_like(old)
        if inside:  # least squares with a pull to the old weight, as more rows of the regression
            pull = np.sqrt(1e-2 * np.square(centred).mean() * len(centred))
            rows = np.vstack([centred[:, inside], pull * np.eye(len(inside))])
            values = np.vstack([target, pull * old[:, inside].T])
            weight[:, inside] = np.linalg.lstsq(rows, values, rcond=None)[0].T
        slopes = np.zeros_like(old)
        for place in np.ndindex(*old.shape):
            moved = np.zeros_like(old)
            moved[place] = STEP
            slopes[place] = (joint(weight + moved) - joint(weight - moved)) / (2 * STEP)
        norms = np.linalg.norm(slopes, axis=0)
        norms[inside] = -1
        best = int(norms.argmax())
        expected[best] = norms[best]
        inside.append(best)
    # A later one never counts more than one before it.
    shares = np.minimum.accumulate(expected[inside] / expected[inside[0]])
    roots = flow.roots(next(s.ids for s in flow.slots if s.role == "in"))
    np.testing.assert_allclose([scores[int(roots[i])] for i in inside], shares, rtol=1e-5)
    assert shares[-1] < 0.9


def test_the_slope_at_a_stage_is_that_of_its_classifier() -> None:
    """Through a batch norm, a ReLU and a pooling to the auxiliary classifier, by differences of the whole network."""
    module = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE)).double()
    x, y = networks.images(12).double(), torch.arange(12) % networks.CLASSES
    (place, loss), *others = _places(module, (x,), y)
    assert len(others) >= 2, "a classifier behind each resolution, and the network's own head"
    conv1 = next(n for n in module.graph.nodes if n.name.startswith("conv2d"))
    weight = attribute(module, "conv1.weight").detach().flatten(1).clone()
    weight[:, :9] = 0
    walk = Walk(module, (x,), [conv1.name])
    with torch.no_grad():
        _, values = next(walk.steps())
        found = moments(conv1, [x], values)
        slope = _slope(walk, conv1, [x], (y,), place, loss, weight, found)
    classifier = fit_classifier(pooled(node_values(module, x)[place.name]), y)

    def moved(at: tuple[int, int], by: float) -> float:
        other = copy.deepcopy(module)
        new = weight.clone()
        new[at] += by
        set_attribute(other, "conv1.weight", nn.Parameter(new.view(12, 3, 3, 3)))
        # The convolution has no bias: its batch norm takes up that the mean stays.
        mean = attribute(other, "bn1.running_mean")
        set_attribute(other, "bn1.running_mean", mean - (found.y - new @ found.x))
        features = np.maximum(node_values(other, x)[place.name].numpy(), 0).mean((2, 3))
        return _cross_entropy(features @ classifier[0].numpy().T + classifier[1].numpy(), y.numpy())

    for at in ((0, 0), (3, 4), (7, 20), (11, 26)):
        assert float(slope[at]) == pytest.approx((moved(at, STEP) - moved(at, -STEP)) / (2 * STEP), rel=1e-4, abs=1e-8)


def test_the_classifier_is_a_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 10, 0.1, 3, 1]) + 2
    labels = (features[:, 0] > 2).long() + (features[:, 3] > 2).long()
    weight, bias = fit_classifier(features, labels)
    x = features.double().numpy()
    scaled = (x - x.mean(0)) / x.std(0)
    # Its objective is C times the sum of losses and half the square of the weights.
    reference = LogisticRegression(C=1 / (2 * 1e-3 * 60), tol=1e-10, max_iter=1000).fit(scaled, labels.numpy())
    logits = x @ weight.numpy().T + bias.numpy()
    np.testing.assert_allclose(
        torch.from_numpy(logits).softmax(1).numpy(), reference.predict_proba(scaled), rtol=0, atol=1e-4
    )


def test_what_must_stay_is_in_from_the_start_and_turns_share_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 20, dtype=torch.float64, generator=generator)
    program = trainable(export_program(nn.Linear(20, 3), (20,)))
    node = next(n for n in program.graph.nodes if n.op == "call_function")
    found = moments(node, [x], [x @ weight.T])
    stays = np.arange(20) < 3
    asked: list[int] = []

    def slope(now: torch.Tensor, _: object) -> torch.Tensor:
        asked.append(int((now != 0).any(0).sum()))
        return torch.zeros_like(now)

    shares = entering(weight, found, np.arange(20), stays, slope, turns=4)
    assert asked == [3, 7, 11, 16], "17 channels in four turns, behind three that stay"
    assert not shares[:3].any()
    assert shares.max() == 1
    assert (shares[3:] > 0).all()


def test_it_keeps_what_chance_and_slopes_alone_would_cut(before: Bundle, data: Dataset) -> None:
    images = samples.images("test", before, Context(data=data), 256)
    right = {}
    for importance in ("discrimination", "taylor", "random"):
        module = before.module()
        settings = PruneChannels(macs=0.2, multiple=1, importance=importance, epochs=0)
        batches = samples.batches("test", before, Context(data=data), 128)
        prune(module, settings, batches=batches, images=images)
        right[importance] = evaluate(module, data.test, before.preprocessing).top1
    assert right["discrimination"] > right["random"] + 1
    assert right["discrimination"] > right["taylor"]


def test_it_asks_for_data() -> None:
    with pytest.raises(UsageError, match="needs data"):
        prune(
            trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE)),
            PruneChannels(macs=0.5, multiple=1, importance="discrimination", epochs=0),
        )
