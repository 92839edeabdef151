"""Which layers suffer from quantization: the table that accuracy control and the choice of bits stand on.

Two views of a layer. *Inside* the quantized network: how far its output is from the float one, all noise before it
included (:mod:`~edgekit.compress.quantize.side_by_side`). *Alone*, here: how far the network's output is when nothing but
this layer is quantized (the sensitivity of Wu et al., arXiv:2004.09602, section 5.2, with the signal-to-noise ratio besides
the accuracy).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import GraphModule, Node

from edgekit.compress.quantize.plan import Plan, insert, tensor_inputs
from edgekit.compress.quantize.scheme import AffineParameters
from edgekit.program import duplicate, layer_name

# A channel below this has lost its content: one step of the grid is as large as what it says.
SUSPECT_DB = 10.0


def alone(
    floats: GraphModule,
    plan: Plan,
    parameters: Mapping[Node, AffineParameters],
    layer: Node,
    bits: int = 8,
    *,
    per_channel: bool = True,
    activations: bool = True,
) -> GraphModule:
    """The network with nothing quantized but one layer: its weight, and the activations that it reads and gives.

    Args:
        floats: The float graph that the plan was made for; it is not changed.
        plan: Which tensors become int8 when all do.
        parameters: Scale and zero point for each leader of a shared scale.
        layer: The convolution or linear layer.
        bits: Of its weight.
        per_channel: As in :func:`~edgekit.compress.quantize.plan.insert`.
        activations: Leave the activations in float if false.
    """
    copy = duplicate(floats)
    twin = {node.name: node for node in copy.graph.nodes}
    around: list[Node] = []
    if activations:
        given = next((n for n in _chain_after(layer) if n in plan.values), None)
        around = [n for n in (*tensor_inputs(layer), given) if n is not None and n in plan.values]
    part = Plan([twin[n.name] for n in around], [twin[layer.name]], [], {})
    scales = {twin[n.name]: parameters[plan.leader(n)] for n in around}
    insert(copy, part, scales, {layer_name(layer): bits}, per_channel=per_channel)
    return copy


def _chain_after(node: Node) -> list[Node]:
    users = list(node.users)
    return [node, users[0]] if len(users) == 1 else [node]
