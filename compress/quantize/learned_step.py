"""Quantizers whose step is learned with the weights, in the graph while it trains and out of it when it is deployed.

Esser et al., "Learned Step Size Quantization", ICLR 2020: equations 1 and 2 forwards, 3 backwards (by straight-through
rounding, autograd gives exactly it), with the gradient scale of section 2.2. Weights are quantized before batch norm, each
output channel with a step of its own; folding the batch norm then only multiplies the steps, so that what was trained is
what is deployed: s' = s |g| / sqrt(v + e), and channels of negative g change their sign.

Weights of one bit are +s and -s, with s learned (Faraone et al., "SYQ: Learning Symmetric Quantization for Efficient Deep
Neural Networks", CVPR 2018, section 3): one for each output channel, for integer kernels fold no finer scale. Those of two
bits are +-s and +-3s (Choi et al., "Accurate and Efficient 2-bit Quantized Neural Networks", MLSys 2019): with a
zero a symmetric grid would have three levels, and batch norms of negative factor forbid one that is not symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Node

from edgekit.compress.quantize.bias import round_biases
from edgekit.compress.quantize.plan import Plan, insert, make_plan
from edgekit.compress.quantize.scheme import AffineParameters, weight_max, weight_scales
from edgekit.compress.rewrite import finish, fold_batch_norm
from edgekit.program import aten, attribute, duplicate, layer_name, node_values, quantized

_SMALLEST = 1e-9


class _LearnedStepFunction(torch.autograd.Function):
    """Equations 1 to 3 with one tensor saved: composed of torch's operators it takes over twice the time and memory."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, low: int, high: int, gradient_scale: float
    ) -> torch.Tensor:
        spread = _along_channels(scale, x)
        level = x / spread
        ctx.save_for_backward(level, scale)
        ctx.settings = low, high, gradient_scale
        return level.clamp(low, high).round_().mul_(spread)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        level, scale = ctx.saved_tensors
        low, high, gradient_scale = ctx.settings
        # Masks and selections take ten times as long as arithmetic: the gradient inside, and what is left of it outside.
        inside = aten.hardtanh_backward(gradient, level, low, high)
        clamped = level.clamp(low, high)
        # Equation 3: round(x / s) - x / s inside, the bound outside, where rounding changes nothing.
        within, beyond = clamped.round().sub_(clamped), gradient - inside
        slope = within.mul_(gradient).addcmul_(beyond, clamped)
        total = slope.flatten(1).sum(1) if scale.dim() else slope.sum()
        return inside, total * gradient_scale, None, None, None


