"""Which layers suffer from quantization: the table that accuracy control and the choice of bits stand on.

Two views of a layer. *Inside* the quantized network: how far its output is from the float one, all noise before it
included. *Alone*: how far the network's output is when nothing but this layer is quantized (the sensitivity of
Wu et al., arXiv:2004.09602, section 5.2, with the signal-to-noise ratio besides the accuracy).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.compress.quantize.plan import Plan, insert, tensor_inputs
from edgekit.compress.quantize.scheme import AffineParameters
from edgekit.program import duplicate, layer_name, shape_of

# A channel below this has lost its content: one step of the grid is as large as what it says.
SUSPECT_DB = 10.0
# The outputs of all layers are held at once: of so few images that they are no more than this.
_HELD_ELEMENTS = 2**24


@dataclass(frozen=True)
class LayerNoise:
    """A layer's output in the quantized network beside its output in float.

    Attributes:
        layer: Its name.
        sqnr_db: Of all its values.
        channel_sqnr_db: The median over its channels: far below ``sqnr_db`` where a few channels of large range set the
            scale, and the others drown in its step.
    """

    layer: str
    sqnr_db: float
    channel_sqnr_db: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def noise_inside(
    floats: GraphModule, module: GraphModule, layers: Sequence[str], images: np.ndarray
) -> list[LayerNoise]:
    """Every layer's noise inside the quantized network.

    What is compared is what the next layer reads: after the activation and after the output's own rounding.

    Args:
        floats: The float graph.
        module: The quantized graph made from it; nodes have the same names.
        layers: Names of nodes, of convolutions and linear layers.
        images: float32 inputs, shape (n, …).
    """
    wanted = {}
    for name in layers:
        node = next(n for n in module.graph.nodes if n.name == name)
        wanted[name] = (_last_of(node, floats), _read_by_the_next(node).name)
    signals: dict[str, Any] = dict.fromkeys(wanted, 0.0)
    errors: dict[str, Any] = dict.fromkeys(wanted, 0.0)
    held = sum(math.prod(shape_of(n)[1:]) for n in floats.graph.nodes if n.name in {a for a, _ in wanted.values()})
    size = max(1, _HELD_ELEMENTS // max(held, 1))
    for start in range(0, len(images), size):
        part = images[start : start + size]
        reference = _watched(floats, {a for a, _ in wanted.values()}, part)
        noisy = _watched(module, {b for _, b in wanted.values()}, part)
        for name, (a, b) in wanted.items():
            signals[name] = signals[name] + _powers(reference[a])
            errors[name] = errors[name] + _powers(noisy[b] - reference[a])
    rows = []
    names = {node.name: layer_name(node) for node in module.graph.nodes}
    for name in wanted:
        signal, error = signals[name], errors[name]
        per_channel = _decibels(signal, error)[signal > 0]
        rows.append(
            LayerNoise(
                names[name],
                float(_decibels(signal.sum(), error.sum())),
                float(np.median(per_channel)) if len(per_channel) else 0.0,
            )
        )
    return rows


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


def _read_by_the_next(node: Node) -> Node:
    """The dequantize node behind a layer of the quantized graph, or the layer's last node if there is none."""
    for _ in range(3):
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_function" or not _passes_on(users[0]):
            break
        node = users[0]
    return node


def _last_of(node: Node, floats: GraphModule) -> str:
    """The name of the float node whose value the same is: the activation behind the layer where it is fused."""
    from edgekit.compress.quantize.rules import RULES, Role

    twin = next(n for n in floats.graph.nodes if n.name == node.name)
    users = list(twin.users)
    if len(users) == 1 and RULES.get(users[0].target) is Role.FUSED:
        return str(users[0].name)
    return str(twin.name)


def _passes_on(node: Node) -> bool:
    from edgekit.compress.quantize.rules import RULES, Role
    from edgekit.program import quantized

    pair = (quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default)
    return node.target in pair or RULES.get(node.target) is Role.FUSED


def _watched(module: GraphModule, names: set[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """The values of some nodes, shape (channels, rest), float32."""
    values: dict[str, np.ndarray] = {}

    class Watcher(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if n.name in names:
                moved = result.movedim(1, 0) if result.dim() > 2 else result.reshape(-1, result.shape[-1]).T
                values[n.name] = moved.reshape(moved.shape[0], -1).numpy().copy()
            return result

    with torch.no_grad():
        Watcher(module).run(torch.from_numpy(images))
    return values


def _powers(values: np.ndarray) -> np.ndarray:
    return np.einsum("cn,cn->c", values, values, dtype=np.float64)


def _decibels(signal: Any, noise: Any) -> Any:
    return 10 * np.log10(np.maximum(signal, 1e-30) / np.maximum(noise, 1e-30))
