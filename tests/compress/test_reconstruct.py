"""Refitting after a cut, against least squares by NumPy; what it is worth on the digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.prune.channels import PruneChannels, prune
from edgekit.compress.prune.flow import analyse
from edgekit.compress.prune.importance import class_scores
from edgekit.compress.prune.moments import is_dense, moments
from edgekit.compress.prune.reconstruct import kept_positions, reconstruct
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.surgery import cut
from edgekit.data.dataset import Dataset
from edgekit.evaluation import evaluate
from edgekit.program import aten, duplicate, export_program, trainable
from edgekit.testing import networks


@pytest.mark.parametrize("kind", ["conv2d", "strided", "conv1d", "linear", "linear of sequences"])
def test_moments_explain_a_layer_by_itself(kind: str) -> None:
    """The weight that regression finds from a layer's own inputs and outputs is the layer's."""
    layers = {
        "conv2d": (torch.nn.Conv2d(3, 5, 3, padding=1, dilation=2), (3, 12, 12)),
        "strided": (torch.nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 11, 9)),
        "conv1d": (torch.nn.Conv1d(4, 6, 5, stride=2, padding=2), (4, 40)),
        "linear": (torch.nn.Linear(12, 5), (12,)),
        "linear of sequences": (torch.nn.Linear(6, 5), (7, 6)),
    }
    layer, shape = layers[kind]
    module = trainable(export_program(layer, shape))
    (node,) = (n for n in module.graph.nodes if is_dense(n))
    x = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = moments(node, list(x.split(10)), list(layer(x).split(10)))
    weight = torch.linalg.solve(found.xx, found.xy).T
    torch.testing.assert_close(weight.float().reshape(layer.weight.shape), layer.weight.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((found.y - weight @ found.x).float(), layer.bias.detach(), rtol=1e-3, atol=1e-4)
    assert found.error(weight) < 1e-6
    assert found.error(torch.zeros_like(weight)) == pytest.approx(1)


def test_a_linear_layer_is_refitted_as_numpy_would() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6)).eval()
    module = trainable(export_program(network, (10,)))
    flow = analyse(module, RULES)
    roots = flow.roots(next(s for s in flow.slots if s.role == "out").ids)
    removed = {int(root) for root in roots[[1, 4, 6]]}
    floats, kept = duplicate(module), kept_positions(flow, removed)
    cut(flow, removed)
    x = np.random.default_rng(0).standard_normal((500, 10)).astype(np.float32)
    refits = reconstruct(floats, module, kept, x)
    with torch.no_grad():
        hidden = torch.relu(network[0](torch.from_numpy(x)))[:, [0, 2, 3, 5, 7]].double().numpy()
        wanted = network(torch.from_numpy(x)).double().numpy()
        got = module(torch.from_numpy(x)).numpy()
    centred, targets = hidden - hidden.mean(0), wanted - wanted.mean(0)
    old = network[2].weight.detach().double().numpy()[:, [0, 2, 3, 5, 7]]
    ridge = 1e-2 * np.trace(centred.T @ centred) / 500 / 5
    weight = np.linalg.solve(centred.T @ centred / 500 + ridge * np.eye(5), centred.T @ targets / 500 + ridge * old.T)
    np.testing.assert_allclose(got, centred @ weight + wanted.mean(0), rtol=1e-3, atol=1e-4)
    assert refits[-1].after < refits[-1].before


@pytest.mark.parametrize("name", ["plain", "residual", "concat", "depthwise", "grouped", "in-place"])
def test_nothing_cut_nothing_changed(name: str) -> None:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    floats, x = duplicate(module), networks.images(48)
    kept = kept_positions(analyse(module, RULES), set())
    reconstruct(floats, module, kept, x.numpy())
    with torch.no_grad():
        torch.testing.assert_close(module(x), floats(x), rtol=1e-3, atol=1e-3)


def test_channels_in_the_last_dimension_are_refitted_too() -> None:
    """In a transformer the sum with the shortcut has its channels behind the positions."""
    floats = trainable(export_program(networks.make("attention"), networks.INPUT_SHAPE))
    x = networks.images(64)
    errors = []
    for images in (None, x.numpy()):
        module = duplicate(floats)
        prune(module, PruneChannels(macs=0.6, multiple=1), images=images)
        with torch.no_grad():
            errors.append(float(((module(x) - floats(x)) ** 2).mean()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("importance", ["l2", "fisher", "lasso"])
def test_refitting_gives_back_most_of_what_the_cut_took(importance: str, before: Bundle, data: Dataset) -> None:
    step = f"prune-channels:macs=0.4,multiple=1,epochs=0,importance={importance}"
    plain, refitted = (compress(before, f"{step},reconstruct={count}", data) for count in (0, 512))
    whole, cut_only, fitted = (
        evaluate(b.module(), data.validation, b.preprocessing).top1 for b in (before, plain, refitted)
    )
    assert fitted > cut_only
    assert whole - fitted < 0.5 * (whole - cut_only)
    report = refitted.steps[-1]["report"]
    assert all(row["after"] <= row["before"] + 1e-6 for row in report["refitted"])


def test_without_data_nothing_is_refitted_and_the_report_says_so(before: Bundle) -> None:
    small = compress(before, "prune-channels:macs=0.6,epochs=0")
    assert "no data" in small.steps[-1]["report"]["notes"][0]


def test_rounds_end_at_the_goal(before: Bundle, data: Dataset) -> None:
    small = compress(before, "prune-channels:macs=0.4,rounds=3,between=1,epochs=1,multiple=1,distill=0.5", data)
    report = small.steps[-1]["report"]
    shares = [len(report["rounds"]), report["macs"]["ratio"]]
    assert shares == [2, pytest.approx(0.4, abs=0.03)]
    assert all("finetune" in found for found in report["rounds"])


def test_fisher_is_half_the_mean_square_slope_along_a_mask() -> None:
    """By finite differences in float64, one image at a time, with the mask where the channel is read."""
    module = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE)).double()
    flow = analyse(module, RULES)
    x, y = networks.images(6).double(), torch.arange(6) % networks.CLASSES
    scores = class_scores(flow, "fisher", batches=[(x, y)])
    reader = next(
        n for n in module.graph.nodes if n.target is aten.conv2d.default and str(n.args[1].target) == "conv2.weight"
    )
    roots = flow.roots(flow.labels(reader.args[0]).ids)
    weight = module.conv2.weight
    for channel in (0, 5):
        slopes = []
        kept = weight.data.clone()
        for image, label in zip(x, y, strict=True):
            losses = []
            for factor in (1 + 1e-5, 1 - 1e-5):
                weight.data = kept.clone()
                weight.data[:, channel] *= factor
                with torch.no_grad():
                    losses.append(float(F.cross_entropy(module(image[None]), label[None])))
            slopes.append((losses[0] - losses[1]) / 2e-5)
        weight.data = kept
        assert scores[int(roots[channel])] == pytest.approx(0.5 * np.mean(np.square(slopes)), rel=1e-4)


def test_lasso_against_coordinate_descent() -> None:
    """A channel's score is the penalty below which scikit-learn's own solver first gives it a coefficient."""
    from sklearn.linear_model import Lasso

    torch.manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Linear(10, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4)).eval()
    module = trainable(export_program(network, (10,)))
    flow = analyse(module, RULES)
    x = torch.randn(400, 10, generator=torch.Generator().manual_seed(0))
    scores = class_scores(flow, "lasso", batches=[(x, torch.zeros(400, dtype=torch.int64))])
    roots = flow.roots(next(s for s in flow.slots if s.role == "out").ids)
    with torch.no_grad():
        hidden = torch.relu(network[0](x)).double().numpy()
    weight = network[2].weight.detach().double().numpy()
    parts = (hidden - hidden.mean(0))[:, None, :] * weight[None]  # images, outputs, channels
    features, target = parts.reshape(-1, 6), parts.sum(2).reshape(-1)
    highest = np.abs(features.T @ target).max() / len(target)
    for channel, root in enumerate(roots):
        score = scores[int(root)]
        for factor, active in ((0.97, True), (1.03, False)):
            found = Lasso(alpha=score * factor * highest, fit_intercept=False, tol=1e-10, max_iter=100_000)
            assert bool(abs(found.fit(features, target).coef_[channel]) > 1e-9) is active