def _along_channels(scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A scale of each channel in dimension 0, to be multiplied with x; a single scale as it is."""
    return scale.view(-1, *[1] * (x.dim() - 1)) if scale.dim() else scale


class LearnedStep(nn.Module):
    """x' = s round(clamp(x / s, low, high)), with s learned.

    Args:
        scale: float32: shape () for an activation, (channels,) for a weight.
        low: Smallest level, an integer at most 0.
        high: Largest level.
        elements: Values that share one step, for the scale of its gradient.
    """

    def __init__(self, scale: torch.Tensor, low: int, high: int, elements: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.clone())
        self.low, self.high = low, high
        self.gradient_scale = 1.0 / math.sqrt(elements * max(high, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The quantized values, float32, of the shape of ``x``."""
        quantized: torch.Tensor = _LearnedStepFunction.apply(  # type: ignore[no-untyped-call]
            x, self.step(), self.low, self.high, self.gradient_scale
        )
        return quantized

    def levels(self, x: torch.Tensor) -> torch.Tensor:
        """The integers that ``x`` is rounded to, as float32."""
        return torch.round(torch.clamp(x / _along_channels(self.step(), x), self.low, self.high))

    def step(self) -> torch.Tensor:
        """The step, positive."""
        return self.scale.abs().clamp_min(_SMALLEST)


class _LearnedSignFunction(torch.autograd.Function):
    """The sign passes gradients straight through where |x| <= 1 (Hubara et al., NeurIPS 2016, equation 4)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, gradient_scale: float) -> torch.Tensor:
        ctx.save_for_backward(x, scale)
        ctx.gradient_scale = gradient_scale
        return _sign(x) * _along_channels(scale, x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        x, _ = ctx.saved_tensors
        total = (gradient * _sign(x)).flatten(1).sum(1)
        return gradient * (x.abs() <= 1), total * ctx.gradient_scale, None


def _sign(x: torch.Tensor) -> torch.Tensor:
    """+1 and -1; 0 is +1, for there is no third level."""
    return torch.where(x < 0, -1.0, 1.0)


class LearnedSign(LearnedStep):
    """x' = s sign(x), with s learned for each output channel; it begins with the mean magnitude.

    Args:
        weight: The weight, shape (channels, …).
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight.abs().flatten(1).mean(1).clamp_min(_SMALLEST), -1, 1, weight[0].numel())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The quantized values, float32, of the shape of ``x``."""
        signs: torch.Tensor = _LearnedSignFunction.apply(x, self.step(), self.gradient_scale)  # type: ignore[no-untyped-call]
        return signs

    def levels(self, x: torch.Tensor) -> torch.Tensor:
        """The signs."""
        return _sign(x)


class _LearnedOddFunction(torch.autograd.Function):
    """As :class:`_LearnedStepFunction`, for odd levels: inside, each stands for the values within one step of it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, gradient_scale: float) -> torch.Tensor:
        spread = _along_channels(scale, x)
        level = x / spread
        ctx.save_for_backward(level, scale)
        ctx.gradient_scale = gradient_scale
        return _odd(level).mul_(spread)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        level, _ = ctx.saved_tensors
        inside = aten.hardtanh_backward(gradient, level, -_ODD_END, _ODD_END)
        slope = _odd(level).mul_(gradient).addcmul_(level, inside, value=-1)
        return inside, slope.flatten(1).sum(1) * ctx.gradient_scale, None


# Of the levels -3, -1, 1 and 3 the outermost stands for values up to here.
_ODD_END = 4.0
# The step of least squared error for a normal distribution: half of 0.9957 standard deviations (Max, "Quantizing for Minimum
# Distortion", IRE Transactions on Information Theory 1960, table II, four levels).
_ODD_START = 0.4979


def _odd(level: torch.Tensor) -> torch.Tensor:
    """The nearest of -3, -1, 1 and 3; 0 goes to 1."""
    return level.mul(0.5).floor_().mul_(2).add_(1).clamp_(-3, 3)


