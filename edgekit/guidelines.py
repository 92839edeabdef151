"""The four practical rules for fast networks, layer by layer: Ma et al., "ShuffleNet V2", ECCV 2018, section 2.

MACs alone do not tell the time. The paper measures four other causes, and this module counts them, for one input:

G1  Equal channel widths minimize memory access (equation 2). With E_in and E_out elements read and written and W weights,
    a layer moves E_in + E_out + W elements, and never less than 2 sqrt(E_in E_out) + W at the same MACs. For a 1×1
    convolution at stride 1 that is the paper's MAC ≥ 2 sqrt(h w B) + B / (h w), reached at equal widths.
G2  Too many groups increase memory access (equation 3): at the same MACs and the same input, one group would write only
    1/g of the elements.
G3  Fragmentation reduces parallelism: how many convolutions, matrix products and poolings stand at the same depth.
G4  Element-wise operators are not free: their share of all elements moved. Depthwise convolutions count among them, as in
    the paper. What runtimes compute inside the layer before it (batch norm, an activation) moves nothing here.

These are rules of thumb about causes; ``edgekit bench`` measures.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgekit.cost import MACS, elements
from edgekit.program import aten, layer_name, trainable

LIMITS = {"G1": 1.25, "G2": 1.25, "G3": 3.0, "G4": 0.03}
"""From where on a layer is flagged: a ratio, a ratio, a count, a share. Ours; the paper gives none. G1's lies between channel
widths of 1:2 (1.06 with large maps) and 1:6 (1.43), two of those that table 1 of the paper times."""

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv_transpose2d.input)
_POOLINGS = (
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.max_pool1d.default,
    aten.avg_pool1d.default, aten.mean.dim,
)  # fmt: skip
_ACTIVATIONS = (aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default)
_ELEMENT_WISE = (
    *_ACTIVATIONS, aten.batch_norm.default, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor,
    aten.maximum.default, aten.minimum.default, aten.leaky_relu.default, aten.elu.default, aten.gelu.default,
    aten.silu.default, aten.sigmoid.default, aten.tanh.default, aten.hardswish.default, aten.hardsigmoid.default,
    aten.softplus.default, aten.mish.default, aten.layer_norm.default, aten.softmax.int, aten.add.Scalar, aten.mul.Scalar,
)  # fmt: skip
# Of layers with these, runtimes compute an activation behind them inside.
_FUSE_AN_ACTIVATION = (*_CONVOLUTIONS, aten.linear.default, aten.add.Tensor)


@dataclass(frozen=True)
class LayerGuide:
    """The figures of one operator; None where a rule says nothing of it.

    Attributes:
        name: Its node in the program.
        path: The layer's name in the user's modules.
        op: The ATen operator.
        memory_access: Elements read and written.
        bound: The least that a layer of as many MACs moves, in elements; None for a depthwise one, whose widths are equal.
        over_bound: G1: memory access over the bound.
        groups: Of a convolution.
        over_dense: G2: memory access over that of one group with the same input and MACs.
        parallel: G3: convolutions, matrix products and poolings at the same depth, itself included.
        element_wise_share: G4: its share of the network's memory access.
        flags: The rules that it breaks, such as ``G1``.
    """

    name: str
    path: str
    op: str
    memory_access: int
    bound: float | None
    over_bound: float | None
    groups: int | None
    over_dense: float | None
    parallel: int | None
    element_wise_share: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Guide:
    """The figures of a network.

    Attributes:
        layers: Every operator that a rule speaks of, in the order of the program.
        memory_access: Elements moved by all operators but those that runtimes fuse.
        bound: What its layers with weights would move at least, with equal widths.
        weighted_access: What they move.
        element_wise_share: Share of the memory access in element-wise operators, depthwise convolutions included.
        depthwise_share: Share in depthwise convolutions alone.
        widest: The most operators at one depth.
    """

    layers: tuple[LayerGuide, ...]
    memory_access: int
    bound: float
    weighted_access: int
    element_wise_share: float
    depthwise_share: float
    widest: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "limits": LIMITS}


def guide_of(program: ExportedProgram | GraphModule) -> Guide:
    """Counts a program by the four rules.

    Args:
        program: In ATen training IR, its nodes with ``meta["val"]``.

    Example:
        >>> import edgekit
        >>> guide_of(edgekit.load("zoo:googlenet").module()).widest
        4
    """
    module = trainable(program) if isinstance(program, ExportedProgram) else program
    moved = {node: _moved(node) for node in module.graph.nodes if _moves(node)}
    total = sum(moved.values())
    together = _at_the_same_depth(module)
    layers = [_layer(node, access, total, together.get(node)) for node, access in moved.items()]
    spoken = [
        layer for layer in layers if any(x is not None for x in (layer.bound, layer.parallel, layer.element_wise_share))
    ]
    depthwise = sum(access for node, access in moved.items() if _is_depthwise(node))
    weighted = [layer for layer in layers if layer.bound is not None]
    return Guide(
        layers=tuple(spoken),
        memory_access=total,
        bound=sum(layer.bound or 0.0 for layer in weighted),
        weighted_access=sum(layer.memory_access for layer in weighted),
        element_wise_share=sum(layer.element_wise_share or 0.0 for layer in layers),
        depthwise_share=depthwise / max(total, 1),
        widest=max(together.values(), default=0),
    )


def _layer(node: Node, access: int, total: int, parallel: int | None) -> LayerGuide:
    bound = over_bound = over_dense = groups = None
    if _has_weight(node):
        read, written, weights = _parts(node)
        if not _is_depthwise(node):
            bound = 2 * math.sqrt(read * written) + weights
            over_bound = access / bound
        groups = _groups(node)
        over_dense = access / (read + written / groups + weights)
    depthwise = _is_depthwise(node)
    share = access / total if node.target in _ELEMENT_WISE or depthwise else None
    broken = {
        # The width of the input image is not the network's to choose.
        "G1": (over_bound or 0) >= LIMITS["G1"] and node.args[0].op != "placeholder",  # type: ignore[union-attr]
        "G2": (over_dense or 0) >= LIMITS["G2"] and not depthwise,
        "G3": (parallel or 0) >= LIMITS["G3"],
        "G4": (share or 0) >= LIMITS["G4"],
    }
    return LayerGuide(
        name=node.name,
        path=layer_name(node),
        op=str(node.target).removeprefix("aten."),
        memory_access=access,
        bound=bound,
        over_bound=over_bound,
        groups=groups,
        over_dense=over_dense if groups != 1 and not depthwise else None,
        parallel=parallel,
        element_wise_share=share,
        flags=tuple(rule for rule, is_broken in broken.items() if is_broken),
    )


def _parts(node: Node) -> tuple[int, int, int]:
    """Elements of a layer's input, output and weight; its bias is not counted, as in the paper."""
    return elements(node.args[0]), elements(node), int(node.args[1].meta["val"].numel())  # type: ignore[union-attr]


