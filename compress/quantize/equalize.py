"""Cross-layer equalization: channels of one range, moved between neighbouring layers without changing the function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from edgekit.bundle import Bundle
from edgekit.compress.rewrite import fold_batch_norm, remove_dropout
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.program import aten, attribute, layer_name

# f(s x) = s f(x) for s > 0, channel by channel; ReLU6 is not so.
_HOMOGENEOUS = {
    aten.relu.default, aten.leaky_relu.default, aten.max_pool2d.default, aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.contiguous.default, aten.clone.default,
}  # fmt: skip
_LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.linear.default)
# It converges in a few rounds; chains of depthwise layers take the most.
_ROUNDS, _SETTLED = 50, 1e-3


@dataclass(frozen=True, kw_only=True)
class Equalize(Step):
    """Scales each channel between two layers so that both their weights have one range there.

    Attributes:
        keep: Name patterns of layers that are left as they are.
    """

    name: ClassVar[str] = "equalize"
    summary: ClassVar[str] = "even out channel ranges between layers, so that quantization loses less"
    source: ClassVar[str] = "Nagel et al., ICCV 2019, section 4.1, equations 5 to 11"
    example: ClassVar[str] = ""

    keep: tuple[str, ...] = ()

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        import fnmatch

        module = bundle.module()
        remove_dropout(module)
        folded = fold_batch_norm(module)
        pairs = [
            pair
            for pair in neighbours(module)
            if not any(fnmatch.fnmatch(layer_name(node), pattern) for node in pair for pattern in self.keep)
        ]
        before = [_spread(module, first) for first, _ in pairs]
        rounds = _until_settled(module, pairs, context)
        report = {
            "batch_norms_folded": folded,
            "rounds": rounds,
            "pairs": [
                {
                    "layers": [layer_name(first), layer_name(second)],
                    "range_ratio_before": was,
                    "range_ratio_after": _spread(module, first),
                }
                for (first, second), was in zip(pairs, before, strict=True)
            ],
        }
        return bundle.with_module(module), report


def neighbours(module: GraphModule) -> list[tuple[Node, Node]]:
    """Pairs of layers with nothing between them that could tell a scaled channel from an unscaled one."""
    pairs = []
    for node in module.graph.nodes:
        if node.target not in _LAYERS or not _own_weight(node):
            continue
        after = node
        while len(after.users) == 1:
            after = next(iter(after.users))
            if after.target in _LAYERS:
                if _own_weight(after) and after.args[0] in _chain(node, after) and _groups(after) is not None:
                    pairs.append((node, after))
                break
            flat = after.target in (aten.flatten.using_ints, aten.view.default, aten.reshape.default)
            if not (after.target in _HOMOGENEOUS or (flat and _keeps_channels(after))):
                break
    return pairs


def _chain(first: Node, second: Node) -> list[Node]:
    """The nodes from one layer to another, the second left out."""
    chain, node = [first], first
    while node is not second:
        node = next(iter(node.users))
        chain.append(node)
    return chain[:-1]


def _keeps_channels(node: Node) -> bool:
    """Whether flattening leaves one value for each channel, so that channels stay what they are."""
    source: Any = node.args[0]
    before, after = source.meta["val"].shape, node.meta["val"].shape
    return len(after) == 2 and len(before) >= 2 and after[1] == before[1]


def _own_weight(node: Node) -> bool:
    weight = node.args[1]
    return isinstance(weight, Node) and weight.op == "get_attr" and len(weight.users) == 1


def _groups(node: Node) -> int | None:
    """1 for an ordinary layer, the channels of a depthwise one; None for groups in between, whose channels are coupled."""
    if node.target is aten.linear.default:
        return 1
    position = 6
    groups = int(node.args[position]) if len(node.args) > position else 1  # type: ignore[arg-type]
    weight: Any = node.args[1]
    depthwise = weight.meta["val"].shape[1] == 1 and weight.meta["val"].shape[0] == groups
    return groups if groups == 1 or depthwise else None


def _out_ranges(module: GraphModule, node: Node) -> torch.Tensor:
    """Largest magnitude of the weights of each output channel, float64."""
    weight: Any = node.args[1]
    return attribute(module, str(weight.target)).detach().double().abs().flatten(1).amax(1)


def _in_ranges(module: GraphModule, node: Node) -> torch.Tensor:
    """Largest magnitude of the weights that read each input channel, float64."""
    source: Any = node.args[1]
    weight = attribute(module, str(source.target)).detach().double().abs()
    if _groups(node) == 1:
        weight = weight.transpose(0, 1)
    return weight.flatten(1).amax(1)


def _spread(module: GraphModule, node: Node) -> float:
    """Largest over smallest range of the output channels that are not empty."""
    ranges = _out_ranges(module, node)
    ranges = ranges[ranges > 0]
    return float(ranges.max() / ranges.min()) if len(ranges) else 1.0


def _until_settled(module: GraphModule, pairs: list[tuple[Node, Node]], context: Context) -> int:
    for count in range(1, _ROUNDS + 1):
        change = max((_equalize(module, *pair) for pair in pairs), default=0.0)
        context.progress(count, _ROUNDS, "equalizing")
        if change < _SETTLED:
            return count
    return _ROUNDS


def _equalize(module: GraphModule, first: Node, second: Node) -> float:
    """Equation 11: s = sqrt(r1 r2) / r2, W1' = W1 / s, b1' = b1 / s, W2' = W2 s; returns the largest |log s|."""
    one, two = _out_ranges(module, first), _in_ranges(module, second)
    scale = torch.sqrt(one * two) / two
    # A channel that is empty on either side carries nothing: leave it.
    scale = torch.where((one > 0) & (two > 0), scale, torch.ones_like(scale))
    sources: list[Any] = [first.args[1], second.args[1]]
    weight, after = (attribute(module, str(source.target)) for source in sources)
    weight.data = (weight.double() / scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    bias: Any = first.args[2] if len(first.args) > 2 else None
    if isinstance(bias, Node):
        values = attribute(module, str(bias.target))
        values.data = (values.double() / scale).to(values.dtype)
    shape = [-1, *[1] * (after.dim() - 1)] if _groups(second) != 1 else [1, -1, *[1] * (after.dim() - 2)]
    after.data = (after.double() * scale.view(shape)).to(after.dtype)
    return float(scale.log().abs().max())