class LearnedOddStep(LearnedStep):
    """x' = s q with q in -3, -1, 1, 3, the nearest, and s learned for each output channel.

    Args:
        weight: The weight, shape (channels, …).
    """

    def __init__(self, weight: torch.Tensor) -> None:
        spread = weight.flatten(1).std(1, correction=0).clamp_min(_SMALLEST)
        super().__init__(_ODD_START * spread, -3, 3, weight[0].numel())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The quantized values, float32, of the shape of ``x``."""
        quantized: torch.Tensor = _LearnedOddFunction.apply(x, self.step(), self.gradient_scale)  # type: ignore[no-untyped-call]
        return quantized

    def levels(self, x: torch.Tensor) -> torch.Tensor:
        """The integers."""
        return _odd(x / _along_channels(self.step(), x))


@dataclass
class Quantizers:
    """Where the learned steps of a training graph are, by the names of their submodules.

    Attributes:
        weights: For each layer's node name.
        values: For each leader of a shared int8 scale: the submodule and its zero point.
        inputs: For each tensor that layers read with fewer bits: the submodule and the layers' node names.
    """

    weights: dict[str, str] = field(default_factory=dict)
    values: dict[str, tuple[str, int]] = field(default_factory=dict)
    inputs: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)


def prepare(
    module: GraphModule,
    plan: Plan,
    parameters: Mapping[Node, AffineParameters],
    weight_bits: Mapping[str, int],
    activation_bits: Mapping[str, int],
    images: np.ndarray,
) -> Quantizers:
    """Puts learned steps into a graph with its batch norms, in place.

    Args:
        module: The graph to train.
        plan: Of its folded twin, where nodes have the same names.
        parameters: Calibrated int8 scale and zero point for each leader of a shared scale.
        weight_bits: For each layer's node name.
        activation_bits: Of what the layer reads; 8 is the plan's int8 tensor itself.
        images: Real inputs, to begin with steps of the right size.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    twins = {node.name for node in plan.values[0].graph.nodes}
    found = Quantizers()
    values, fixed = node_values(module, torch.from_numpy(images)), plan.fixed()
    for node in plan.compute:
        layer = nodes[node.name]
        weight = attribute(module, str(layer.args[1].target)).detach()  # type: ignore[union-attr]
        bits = weight_bits[node.name]
        made = _weight_quantizer(weight, bits)
        found.weights[node.name] = _add(module, f"quantizer_weight_{node.name}", made)
        with module.graph.inserting_before(layer):
            layer.update_arg(1, module.graph.call_module(found.weights[node.name], (layer.args[1],)))
    for value in plan.values:
        leader = plan.leader(value)
        place = _behind_batch_norm(nodes[value.name], twins)
        calibrated = parameters[leader]
        if leader.name not in found.values:
            low, high = -128 - calibrated.zero_point, 127 - calibrated.zero_point
            made = LearnedStep(torch.tensor(calibrated.scale), low, high, _elements(values[place.name]))
            made.scale.requires_grad_(leader not in fixed)
            name = _add(module, f"quantizer_value_{leader.name}", made)
            found.values[leader.name] = (name, calibrated.zero_point)
        readers = [
            nodes[node.name]
            for node in plan.compute
            if nodes[node.name].args[0] is place and activation_bits[node.name] < 8
        ]
        with module.graph.inserting_after(place):
            whole = module.graph.call_module(found.values[leader.name][0], (place,))
        place.replace_all_uses_with(whole, delete_user_cb=lambda user, whole=whole: user is not whole)
        if readers:
            bits = activation_bits[readers[0].name]
            _add_input(module, found, value.name, whole, readers, bits, values[place.name])
    module.graph.lint()
    module.recompile()
    return found


def _weight_quantizer(weight: torch.Tensor, bits: int) -> LearnedStep:
    if bits == 1:
        return LearnedSign(weight)
    if bits == 2:
        return LearnedOddStep(weight)
    return LearnedStep(weight_scales(weight, bits), -weight_max(bits), weight_max(bits), weight[0].numel())


def _elements(value: torch.Tensor) -> int:
    """How many numbers of one image share a step; a number that no image has part in is one."""
    return value[0].numel() if value.dim() else 1


def _add_input(
    module: GraphModule,
    found: Quantizers,
    name: str,
    source: Node,
    readers: list[Node],
    bits: int,
    value: torch.Tensor,
) -> None:
    """A second quantizer of fewer bits between a tensor and the layers that read it; a shortcut keeps its 8."""
    unsigned = float(value.min()) >= 0
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    # Section 2.1: 2 E|x| / sqrt(Qp).
    start = (2 * value.abs().mean() / math.sqrt(high)).clamp_min(_SMALLEST)
    made = LearnedStep(start, low, high, _elements(value))
    place = _add(module, f"quantizer_input_{name}", made)
    with module.graph.inserting_after(source):
        few = module.graph.call_module(place, (source,))
    for reader in readers:
        reader.update_arg(0, few)
    found.inputs[name] = (place, tuple(reader.name for reader in readers))