def _moved(node: Node) -> int:
    if _has_weight(node):
        return sum(_parts(node))
    sources = [s for s in node.all_input_nodes if s.op != "get_attr" and isinstance(s.meta.get("val"), torch.Tensor)]
    return elements(node) + sum(elements(source) for source in sources)


def _moves(node: Node) -> bool:
    """Whether an operator reads and writes data of its own: known ones alone, and none that is fused."""
    known = (*_CONVOLUTIONS, *_POOLINGS, *_ELEMENT_WISE, *MACS, aten.cat.default, aten.split_with_sizes.default,
             aten.split.Tensor, aten.chunk.default, aten.slice.Tensor, aten.pad.default)  # fmt: skip
    return node.op == "call_function" and node.target in known and not _is_fused(node)


def _is_fused(node: Node) -> bool:
    """Whether runtimes compute this inside the layer before it."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or len(source.users) != 1:
        return False
    if node.target is aten.batch_norm.default:
        return _has_weight(source)
    if node.target not in _ACTIVATIONS:
        return False
    return source.target in _FUSE_AN_ACTIVATION or (source.target is aten.batch_norm.default and _is_fused(source))


def _has_weight(node: Node) -> bool:
    return node.target in (*_CONVOLUTIONS, aten.linear.default)


def _groups(node: Node) -> int:
    return int(node.args[6]) if node.target in _CONVOLUTIONS and len(node.args) > 6 else 1  # type: ignore[arg-type]


def _is_depthwise(node: Node) -> bool:
    return _groups(node) > 1 and _groups(node) == int(node.args[0].meta["val"].shape[1])  # type: ignore[union-attr]


def _at_the_same_depth(module: GraphModule) -> dict[Node, int]:
    """For each fragment (convolution, matrix product, pooling) how many stand as deep as it, itself included.

    Its depth is the largest number of fragments on a way from the input to it; those of equal depth can't depend on each
    other.
    """
    depth: dict[Node, int] = {}
    fragments: dict[Node, int] = {}
    for node in module.graph.nodes:
        before = max((depth[source] for source in node.all_input_nodes), default=0)
        is_fragment = node.op == "call_function" and (node.target in MACS or node.target in _POOLINGS)
        depth[node] = before + is_fragment
        if is_fragment:
            fragments[node] = depth[node]
    counts: dict[int, int] = {}
    for level in fragments.values():
        counts[level] = counts.get(level, 0) + 1
    return {node: counts[level] for node, level in fragments.items()}
