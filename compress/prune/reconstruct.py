"""Refitting what is left: after channels were cut, each layer's weights are fitted to what it gave before the cut.

With X what a layer reads in the network that has been cut, and Y what it gave in the original, its weights become
argmin_W |Y - X W|² + r |W - W0|², where W0 are the weights that are left and r is small against the variance of X (He et
al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, equation 3). Layers are fitted in the order
of the graph, each reading what the fitted layers before it give. The last layer of a residual branch is fitted to the
original's sum minus the shortcut as it is now, so that it makes up for what the shortcut has lost (there, section 3.3).
No gradient and no label is needed, and the solution is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.compress.layers import only_reader, own_bias, own_weights, shift_outputs
from edgekit.compress.prune.batch_norm import settle_batch_norm
from edgekit.compress.prune.flow import Flow, Labels
from edgekit.compress.prune.moments import is_dense, moments, rows
from edgekit.compress.prune.rectified import Rectified, refine
from edgekit.program import aten, attribute, layer_name, refresh_shapes, shape_of
from edgekit.walk import Walk

# The weight of W0 against the mean variance of a patch's elements: what the images don't determine stays as it was.
_RIDGE = 1e-2
# A batch norm whose scale is below this share of its largest can't pass a shortcut's loss back to the layer before it.
_LEAST_SCALE = 0.02
# Images at a time in each operator, and the most elements of one tensor of all images together.
_BATCH, _ELEMENTS = 32, 2**27
# Rows of the regression through a ReLU, which are held together.
_RECTIFIED_ROWS = 2**14


@dataclass(frozen=True)
class Refit:
    """One layer that was fitted.

    Attributes:
        layer: Its name.
        before: The share of its original output's variance that it missed after the cut.
        after: The same once it was fitted.
    """

    layer: str
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


Stays = Mapping[str, tuple[int, torch.Tensor]]
"""For nodes by name: the dimension of their values that holds channels, and the positions along it that stay."""


def kept_positions(flow: Flow, removed: set[int]) -> dict[str, tuple[int, torch.Tensor]]:
    """What stays of each node whose value has channels that may be cut; ask before the cut."""
    found = {}
    for node in flow.module.graph.nodes:
        labels = flow.labels(node)
        if isinstance(labels, Labels):
            stays = [root not in removed for root in flow.roots(labels.ids).tolist()]
            found[node.name] = labels.dim, torch.from_numpy(np.flatnonzero(stays))
    return found


def images_at_once(module: GraphModule, most: int) -> int:
    """How many images, up to ``most``, may be in memory with every tensor that is alive at one time."""
    sizes = [math.prod(shape_of(n)[1:]) for n in module.graph.nodes if n.op == "call_function" and _is_tensor(n)]
    largest = max(sizes, default=1)
    return max(min(most, _ELEMENTS // max(largest, 1)), 1)


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def reconstruct(
    floats: GraphModule,
    module: GraphModule,
    kept: Stays,
    images: np.ndarray,
    *,
    rectified: bool = False,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Refit]:
    """Fits the layers of a network that has been cut to the original, in place.

    Args:
        floats: The network before the cut.
        module: The network after it; nodes have the same names. It may lack some, and have others, which are not fitted.
        kept: See :func:`kept_positions`.
        images: Inputs, shape (n, …).
        rectified: Fit what a ReLU behind a layer gives, where there is one, not what it reads.
        seed: Of the choice of positions in large feature maps.
        progress: Told how far it has come.

    Returns:
        The layers that were fitted. Depthwise and grouped convolutions keep their weights.
    """
    refresh_shapes(module, torch.from_numpy(images[:2]))
    twins = {node.name: node for node in floats.graph.nodes}
    layers = {n.name: (n, weight) for n, weight in own_weights(module) if is_dense(n) and n.name in twins}
    joints = {name: (_shortcut(node), _shortcut(twins[name])) for name, (node, _) in layers.items()}
    parts = torch.from_numpy(images).split(_BATCH)
    shortcuts = [was.other.name for now, was in joints.values() if now is not None and was is not None]
    reference = Walk(floats, parts, [*layers, *shortcuts])
    walk = Walk(module, parts, layers)
    done: list[Refit] = []
    with torch.no_grad():
        for name, _ in walk.steps():
            node, weight = layers[name]
            wanted = [_chosen(value, kept.get(name)) for value in reference.value(name)]
            joint, twin = joints[name]
            if joint is not None and twin is not None:
                now = walk.now(joint.other)
                # Where blocks were taken out, the shortcut begins at another node than it did.
                was = reference.value(twin.other.name) if now is not None else []
                if now is not None:
                    wanted = _with_the_shortcuts_loss(module, joint, wanted, was, now, kept)
            source = node.args[0]
            assert isinstance(source, Node)
            inputs = walk.now(source)
            assert inputs is not None
            done.append(_fit(module, node, weight, inputs, wanted, seed))
            if rectified and _is_rectified(node, joint):
                shortcut = walk.now(joint.other) if joint is not None else None
                norm = _of_norm(floats, only_reader(twins[name]), kept.get(name))
                _fit_rectified(module, node, weight, inputs, wanted, shortcut, norm, seed)
            walk.again(node)
            if progress is not None:
                progress(len(done), len(layers), f"refitting {layer_name(node)}")
    settle_batch_norm(module, parts)
    return done


@dataclass(frozen=True)
class _Joint:
    """Where a layer's output is added to a shortcut."""

    other: Node
    norm: Node | None


