"""Batch norm folded into the layer before it."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.edit import finish
from edgekit.program import aten, attribute, set_attribute

FOLDS_INTO = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)


def fold_batch_norm(module: GraphModule) -> int:
    """Folds each batch norm into the convolution or linear layer that alone feeds it, in place.

    With running mean m, variance v, scale g and shift b: W' = W g / sqrt(v + e), bias' = (bias - m) g / sqrt(v + e) + b
    (Jacob et al., CVPR 2018, section 3.2). Computed in float64 and rounded once.

    Returns:
        How many were folded.
    """
    folded = 0
    for node in list(module.graph.nodes):
        if node.target is not aten.batch_norm.default:
            continue
        source = node.args[0]
        if not (isinstance(source, Node) and source.target in FOLDS_INTO and len(source.users) == 1):
            continue
        weight = source.args[1]
        bias = source.args[2] if len(source.args) > 2 else None
        if not isinstance(weight, Node) or weight.op != "get_attr" or len(weight.users) > 1:
            continue
        kernel = attribute(module, str(weight.target))
        channels = kernel.shape[0]
        scale, shift = scale_and_shift(module, node, tensor_of(module, bias, 0.0, channels))
        new_kernel = kernel.detach().double() * scale.view(-1, *[1] * (kernel.dim() - 1))
        set_attribute(module, str(weight.target), torch.nn.Parameter(new_kernel.to(kernel.dtype)))
        name = str(weight.target).removesuffix("weight") + "bias"
        set_attribute(module, name, torch.nn.Parameter(shift.to(kernel.dtype)))
        with module.graph.inserting_before(source):
            new_bias = module.graph.get_attr(name)
        new_bias.meta["val"] = torch.empty(channels, device="meta")
        source.args = (*source.args[:2], new_bias, *source.args[3:])
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        folded += 1
    finish(module)
    return folded


def scale_and_shift(module: GraphModule, node: Node, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch norm in evaluation makes of x + bias: x · scale + shift, float64, one of each per channel."""
    _, gamma, beta, mean, variance, _, _, epsilon, *_ = node.args
    channels = len(bias)
    scale = tensor_of(module, gamma, 1.0, channels) / torch.sqrt(tensor_of(module, variance, 1.0, channels) + epsilon)
    return scale, (bias - tensor_of(module, mean, 0.0, channels)) * scale + tensor_of(module, beta, 0.0, channels)


def tensor_of(module: GraphModule, argument: object, default: float, size: int) -> torch.Tensor:
    """The tensor that an argument names, in float64; a constant where there is none, such as a bias that was left out."""
    if isinstance(argument, Node):
        return attribute(module, str(argument.target)).detach().double()
    return torch.full((size,), default, dtype=torch.float64)
