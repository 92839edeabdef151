"""How much a channel matters, judged by the weights that make it and the weights that read it.

A class of coupled channels is scored by group: in every weight that holds a part of it, the norm of that part is
divided by the mean norm of its neighbours there, and the class gets the norm over its parts, the sum for L1 and the root
of the sum of squares for L2 (Fang et al., "DepGraph", CVPR 2023, section 3.3, sums over the group likewise). So a channel
of a residual stream, which many layers read, goes later than one that only two layers share; a mean over the parts would
treat them alike, though cutting the first disturbs every layer that reads it. Batch norm is folded into the weights
first, because a filter's own scale says nothing in front of a normalization.

What data tells about a channel (Taylor, Fisher, LASSO) is in :mod:`edgekit.compress.prune.evidence`, what it does for
telling classes apart in :mod:`edgekit.compress.prune.discrimination`.

``energy`` is the mean of the squared norms over the parts of a class, relative to the mean of the classes that the same layer
makes; batch norm isn't folded in, its scale is a part of its own (the form of Fang et al.'s own implementation, whose choice
for ResNet-56 it comes to). In many rounds, each relative to what the one before left, it spares the layers where every channel
counts.

The geometric median scores the weights that make a channel alike, by their distance to the other filters of the layer. The
scale of batch norm has units of its own, which all layers share.

Sources: L1: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1. L2: He et al., "Soft Filter
Pruning", IJCAI 2018, section 3.2. Batch norm: Liu et al., "Network Slimming", ICCV 2017, section 3. Geometric median: He et
al., "FPGM", CVPR 2019, equation 6.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.compress.prune.flow import Barrier, Flow, Slot
from edgekit.compress.prune.recurrent import GATES
from edgekit.errors import StepError, UsageError
from edgekit.program import aten, attribute, layer_name

Norm = Literal["l1", "l2"]
Importance = Literal[
    "l1", "l2", "energy", "geometric-median", "batch-norm", "taylor", "fisher", "lasso", "discrimination", "random"
]
FROM_DATA = ("taylor", "fisher", "lasso", "discrimination")
"""The criteria that look at images."""
ABREAST = ("lasso", "discrimination")
"""Those that go through the layers once, with all images in memory."""
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def class_scores(
    flow: Flow, importance: Importance, *, batches: Batches | None = None, seed: int = 0
) -> dict[int, float]:
    """The score of every class of channels that may be cut; the lowest goes first.

    Not every criterion has a score for every class. What has none stays, and the analysis gets a barrier that says so.

    Args:
        flow: The analysed graph.
        importance: The criterion.
        batches: Inputs and labels, for the criteria ``FROM_DATA``.
        seed: Of ``random``.

    Returns:
        Score by class representative.

    Raises:
        StepError: If a class has nothing that the criterion could score.
    """
    scores = _scores(flow, importance, batches, seed)
    _tell_unscored(flow, importance, scores)
    return scores


def _tell_unscored(flow: Flow, importance: Importance, scores: dict[int, float]) -> None:
    known = {barrier.node for barrier in flow.barriers}
    for slot in flow.slots:
        if slot.role != "out" or slot.node.name in known:
            continue
        free = [root for root in flow.roots(slot.ids).tolist() if not flow.is_frozen(root)]
        if free and not scores.keys() & set(free):
            remedy = f"importance={importance} has no score for what this layer makes: take l2 or taylor"
            flow.barriers.append(Barrier(slot.node.name, layer_name(slot.node), str(slot.node.target), remedy))
            known.add(slot.node.name)


def _scores(flow: Flow, importance: Importance, batches: Batches | None, seed: int) -> dict[int, float]:
    if importance in FROM_DATA:
        from edgekit.compress.prune import evidence
        from edgekit.compress.prune.discrimination import discrimination

        if batches is None:
            raise UsageError(f"{importance} needs data, and none was given", "Give --data, or another importance.")
        criteria = {
            "taylor": evidence.taylor, "fisher": evidence.fisher, "lasso": evidence.lasso,
            "discrimination": discrimination,
        }  # fmt: skip
        return criteria[importance](flow, batches)
    if importance == "batch-norm":
        return _batch_norm_scales(flow)
    if importance == "geometric-median":
        return _distances(flow)
    if importance == "energy":
        return _energies(flow)
    if importance == "random":
        roots = sorted(_by_norm(flow, "l2"))
        return dict(zip(roots, np.random.default_rng(seed).random(len(roots)).tolist(), strict=True))
    return _by_norm(flow, "l1" if importance == "l1" else "l2")


def _by_norm(flow: Flow, norm: Norm) -> dict[int, float]:
    """An average channel gives 1 for each weight it is part of (before the norm over them)."""
    order = 1 if norm == "l1" else 2
    parts: dict[int, list[float]] = defaultdict(list)
    for slot in flow.slots:
        if slot.role == "vector":
            continue
        rows = _rows(flow.module, slot)
        roots = flow.roots(slot.ids[: len(rows)])
        norms = slice_norms(rows, 0, norm)
        # Over all groups of a grouped convolution together: a channel of one of them is a part of a weight's slice.
        whole = np.linalg.norm(norms.reshape(slot.groups, -1), order, axis=0)
        relative = norms / max(float(whole.mean()), 1e-30)
        for root, value in zip(roots.tolist(), relative.tolist(), strict=True):
            if not flow.is_frozen(root):
                parts[root].append(value)
    return {root: float(np.linalg.norm(values, order)) for root, values in parts.items()}


def _energies(flow: Flow) -> dict[int, float]:
    """An average class of a layer gives 1."""
    parts: dict[int, list[float]] = defaultdict(list)
    makers: dict[int, str] = {}
    for slot in flow.slots:
        if slot.role == "vector" and not _is_scale(slot):
            continue
        rows = _rows(flow.module, slot, folded=False)
        energies = slice_norms(rows, 0, "l2") ** 2
        for root, value in zip(flow.roots(slot.ids[: len(rows)]).tolist(), energies.tolist(), strict=True):
            if flow.is_frozen(root):
                continue
            parts[root].append(value)
            if slot.role == "out":
                makers.setdefault(root, slot.parameter)
    means = {root: float(np.mean(values)) for root, values in parts.items()}
    alike: dict[str | None, list[float]] = defaultdict(list)
    for root, value in means.items():
        alike[makers.get(root)].append(value)
    return {root: value / max(float(np.mean(alike[makers.get(root)])), 1e-30) for root, value in means.items()}


def _distances(flow: Flow) -> dict[int, float]:
    """Sum of distances to the other filters of the layer, relative to the layer's mean, over the weights that make a class."""
    scores: dict[int, float] = defaultdict(float)
    for slot in flow.slots:
        if slot.role != "out":
            continue
        rows = torch.from_numpy(_rows(flow.module, slot))
        distances = torch.cdist(rows, rows).sum(1).numpy()
        relative = distances / max(float(distances.mean()), 1e-30)
        for root, value in zip(flow.roots(slot.ids[: len(rows)]).tolist(), relative.tolist(), strict=True):
            if not flow.is_frozen(root):
                scores[root] += value
    return dict(scores)