def convert(module: GraphModule, trained: GraphModule, found: Quantizers, keep_float: tuple[str, ...]) -> None:
    """Makes a float graph the quantized one that was trained, in place.

    Args:
        module: The graph before :func:`prepare`, with batch norms.
        trained: The trained graph.
        found: What ``prepare`` gave.
        keep_float: As for the plan.
    """
    state = trained.state_dict()
    own = module.state_dict()
    module.load_state_dict({name: state[name] for name in own})
    nodes = {node.name: node for node in module.graph.nodes}
    integers: dict[str, torch.Tensor] = {}
    steps: dict[str, torch.Tensor] = {}
    for name, place in found.weights.items():
        quantizer: Any = trained.get_submodule(place)
        weight = attribute(module, str(nodes[name].args[1].target)).detach()  # type: ignore[union-attr]
        step = quantizer.step().detach()
        spread = step.view(-1, *[1] * (weight.dim() - 1))
        integers[name] = quantizer.levels(weight)
        steps[name] = step
        # Exactly representable, so that folding multiplies nothing but the step.
        attribute(module, str(nodes[name].args[1].target)).data = integers[name] * spread  # type: ignore[union-attr]
    factors = _batch_norm_factors(module, list(found.weights))
    fold_batch_norm(module)
    plan = make_plan(module, keep_float)
    weights = {}
    for node in plan.compute:
        factor = factors.get(node.name, torch.ones_like(steps[node.name], dtype=torch.float64))
        sign = torch.where(factor < 0, -1.0, 1.0).view(-1, *[1] * (integers[node.name].dim() - 1))
        # A channel that batch norm switches off keeps a step that can be inverted, and zeros.
        alive = (factor != 0).view_as(sign)
        scale = torch.where(factor != 0, steps[node.name].double() * factor.abs(), steps[node.name].double())
        top = int(trained.get_submodule(found.weights[node.name]).high)  # type: ignore[arg-type]
        weights[node.name] = ((integers[node.name] * sign * alive).to(torch.int8), scale.to(torch.float32), top)
    parameters = {}
    for value in plan.values:
        name, zero_point = found.values[plan.leader(value).name]
        step = trained.get_submodule(name).step().detach()  # type: ignore[operator]
        parameters[plan.leader(value)] = AffineParameters(float(step), zero_point)
    insert(module, plan, parameters, weights=weights)
    nodes = {node.name: node for node in module.graph.nodes}
    for place, readers in found.inputs.values():
        _narrow(module, trained.get_submodule(place), [nodes[name] for name in readers])
    finish(module)
    round_biases(module)


def _narrow(module: GraphModule, quantizer: Any, readers: list[Node]) -> None:
    """A clamp to the few levels, then an int8 tensor on their grid."""
    step = float(quantizer.step().detach())
    zero_point = -128 - quantizer.low if quantizer.low == 0 else 0
    source: Any = readers[0].args[0]
    graph = module.graph
    with graph.inserting_before(readers[0]):
        clamped = graph.call_function(aten.clamp.default, (source, quantizer.low * step, quantizer.high * step))
        bounds = (step, zero_point, -128, 127, torch.int8)
        q = graph.call_function(quantized.quantize_per_tensor.default, (clamped, *bounds))
        dq = graph.call_function(quantized.dequantize_per_tensor.default, (q, *bounds))
    clamped.meta["val"] = dq.meta["val"] = source.meta["val"]
    q.meta["val"] = source.meta["val"].to(torch.int8)
    for reader in readers:
        reader.update_arg(0, dq)


def _add(module: GraphModule, name: str, made: nn.Module) -> str:
    module.add_submodule(name, made)
    return name


def _behind_batch_norm(node: Node, twins: set[str]) -> Node:
    """The node whose value a folded twin's node has: the batch norm behind it where that is folded."""
    users = list(node.users)
    if len(users) == 1 and users[0].target is aten.batch_norm.default and users[0].name not in twins:
        return users[0]
    return node


def _batch_norm_factors(module: GraphModule, layers: list[str]) -> dict[str, torch.Tensor]:
    """g / sqrt(v + e) of the batch norm that will be folded into each layer, float64, shape (channels,)."""
    folded = duplicate(module)
    fold_batch_norm(folded)
    left = {node.name for node in folded.graph.nodes}
    found = {}
    for node in module.graph.nodes:
        if node.name not in layers:
            continue
        behind = _behind_batch_norm(node, left)
        if behind is not node:
            _, gamma, _, _, variance, _, _, epsilon, *_ = behind.args
            spread = torch.sqrt(attribute(module, str(variance.target)).double() + epsilon)
            one = torch.ones_like(spread)
            found[node.name] = (
                attribute(module, str(gamma.target)).detach().double() if gamma is not None else one
            ) / spread
    return found


def names_of(plan: Plan) -> dict[str, str]:
    """The layer that each computing node is, as the user calls it."""
    return {node.name: layer_name(node) for node in plan.compute}
