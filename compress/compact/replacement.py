"""Which convolutions are written as cheaper ones: those first whose kernel loses least for what it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.compact.chain import Chain, Geometry, geometry_of
from edgekit.compress.compact.separable import separable
from edgekit.compress.compact.spatial import spatial
from edgekit.compress.compact.two_small import two_small
from edgekit.compress.layers import own_weights
from edgekit.compress.rewrite import finish
from edgekit.cost import cost_of
from edgekit.program import aten, attribute, layer_name, shape_of

Kind = Literal["separable", "two-3x3", "spatial"]
KINDS: Mapping[Kind, Callable[..., Chain | None]] = {"separable": separable, "two-3x3": two_small, "spatial": spatial}
"""Every way to write a convolution as cheaper ones."""

Measure = Literal["macs", "parameters", "bytes"]


@dataclass(frozen=True)
class Offer:
    """A convolution and what could take its place."""

    node: str
    layer: str
    chain: Chain
    saved: Mapping[str, int]


@dataclass(frozen=True)
class Replaced:
    """A convolution that was written as others.

    Attributes:
        layer: Its name.
        kind: The technique.
        error: The share of the squared kernel that they missed, before anything was refitted.
    """

    layer: str
    kind: str
    error: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def offers(module: GraphModule, kinds: Sequence[Kind], *, multiplier: int = 1) -> tuple[list[Offer], dict[str, str]]:
    """What could take the place of each convolution, where that is cheaper in multiply-accumulates and in parameters.

    Args:
        module: The graph.
        kinds: The techniques to try; the one that loses least for what it saves is offered.
        multiplier: Of ``separable``.

    Returns:
        The offers in the order of the graph, and for each layer without one the reason.
    """
    found, alone = [], {}
    own = dict(own_weights(module))
    costs = {layer.name: layer for layer in cost_of(module).layers}
    for node in module.graph.nodes:
        if node.name not in costs or not costs[node.name].macs:
            continue
        layer = layer_name(node)
        reason = _unfit(node, own)
        if reason:
            alone[layer] = reason
            continue
        weight, geometry = attribute(module, own[node]).detach(), geometry_of(node)
        kernel = weight.double()
        size = (int(shape_of(node.args[0])[2]), int(shape_of(node.args[0])[3]))
        chains = [chain for kind in kinds if (chain := _made(kind, kernel, geometry, multiplier)) is not None]
        made = [
            Offer(node.name, layer, chain, _saved(macs, parameters, weight.element_size()))
            for chain in chains
            if (macs := costs[node.name].macs - chain.macs(size)) > 0
            and (parameters := kernel.numel() - chain.parameters) > 0
        ]
        if made:
            found.append(min(made, key=lambda offer: offer.chain.error / offer.saved["macs"]))
        else:
            alone[layer] = "no cheaper form would be cheaper" if chains else f"none of {', '.join(kinds)} fits it"
    return found, alone


def replace_until(
    module: GraphModule, offered: Sequence[Offer], measure: Measure, most: float, *, round_off: bool = False
) -> list[Replaced]:
    """Replaces convolutions in place until the network costs no more than asked, or there are none left.

    Args:
        module: The graph that the offers were made for.
        offered: What could be replaced.
        measure: What is counted.
        most: The cost to come down to.
        round_off: Come as near to that cost as can be, from either side.
    """
    cost = getattr(cost_of(module), measure)
    nodes = {node.name: node for node in module.graph.nodes}
    done = []
    for offer in sorted(offered, key=lambda o: (o.chain.error / o.saved[measure], o.node)):
        if cost - offer.saved[measure] / 2 * round_off <= most:
            break
        offer.chain.put(module, nodes[offer.node])
        cost -= offer.saved[measure]
        done.append(Replaced(offer.layer, offer.chain.kind, offer.chain.error))
    finish(module)
    return done


def _saved(macs: int, parameters: int, element_size: int) -> dict[str, int]:
    return {"macs": macs, "parameters": parameters, "bytes": parameters * element_size}


def _made(kind: Kind, kernel: torch.Tensor, geometry: Geometry, multiplier: int) -> Chain | None:
    return separable(kernel, geometry, multiplier=multiplier) if kind == "separable" else KINDS[kind](kernel, geometry)


def _unfit(node: Node, own: Mapping[Node, str]) -> str:
    if node.target is not aten.conv2d.default:
        return f"{str(node.target).removeprefix('aten.').split('.')[0]} is no two-dimensional convolution"
    if node not in own:
        return "its weight is not a plain tensor of its own"
    if geometry_of(node).groups != 1:
        return "it is grouped already"
    return "its kernel is 1×1 already" if shape_of(node.args[1])[2:] == (1, 1) else ""  # type: ignore[arg-type]
