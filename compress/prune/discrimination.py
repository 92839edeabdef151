"""Discrimination-aware importance: what a channel brings to telling the classes apart, and to what its readers give.

Zhuang et al., "Discrimination-aware Channel Pruning for Deep Neural Networks", NeurIPS 2018. For each layer the loss is

    L(W) = L_M(W) + L_S(W)                                                                       (equation 5, lambda = 1)

with L_M half the share of its output's variance that it misses (equation 2, divided by the variance, so that layers of all
scales weigh alike) and L_S the cross-entropy of a classifier on the pooled features at the end of its stage (equations 3 and
4; behind the last stage the network's own head). Channels enter greedily (algorithm 2): from an empty set, those whose
weights have the gradient of the largest norm are taken, the weights of the set are fitted, and the gradient is found anew. A
channel scores the norm with which it came in, as a share of the first one's, summed over the layers that read it.

Two things are simpler than in the paper, so that it needs no training: the classifiers are logistic regressions on the
features of the network as it is, which is not fine-tuned stage by stage; and the weights of the set are fitted to L_M alone,
for which least squares are exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from edgekit.compress.distill.taps import stage_ends
from edgekit.compress.prune.flow import Flow
from edgekit.compress.prune.importance import Batches
from edgekit.compress.prune.moments import Moments, is_dense, moments
from edgekit.errors import StepError
from edgekit.program import attribute, output_node, shape_of
from edgekit.walk import Walk

# Channels of a layer come in by so many turns; the gradient is found anew in each (one channel at a time in the paper).
_TURNS = 8
# So many images tell the slope of L_S: it is found anew in each turn of each layer.
_IMAGES = 128
# Weight of the classifiers' L2 penalty, and of the least squares' ridge against the mean variance of a patch's elements.
_PENALTY, _RIDGE = 1e-3, 1e-2

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From values at a place and labels to the mean cross-entropy."""