def _shortcut(node: Node) -> _Joint | None:
    norm = None
    reader = only_reader(node)
    if reader is not None and reader.target is aten.batch_norm.default:
        norm, reader = reader, only_reader(reader)
    if reader is None or reader.target is not aten.add.Tensor or reader.kwargs:
        return None
    others = [a for a in reader.args[:2] if isinstance(a, Node) and a is not (norm or node)]
    return _Joint(others[0], norm) if len(others) == 1 and others[0].op == "call_function" else None


def _chosen(value: torch.Tensor, stays: tuple[int, torch.Tensor] | None) -> torch.Tensor:
    return value if stays is None else value.index_select(*stays)


def _with_the_shortcuts_loss(
    module: GraphModule,
    joint: _Joint,
    wanted: list[torch.Tensor],
    was: list[torch.Tensor],
    now: list[torch.Tensor],
    kept: Stays,
) -> list[torch.Tensor]:
    was = [_chosen(value, kept.get(joint.other.name)) for value in was]
    if any(a.shape != b.shape or a.shape != w.shape for a, b, w in zip(was, now, wanted, strict=True)):
        return wanted  # added by broadcasting
    if joint.norm is None:
        return [w + a - b for w, a, b in zip(wanted, was, now, strict=True)]
    # Behind a batch norm of scale s, a change of s·d takes a change of d before it.
    gain = _gain(module, joint.norm)
    back = torch.where(gain.abs() > _LEAST_SCALE * gain.abs().max(), 1 / gain, torch.zeros_like(gain))
    shape = (-1, *[1] * (wanted[0].dim() - 2))
    return [w + (a - b) * back.view(shape) for w, a, b in zip(wanted, was, now, strict=True)]


def _gain(module: GraphModule, norm: Node) -> torch.Tensor:
    gamma, variance, epsilon = norm.args[1], norm.args[4], norm.args[7]
    assert isinstance(variance, Node)
    scale = 1 / torch.sqrt(attribute(module, str(variance.target)) + float(epsilon))  # type: ignore[arg-type]
    return scale * attribute(module, str(gamma.target)) if isinstance(gamma, Node) else scale


def _fit(
    module: GraphModule,
    node: Node,
    weight: str,
    inputs: list[torch.Tensor],
    wanted: list[torch.Tensor],
    seed: int,
) -> Refit:
    parameter = attribute(module, weight)
    old = parameter.detach().flatten(1).double()
    found = moments(node, inputs, wanted, seed=seed)
    ridge = _RIDGE * float(found.xx.diagonal().mean()) + 1e-12
    left = found.xx + ridge * torch.eye(len(found.xx), dtype=torch.float64)
    new = torch.linalg.solve(left, found.xy + ridge * old.T).T
    parameter.data.copy_(new.reshape(parameter.shape))
    bias = own_bias(node)
    now = new @ found.x if bias is None else new @ found.x + attribute(module, bias).double()
    shift_outputs(module, node, found.y - now)  # the covariances leave the mean out
    return Refit(layer_name(node), found.error(old), found.error(new))


def _is_rectified(node: Node, joint: _Joint | None) -> bool:
    """Whether a ReLU alone reads a layer, its batch norm, or its sum with a shortcut."""
    reader = only_reader(node)
    if reader is not None and reader.target is aten.batch_norm.default:
        reader = only_reader(reader)
    if joint is not None and reader is not None:
        # The sum may well be read by a shortcut again: what it reads then has passed the ReLU first.
        reader = only_reader(reader)
    return reader is not None and reader.target is aten.relu.default


def _of_norm(
    module: GraphModule, norm: Node | None, stays: tuple[int, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gain and shift of a batch norm; 1 and 0 where there is none."""
    if norm is None or norm.target is not aten.batch_norm.default:
        return torch.ones(1), torch.zeros(1)
    gain, beta, mean = _gain(module, norm), norm.args[2], norm.args[3]
    assert isinstance(mean, Node)
    shift = -gain * attribute(module, str(mean.target))
    if isinstance(beta, Node):
        shift = shift + attribute(module, str(beta.target))
    return (gain, shift) if stays is None else (gain[stays[1]], shift[stays[1]])


def _fit_rectified(
    module: GraphModule,
    node: Node,
    weight: str,
    inputs: list[torch.Tensor],
    wanted: list[torch.Tensor],
    shortcut: list[torch.Tensor] | None,
    norm_before: tuple[torch.Tensor, torch.Tensor],
    seed: int,
) -> None:
    parameter = attribute(module, weight)
    width = wanted[0].shape[-1 if node.target is aten.linear.default else 1]
    channels = wanted[0].dim() - 1 if node.target is aten.linear.default else 1
    both = wanted if shortcut is None else [torch.cat(pair, channels) for pair in zip(wanted, shortcut, strict=True)]
    pieces = list(rows(node, inputs, both, most=_RECTIFIED_ROWS, seed=seed))
    x, y = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    other = y[:, width:] if shortcut is not None else torch.zeros(1)
    gain, shift = _of_norm(module, only_reader(node))
    gain_before, shift_before = norm_before
    problem = Rectified(
        gain.expand(width),
        (shift + other).expand(len(x), width),
        (gain_before * y[:, :width] + shift_before + other).relu(),
    )
    bias = own_bias(node)
    held = attribute(module, bias).double() if bias is not None else torch.zeros(width, dtype=torch.float64)
    ridge = _RIDGE * float((x - x.mean(0)).square().mean()) + 1e-12
    new, level = refine(x, problem, parameter.detach().flatten(1).double(), held, ridge)
    if shift_outputs(module, node, level - held):
        parameter.data.copy_(new.reshape(parameter.shape))