def _batch_norm_scales(flow: Flow) -> dict[int, float]:
    """The mean magnitude of the scales that batch norm gives the channels of a class."""
    parts: dict[int, list[float]] = defaultdict(list)
    for slot in flow.slots:
        if not _is_scale(slot):
            continue
        scales = attribute(flow.module, slot.parameter).detach().abs().double().tolist()
        for root, value in zip(flow.roots(slot.ids).tolist(), scales, strict=True):
            if not flow.is_frozen(root):
                parts[root].append(value)
    for slot in flow.slots:
        bare = [r for r in flow.roots(slot.ids).tolist() if r not in parts and not flow.is_frozen(r)]
        if slot.role == "out" and bare:
            raise StepError(
                f"{layer_name(slot.node)} has no batch norm behind it that could rank its channels",
                "Take importance=l2.",
            )
    return {root: float(np.mean(values)) for root, values in parts.items()}


def _is_scale(slot: Slot) -> bool:
    """Whether it is the scale of a batch norm."""
    norm = slot.node.target is aten.batch_norm.default
    return norm and slot.parameter == str(getattr(slot.node.args[1], "target", ""))


def slice_norms(weight: np.ndarray, dim: int, norm: Norm) -> np.ndarray:
    """The norm of each slice of a weight along ``dim``; float64, shape (size of that dimension,)."""
    rows = np.moveaxis(weight.astype(np.float64), dim, 0).reshape(weight.shape[dim], -1)
    return np.abs(rows).sum(1) if norm == "l1" else np.sqrt((rows**2).sum(1))


def _rows(module: GraphModule, slot: Slot, *, folded: bool = True) -> np.ndarray:
    """What a weight holds of each channel, (channels, …); a cell's rows in all gates are one part, not four or three."""
    if slot.node.target in GATES or not folded:
        weight = attribute(module, slot.parameter).detach().to(torch.float64).numpy()
    else:
        weight = _folded_weight(module, slot.node)
    rows: np.ndarray = slot.slices(torch.from_numpy(weight)).numpy()
    if slot.node.target not in GATES or slot.role == "in":
        return rows
    cells = len(np.unique(slot.ids))
    return rows.reshape(-1, cells, rows.shape[1]).swapaxes(0, 1).reshape(cells, -1)


def _folded_weight(module: GraphModule, node: Node) -> np.ndarray:
    """The weight of a convolution with the batch norm behind it folded in, as it will be deployed."""
    weight = attribute(module, str(node.args[1].target)).detach().to(torch.float64)  # type: ignore[union-attr]
    users = list(node.users)
    if (
        len(users) == 1
        and users[0].target is aten.batch_norm.default
        and node.target is not aten.conv_transpose2d.input
    ):
        _, gamma, _, _, variance, _, _, epsilon, *_ = users[0].args
        if isinstance(variance, Node):
            scale = 1 / torch.sqrt(attribute(module, str(variance.target)).to(torch.float64) + float(epsilon))  # type: ignore[arg-type]
            if isinstance(gamma, Node):
                scale = scale * attribute(module, str(gamma.target)).detach().to(torch.float64)
            weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    return weight.numpy()