def discrimination(flow: Flow, batches: Batches) -> dict[int, float]:
    """Scores by class, the lowest goes first.

    Args:
        flow: The analysed graph.
        batches: Inputs and labels; all are in memory at once.
    """
    module = flow.module
    parts, labels = zip(*batches, strict=True)
    places = _places(module, parts, torch.cat(labels))
    slots = {slot.node.name: slot for slot in flow.slots if slot.role == "in" and is_dense(slot.node)}
    walk = Walk(module, parts, slots)
    scores: dict[int, float] = defaultdict(float)
    with torch.no_grad():
        for name, values in walk.steps():
            node, slot = slots[name].node, slots[name]
            inputs = walk.now(node.args[0])  # type: ignore[arg-type]
            assert inputs is not None
            place, loss = next((p, made) for p, made in places if _comes_after(node, p))

            def slope(
                weight: torch.Tensor,
                found: Moments,
                node: Node = node,
                inputs: list[torch.Tensor] = inputs,
                place: Node = place,
                loss: Loss = loss,
            ) -> torch.Tensor:
                return _slope(walk, node, inputs, labels, place, loss, weight, found)

            old = attribute(module, slot.parameter).detach().flatten(1).double()
            roots, group = np.unique(flow.roots(slot.ids), return_inverse=True)
            group = np.repeat(group, old.shape[1] // len(slot.ids))
            stays = np.array([flow.is_frozen(int(root)) for root in roots])
            shares = entering(old, moments(node, inputs, values), group, stays, slope)
            for root, share, fixed in zip(roots.tolist(), shares.tolist(), stays.tolist(), strict=True):
                if not fixed:
                    scores[root] += share
    return dict(scores)


def entering(
    old: torch.Tensor,
    found: Moments,
    group: np.ndarray,
    stays: np.ndarray,
    slope: Callable[[torch.Tensor, Moments], torch.Tensor],
    *,
    turns: int = _TURNS,
) -> np.ndarray:
    """How strongly each group of a weight's columns comes into the layer.

    Args:
        old: The weight, (outputs, d), float64.
        found: Moments of what the layer reads and gives.
        group: The group of each column, (d,).
        stays: Whether a group is in from the start, (groups,).
        slope: The gradient of L_S at a weight, (outputs, d).
        turns: In how many turns the groups come in.

    Returns:
        The norm of the gradient at its entry as a share of the first one's, never growing, (groups,).
    """
    shares = np.zeros(len(stays))
    inside, count = stays.copy(), int((~stays).sum())
    first, least, done = 0.0, 1.0, 0
    for turn in range(min(turns, count)):
        weight = _fitted(old, found, torch.from_numpy(inside[group]))
        gradient = (weight @ found.xx - found.xy.T) / max(found.yy, 1e-30) + slope(weight, found).double()
        squares = np.bincount(group, gradient.square().sum(0).numpy(), minlength=len(stays))
        norms = np.where(inside, -1.0, np.sqrt(squares))
        # As many in each turn, as nearly as may be.
        upto = round(count * (turn + 1) / min(turns, count))
        chosen = np.argsort(-norms, kind="stable")[: upto - done]
        first = first or max(float(norms[chosen[0]]), 1e-30)
        shares[chosen] = np.minimum(norms[chosen] / first, least)
        inside[chosen] = True
        least, done = float(shares[chosen].min()), upto
    return shares


def _fitted(old: torch.Tensor, found: Moments, inside: torch.Tensor) -> torch.Tensor:
    """The weight of least L_M that is zero outside, with a slight pull to the old one."""
    new = torch.zeros_like(old)
    if bool(inside.any()):
        ridge = _RIDGE * float(found.xx.diagonal().mean()) + 1e-12
        left = found.xx[inside][:, inside] + ridge * torch.eye(int(inside.sum()), dtype=torch.float64)
        new[:, inside] = torch.linalg.solve(left, found.xy[inside] + ridge * old.T[inside]).T
    return new


def _slope(
    walk: Walk, node: Node, inputs: list[torch.Tensor], labels: tuple[torch.Tensor, ...], place: Node, loss: Loss,
    weight: torch.Tensor, found: Moments,
) -> torch.Tensor:  # fmt: skip
    """The gradient of L_S; the layer's mean output stays that of the original, as it does once the bias is fitted."""
    source: Any = node.args[1]
    total, seen = torch.zeros_like(weight), 0
    for part, (x, y) in enumerate(zip(inputs, labels, strict=True)):
        if seen >= _IMAGES:
            break
        with torch.enable_grad():
            leaf = weight.detach().clone().requires_grad_()
            kernel = leaf.to(x.dtype).view(shape_of(source))
            bias = (found.y - leaf @ found.x).to(x.dtype)
            made = node.target(x, kernel, bias, *node.args[3:])  # type: ignore[operator]
            value = walk.onward(part, node, made, place)
            total += torch.autograd.grad(loss(value, y) * len(y), leaf)[0]
        seen += len(y)
    return total / seen


def _places(module: GraphModule, parts: tuple[torch.Tensor, ...], labels: torch.Tensor) -> list[tuple[Node, Loss]]:
    """The ends of stages with a classifier each, in order, and the network's output."""
    try:
        ends = stage_ends(module)
    except StepError:
        ends = []
    found: list[tuple[Node, Loss]] = []
    walk = Walk(module, parts, [node.name for node in ends])
    with torch.no_grad():
        for node in ends:
            features = torch.cat([pooled(value) for value in walk.value(node.name)])
            found.append((node, _classifier(features, labels)))
    return [*found, (output_node(module), F.cross_entropy)]


def pooled(value: torch.Tensor) -> torch.Tensor:
    """The mean over space of what a ReLU leaves, (n, channels)."""
    return value.relu().flatten(2).mean(2)


def _classifier(features: torch.Tensor, labels: torch.Tensor) -> Loss:
    weight, bias = fit_classifier(features, labels)
    weight, bias = weight.to(features.dtype), bias.to(features.dtype)
    return lambda value, y: F.cross_entropy(pooled(value) @ weight.T + bias, y)


def fit_classifier(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regression on features of mean 0 and variance 1, with a slight L2 penalty.

    Args:
        features: (n, channels).
        labels: (n,).

    Returns:
        Weight (classes, channels) and bias (classes,) for the features as they are, float64.
    """
    x = features.double()
    mean, deviation = x.mean(0), x.std(0, correction=0) + 1e-6 * float(x.abs().max()) + 1e-30
    x = (x - mean) / deviation
    classes = int(labels.max()) + 1
    with torch.enable_grad():
        weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=100, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

        def objective() -> torch.Tensor:
            solver.zero_grad()
            loss = F.cross_entropy(x @ weight.T + bias, labels) + _PENALTY * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        solver.step(objective)
    scaled = weight.detach() / deviation
    return scaled, bias.detach() - scaled @ mean


def _comes_after(node: Node, place: Node) -> bool:
    """Whether the place depends on the node."""
    seen, left = {node}, [node]
    while left:
        for reader in left.pop().users:
            if reader not in seen:
                seen.add(reader)
                left.append(reader)
    return place in seen
