"""What data tells about the importance of channels; scores by class, the lowest goes first."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.fx import Node

from edgekit.compress.prune.flow import Flow, Labels
from edgekit.compress.prune.importance import Batches
from edgekit.compress.prune.moments import is_dense, moments
from edgekit.program import attribute
from edgekit.walk import Walk


def taylor(flow: Flow, batches: Batches) -> dict[int, float]:
    """The mean over batches of (sum of g w over all parameters of a class)²: what the loss changes by, to first order.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equations 8 and 9.
    """
    parameters = {name for name, _ in flow.module.named_parameters()}
    scores: dict[int, float] = defaultdict(float)
    for x, y in batches:
        flow.module.zero_grad()
        F.cross_entropy(flow.module(x), y).backward()  # type: ignore[no-untyped-call]
        totals: dict[int, float] = defaultdict(float)
        for slot in flow.slots:
            value = attribute(flow.module, slot.parameter)
            if slot.parameter not in parameters or value.grad is None:
                continue
            product = slot.slices((value.detach() * value.grad).double()).sum(1)
            for root, part in zip(flow.roots(slot.ids).tolist(), product.tolist(), strict=True):
                if not flow.is_frozen(root):
                    totals[root] += part
        for root, total in totals.items():
            scores[root] += total**2
    flow.module.zero_grad()
    return dict(scores)


def fisher(flow: Flow, batches: Batches) -> dict[int, float]:
    """Half the mean square, over images, of the loss' slope along a mask on the channel: what its removal costs.

    At a minimum the slopes average to nothing and the second order is what counts; its Hessian is the Fisher information
    (Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, equation 10). A class' mask acts
    where its channels are read: x · dL/dx summed over space and readers, for each image by itself.
    """
    readers = {slot.node: flow.labels(slot.node.args[0]) for slot in flow.slots if slot.role == "in"}
    known = {node: labels for node, labels in readers.items() if isinstance(labels, Labels)}
    if not known:
        return {}
    scores: dict[int, float] = defaultdict(float)
    seen = 0
    for x, y in batches:
        values: dict[Node, torch.Tensor] = {}
        outputs = _Reader(flow.module, set(known), values).run(x)
        grads = torch.autograd.grad(F.cross_entropy(outputs, y, reduction="sum"), [values[node] for node in known])
        slopes: dict[int, torch.Tensor] = {}
        for (node, labels), grad in zip(known.items(), grads, strict=True):
            product = (values[node].detach() * grad).double().movedim(labels.dim, -1)
            product = product.reshape(len(x), -1, len(labels.ids)).sum(1)
            for column, root in enumerate(flow.roots(labels.ids).tolist()):
                if not flow.is_frozen(root):
                    slopes[root] = slopes.get(root, 0.0) + product[:, column]
        for root, slope in slopes.items():
            scores[root] += 0.5 * float((slope**2).sum())
        seen += len(x)
    return {root: score / max(seen, 1) for root, score in scores.items()}


class _Reader(torch.fx.Interpreter):
    """Runs a graph and keeps what some nodes read: a copy for each, so that gradients go through that node alone."""

    def __init__(self, module: torch.fx.GraphModule, nodes: set[Node], values: dict[Node, torch.Tensor]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._nodes, self._values = nodes, values

    def run_node(self, n: Node) -> Any:
        if n not in self._nodes:
            return super().run_node(n)
        source: Any = n.args[0]
        shared = self.env[source]
        self.env[source] = self._values[n] = shared.clone()
        result = super().run_node(n)
        self.env[source] = shared
        return result


def lasso(flow: Flow, batches: Batches) -> dict[int, float]:
    """How early a channel comes into the regression of what its readers give on what each channel brings to it.

    For each layer that reads channels, min over b of |Y - sum b_i X_i W_i|² + l |b|_1 (He et al., "Channel Pruning for
    Accelerating Very Deep Neural Networks", ICCV 2017, equation 2), along the whole path of l: a channel scores the
    largest l at which its b is not zero, as a share of the largest of all, summed over the layers that read it.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    slots = {slot.node: slot for slot in flow.slots if slot.role == "in" and is_dense(slot.node)}
    parts = [x for x, _ in batches]
    walk = Walk(flow.module, parts, [node.name for node in slots])
    named = {node.name: node for node in slots}
    scores: dict[int, float] = defaultdict(float)
    with torch.no_grad():
        for name, values in walk.steps():
            node, slot = named[name], slots[named[name]]
            inputs = walk.now(node.args[0])  # type: ignore[arg-type]
            assert inputs is not None
            weight = attribute(flow.module, slot.parameter).detach().flatten(1).double()
            # <X_i W_i, X_j W_j> over all patches: the kernel's positions summed up by channel.
            products = ((weight.T @ weight) * moments(node, inputs, values).xx).numpy()
            roots, place = np.unique(flow.roots(slot.ids), return_inverse=True)
            place = np.repeat(place, weight.shape[1] // len(slot.ids))
            gram = np.zeros((len(roots), len(roots)))
            np.add.at(gram, (place[:, None], place[None]), products)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # channels that bring the same; either will do
                limits, _, path = lars_path_gram(gram.sum(1), gram, n_samples=1, method="lasso")
            for root, bs in zip(roots.tolist(), path, strict=True):
                if flow.is_frozen(root):
                    continue
                active = np.flatnonzero(bs)
                scores[root] += float(limits[max(active[0] - 1, 0)] / limits[0]) if len(active) else 0.0
    return dict(scores)
