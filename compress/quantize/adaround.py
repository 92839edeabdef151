"""AdaRound: each weight is rounded up or down so that the layer's output is kept, not so that the weight is.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020: the asymmetric reconstruction with
the activation in it (equation 25), the rectified sigmoid (equation 23) and its regularizer (equation 24), annealed. Layers
are taken in the order of the graph; each sees its inputs as the rounded layers before it give them.

Rounding the layers of a block together (BRECQ, Li et al., ICLR 2021) was tried with equal weights for all outputs and kept
less of ResNet-20; the paper's weights by squared gradients (equation 10) were not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.compress.quantize.rules import RULES, Role
from edgekit.files import atomic_file
from edgekit.program import attribute, layer_name, quantized, shape_of
from edgekit.simulation import simulator

# Equation 23: a sigmoid stretched beyond 0 and 1, so that both are reached.
_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1
# Equation 24: weight of the regularizer, its exponent's path, and the share of the iterations before it sets in. The weight is
# relative to the error of rounding to nearest, for a fixed one would depend on the units of the layer. Chosen on validation
# images (ResNet-20, 3 bits): 30, 100, 300 give 10.3, 9.5 and 10.4 dB at a learning rate of 0.01, and 100 gives 12.6 at 0.02.
_REGULARIZER, _BETA_FIRST, _BETA_LAST, _WARM_UP = 100.0, 20.0, 2.0, 0.2
_LEARNING_RATE, _BATCH = 2e-2, 32
# Inputs and targets of one layer are held at once; of large maps, of fewer images.
_LARGEST_ELEMENTS = 2**27


def adaround(
    module: GraphModule,
    floats: GraphModule,
    layers: Sequence[str],
    images: np.ndarray,
    *,
    iterations: int = 1000,
    seed: int = 0,
    checkpoints: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Learns the rounding of every weight of the given layers, in place.

    Args:
        module: The graph with its quantize/dequantize nodes, weights rounded to nearest.
        floats: The float graph that it was made from; its nodes have the same names.
        layers: Names of the nodes whose weights are rounded anew, in the order of the graph.
        images: float32 inputs, shape (n, …).
        iterations: Steps of the optimizer for each layer.
        seed: Of the batches.
        checkpoints: A folder where each finished layer is kept, to resume from.
        progress: Told the layers done.

    Returns:
        For each layer the mean squared error of its output with rounding to nearest and with the learned one, and the
        share of weights (0 to 1) that are not rounded to nearest.
    """
    found: dict[str, dict[str, float]] = {}
    nodes = {node.name: node for node in module.graph.nodes}
    floating = {node.name: node for node in floats.graph.nodes}
    for position, name in enumerate(layers):
        node, target = nodes[name], floating[name]
        if progress is not None:
            progress(position, len(layers), f"learning the rounding of {layer_name(node)}")
        weight_node = node.args[1]
        if not isinstance(weight_node, Node) or weight_node.target is not quantized.dequantize_per_channel.default:
            continue
        place = str(weight_node.args[0].target)  # type: ignore[union-attr]
        kept = checkpoints / f"{position:03d}.npz" if checkpoints is not None else None
        if kept is not None and kept.is_file():
            with np.load(kept) as stored:
                attribute(module, place).copy_(torch.from_numpy(stored["values"]))
                found[layer_name(node)] = {key: float(stored[key]) for key in stored.files if key != "values"}
            continue
        elements = sum(int(np.prod(shape_of(n)[1:])) for n in (target.args[0], target))  # type: ignore[arg-type]
        few = images[: max(_BATCH, _LARGEST_ELEMENTS // elements)]
        inputs, outputs = _values(module, str(node.args[0]), few), _values(floats, name, few)
        values, facts = _learn(module, floats, node, target, inputs, outputs, iterations, (seed, position))
        attribute(module, place).copy_(values)
        found[layer_name(node)] = facts
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(kept) as partial, partial.open("wb") as file:
                np.savez(file, values=values.numpy(), **{k: np.array(v) for k, v in facts.items()})  # type: ignore[arg-type]
    if progress is not None:
        progress(len(layers), len(layers), "learning the rounding")
    return found


def _learn(
    module: GraphModule,
    floats: GraphModule,
    node: Node,
    target: Node,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    iterations: int,
    seed: tuple[int, int],
) -> tuple[torch.Tensor, dict[str, float]]:
    """The integers of one layer's weight, and what they gained."""
    dequantize: Any = node.args[1]
    top = int(dequantize.args[5])
    nearest = attribute(module, str(dequantize.args[0].target)).float()
    weight = attribute(floats, str(target.args[1].target)).detach()  # type: ignore[union-attr]
    scales = attribute(module, str(dequantize.args[1].target)).view(-1, *[1] * (weight.dim() - 1))
    bias = node.args[2] if len(node.args) > 2 else None
    shift = attribute(module, str(bias.target)).detach() if isinstance(bias, Node) else None
    activation = _activation_after(target)

    def computed(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return activation(node.target(x, values * scales, shift, *node.args[3:]))  # type: ignore[operator]

    floor = torch.floor(weight / scales)
    share = torch.clamp(weight / scales - floor, 0.0, 1.0)
    # Its rectified sigmoid begins at the share that rounding up would add.
    logit = torch.logit((share - _STRETCH_LOW) / (_STRETCH_HIGH - _STRETCH_LOW)).requires_grad_(True)
    optimizer = torch.optim.Adam([logit], lr=_LEARNING_RATE)
    generator = np.random.default_rng(seed)
    outputs = activation(outputs)
    with torch.no_grad():
        before = _error(computed, nearest, inputs, outputs)
    regularizer = _REGULARIZER * before * outputs.shape[1] / nearest.numel()
    for step in range(iterations):
        chosen = torch.from_numpy(generator.integers(0, len(inputs), min(_BATCH, len(inputs))))
        up = torch.clamp(torch.sigmoid(logit) * (_STRETCH_HIGH - _STRETCH_LOW) + _STRETCH_LOW, 0, 1)
        got = computed(torch.clamp(floor + up, -top, top), inputs[chosen])
        loss = ((got - outputs[chosen]) ** 2).sum(1).mean()
        done = step / iterations
        if done >= _WARM_UP:
            beta = _BETA_LAST + (_BETA_FIRST - _BETA_LAST) * (1 - (done - _WARM_UP) / (1 - _WARM_UP))
            loss = loss + regularizer * (1 - (2 * up - 1).abs() ** beta).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        learned = torch.clamp(floor + (logit >= 0), -top, top)
        after = _error(computed, learned, inputs, outputs)
    # Never worse than rounding to nearest: on few images or with few iterations it can be.
    values = learned if after < before else nearest
    facts = {
        "error_nearest": before,
        "error_learned": min(before, after),
        "moved": float((values != nearest).float().mean()),
    }
    return values.to(torch.int8), facts


def _error(
    computed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    values: torch.Tensor,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
) -> float:
    parts = zip(inputs.split(4 * _BATCH), outputs.split(4 * _BATCH), strict=True)
    return sum(float(((computed(values, x) - y) ** 2).sum(dtype=torch.float64)) for x, y in parts) / outputs.numel()


def _activation_after(node: Node) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation that runtimes compute inside this layer; what it cuts off need not be kept."""
    users = list(node.users)
    if len(users) == 1 and RULES.get(users[0].target) is Role.FUSED:
        user = users[0]
        return lambda value: user.target(value, *user.args[1:], **user.kwargs)  # type: ignore[operator]
    return lambda value: value


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
