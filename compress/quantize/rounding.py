"""Learning to round up or down: the weights of a part of the network are rounded so that what it hands on is kept.

The relaxation is AdaRound's (Nagel et al., ICML 2020): the asymmetric reconstruction with the activation in it (equation 25),
the rectified sigmoid (equation 23) and its regularizer (equation 24), annealed. Which layers are learned together, as one
part, is the caller's: one layer (``adaround``) or a block (``brecq``). Parts are taken in the order of the graph; each sees
its inputs as the rounded parts before it give them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import Graph, GraphModule, Node

from edgekit.files import atomic_file
from edgekit.program import aten, attribute, layer_name, quantized, shape_of
from edgekit.simulation import simulator

# Equation 23: a sigmoid stretched beyond 0 and 1, so that both are reached.
_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1
# Equation 24: weight of the regularizer, its exponent's path, and the share of the iterations before it sets in. The weight is
# relative to the error of rounding to nearest, for a fixed one would depend on the units of the layer. Chosen on validation
# images (ResNet-20, 3 bits): 30, 100, 300 give 10.3, 9.5 and 10.4 dB at a learning rate of 0.01, and 100 gives 12.6 at 0.02.
_REGULARIZER, _BETA_FIRST, _BETA_LAST, _WARM_UP = 100.0, 20.0, 2.0, 0.2
_LEARNING_RATE, _BATCH = 2e-2, 32
# Inputs and targets of one part are held at once; of large maps, of fewer images.
_LARGEST_ELEMENTS = 2**27


@dataclass(frozen=True)
class Part:
    """Layers that are rounded together, and the piece of the float graph that they lie in.

    Attributes:
        source: The tensor that the piece reads, and nothing else but weights.
        output: What it hands on; its error is what is made small.
        layers: The convolutions and linear layers in it, in the order of the graph.
    """

    source: Node
    output: Node
    layers: tuple[Node, ...]


@dataclass
class _Weight:
    """The weight of one layer while it is learned: what it is rounded down to, and how far up each value is."""

    place: str
    scales: torch.Tensor
    nearest: torch.Tensor
    floor: torch.Tensor
    logit: torch.Tensor
    top: int

    def up(self) -> torch.Tensor:
        """Equation 23: how far up each value is rounded, 0 to 1."""
        return torch.clamp(torch.sigmoid(self.logit) * (_STRETCH_HIGH - _STRETCH_LOW) + _STRETCH_LOW, 0, 1)

    def on_grid(self, up: torch.Tensor) -> torch.Tensor:
        """The integers, between two of them while it is learned."""
        return torch.clamp(self.floor + up, -self.top, self.top)


def learn_rounding(
    module: GraphModule,
    floats: GraphModule,
    parts: Sequence[Part],
    images: np.ndarray,
    *,
    iterations: int = 1000,
    seed: int = 0,
    checkpoints: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Learns the rounding of every weight of the given parts, in place.

    Args:
        module: The graph with its quantize/dequantize nodes, weights rounded to nearest.
        floats: The float graph that it was made from; its nodes have the same names.
        parts: Pieces of the float graph, in its order.
        images: float32 inputs, shape (n, …).
        iterations: Steps of the optimizer for each part.
        seed: Of the batches.
        checkpoints: A folder where each finished part is kept, to resume from.
        progress: Told the parts done.

    Returns:
        For each layer the mean squared error of its part's output with rounding to nearest and with the learned one, and
        the share of weights (0 to 1) that are not rounded to nearest.
    """
    found: dict[str, dict[str, float]] = {}
    nodes = {node.name: node for node in module.graph.nodes}
    for position, part in enumerate(parts):
        names = [layer_name(node) for node in part.layers]
        if progress is not None:
            progress(position, len(parts), f"learning the rounding of {', '.join(names)}")
        weights = [_weight_of(module, floats, nodes[node.name], node) for node in part.layers]
        kept = checkpoints / f"{position:03d}.npz" if checkpoints is not None else None
        if kept is not None and kept.is_file():
            with np.load(kept) as stored:
                for i, (name, weight) in enumerate(zip(names, weights, strict=True)):
                    attribute(module, weight.place).copy_(torch.from_numpy(stored[f"values_{i}"]))
                    found[name] = {
                        key: float(stored[f"{key}_{i}"]) for key in ("error_nearest", "error_learned", "moved")
                    }
            continue
        elements = sum(int(np.prod(shape_of(n)[1:])) for n in (part.source, part.output))
        few = images[: max(_BATCH, _LARGEST_ELEMENTS // elements)]
        inputs = _values(module, _as_read(nodes[part.source.name]), few)
        outputs = _values(floats, part.output.name, few)
        learned, facts = _learn(_piece(floats, part), weights, inputs, outputs, iterations, (seed, position))
        stored = {}
        for i, (name, weight, values, fact) in enumerate(zip(names, weights, learned, facts, strict=True)):
            attribute(module, weight.place).copy_(values)
            found[name] = fact
            stored |= {f"values_{i}": values.numpy(), **{f"{key}_{i}": np.array(value) for key, value in fact.items()}}
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(kept) as partial, partial.open("wb") as file:
                np.savez(file, **stored)
    if progress is not None:
        progress(len(parts), len(parts), "learning the rounding")
    return found


def can_learn(module: GraphModule, node: Node) -> bool:
    """Whether a layer of the quantized graph has integer weights to round."""
    weight: Any = node.args[1]
    return isinstance(weight, Node) and weight.target is quantized.dequantize_per_channel.default


def _weight_of(module: GraphModule, floats: GraphModule, node: Node, target: Node) -> _Weight:
    dequantize: Any = node.args[1]
    weight = attribute(floats, str(target.args[1].target)).detach()  # type: ignore[union-attr]
    scales = attribute(module, str(dequantize.args[1].target)).view(-1, *[1] * (weight.dim() - 1))
    floor = torch.floor(weight / scales)
    share = torch.clamp(weight / scales - floor, 0.0, 1.0)
    # Its rectified sigmoid begins at the share that rounding up would add.
    logit = torch.logit((share - _STRETCH_LOW) / (_STRETCH_HIGH - _STRETCH_LOW)).requires_grad_(True)
    place = str(dequantize.args[0].target)
    return _Weight(place, scales, attribute(module, place).float(), floor, logit, int(dequantize.args[5]))


def _learn(
    piece: Callable[..., torch.Tensor],
    weights: Sequence[_Weight],
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    iterations: int,
    seed: tuple[int, int],
) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    """The integers of each layer's weight, and what they gained."""

    def computed(values: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return piece(x, *(value * weight.scales for value, weight in zip(values, weights, strict=True)))

    optimizer = torch.optim.Adam([weight.logit for weight in weights], lr=_LEARNING_RATE)
    generator = np.random.default_rng(seed)
    nearest = [weight.nearest for weight in weights]
    with torch.no_grad():
        before = _error(computed, nearest, inputs, outputs)
    regularizer = _REGULARIZER * before * outputs.shape[1] / sum(value.numel() for value in nearest)
    for step in range(iterations):
        chosen = torch.from_numpy(generator.integers(0, len(inputs), min(_BATCH, len(inputs))))
        ups = [weight.up() for weight in weights]
        got = computed([weight.on_grid(up) for weight, up in zip(weights, ups, strict=True)], inputs[chosen])
        loss = ((got - outputs[chosen]) ** 2).sum(1).mean()
        done = step / iterations
        if done >= _WARM_UP:
            beta = _BETA_LAST + (_BETA_FIRST - _BETA_LAST) * (1 - (done - _WARM_UP) / (1 - _WARM_UP))
            for up in ups:
                loss = loss + regularizer * (1 - (2 * up - 1).abs() ** beta).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        learned = [weight.on_grid((weight.logit >= 0).float()) for weight in weights]
        after = _error(computed, learned, inputs, outputs)
    # Never worse than rounding to nearest: on few images or with few iterations it can be.
    values = learned if after < before else nearest
    facts = [
        {
            "error_nearest": before,
            "error_learned": min(before, after),
            "moved": float((value != weight.nearest).float().mean()),
        }
        for value, weight in zip(values, weights, strict=True)
    ]
    return [value.to(torch.int8) for value in values], facts


def _error(
    computed: Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor],
    values: Sequence[torch.Tensor],
    inputs: torch.Tensor,
    outputs: torch.Tensor,
) -> float:
    pieces = zip(inputs.split(4 * _BATCH), outputs.split(4 * _BATCH), strict=True)
    return sum(float(((computed(values, x) - y) ** 2).sum(dtype=torch.float64)) for x, y in pieces) / outputs.numel()


def _piece(floats: GraphModule, part: Part) -> GraphModule:
    """A part as a function of its input and the weights of its layers, in their order."""
    graph = Graph()
    known: dict[Node, Node] = {part.source: graph.placeholder("x")}
    weights: dict[Node, Node] = {node: graph.placeholder(f"weight_{i}") for i, node in enumerate(part.layers)}

    def copied(node: Node) -> Node:
        if node in known:
            return known[node]
        if node.target is aten.sym_size.int and node.args[1] == 0:
            # The batch has one size everywhere, and what it was asked of may lie outside.
            known[node] = graph.call_function(aten.sym_size.int, (known[part.source], 0))
            return known[node]
        for source in node.all_input_nodes:
            if node not in weights or source is not node.args[1]:
                copied(source)
        given = {node.args[1]: weights[node]} if node in weights else {}
        known[node] = graph.node_copy(node, lambda source: given.get(source) or known[source])
        return known[node]

    graph.output(copied(part.output))
    return GraphModule(floats, graph)


def _as_read(node: Node) -> str:
    """The name of what the readers of a tensor get in the quantized graph: the tensor as its grid holds it."""
    for user in node.users:
        if user.target is quantized.quantize_per_tensor.default:
            return next(reader.name for reader in user.users)
    return node.name


class _ReachedError(Exception):
    """The value that was wanted is there."""


def _values(module: GraphModule, name: str, images: np.ndarray) -> torch.Tensor:
    """The value of one node for all images; what comes after it is not computed."""
    parts: list[torch.Tensor] = []

    class Until(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if n.name == name:
                parts.append(result)
                raise _ReachedError
            return result

    with torch.no_grad():
        until = Until(simulator(module))
        for start in range(0, len(images), 2 * _BATCH):
            try:
                until.run(torch.from_numpy(images[start : start + 2 * _BATCH]))
            except _ReachedError:
                continue
    return torch.cat(parts)
