"""Passes that several formats need: the float program in its deployed form, and the int8 program in each format's grid."""

from __future__ import annotations

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.bundle import Bundle
from edgekit.compress.prune.sparse import expand_sparse
from edgekit.compress.quantize.codebook.coding import expand_codes
from edgekit.compress.rewrite import (
    adaptive_maximum_to_pool,
    attention_in_heads,
    finish,
    fold_batch_norm,
    remove_dropout,
    repeats_to_concatenation,
    replace_by_tensor,
)
from edgekit.compress.rewrite.edit import argument, call_before
from edgekit.errors import UnsupportedOperatorError
from edgekit.program import aten, attribute, layer_name, quantized, set_attribute

Q, DQ = quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default
DQ_CHANNEL = quantized.dequantize_per_channel.default
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_FORMATS_OF = {8: "any format", 16: "TFLite", 32: "ONNX"}


def deployed(bundle: Bundle) -> GraphModule:
    """The bundle's program as every format deploys it: no dropout, batch norms folded into what feeds them, and the like."""
    module = bundle.module()
    expand_codes(module)
    expand_sparse(module)
    remove_dropout(module)
    fold_batch_norm(module)
    attention_in_heads(module)
    adaptive_maximum_to_pool(module)
    repeats_to_concatenation(module)
    return module


def round_weights(module: GraphModule, precision: str) -> None:
    """Rounds every float32 weight to a half precision and back, in place: what a file that stores it so computes."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(HALVES[precision]).to(torch.float32)


def expand_weights(module: GraphModule) -> None:
    """Gives each int8 weight its float form with a quantize node before the dequantize node, in place.

    For converters that want to fold the weights themselves; exact, for quantizing a dequantized weight gives it back.
    """
    for node in list(module.graph.nodes):
        if node.target is DQ_CHANNEL and node.args[0].op == "get_attr":
            name = f"{node.args[0].target}_expanded"
            set_attribute(module, name, dequantized_weight(module, node))
            with module.graph.inserting_before(node):
                source = module.graph.get_attr(name)
                q = module.graph.call_function(quantized.quantize_per_channel.default, (source, *node.args[1:]))
            source.meta["val"] = q.meta["val"] = node.meta["val"]
            node.update_arg(0, q)
    finish(module)


def one_reader_each(module: GraphModule) -> None:
    """Gives every reader of a dequantized activation a dequantize node of its own, in place.

    litert-torch decides on a layout node by node, and fails where one dequantize node feeds two that want different ones.
    """
    for node in list(module.graph.nodes):
        if node.target is not DQ:
            continue
        for user in list(node.users)[1:]:
            with module.graph.inserting_after(node):
                twin = module.graph.call_function(DQ, node.args)
            twin.meta.update(node.meta)
            user.replace_input_with(node, twin)
    finish(module)


def pad_before_averages(module: GraphModule) -> int:
    """Gives average poolings of int8 values that count their padding an operator that pads, in place; returns how many.

    Exact: the padding is on the grid, as 0 always is. litert-torch pads with the integer 0 instead, which is another number.
    """
    changed = 0
    for node in list(module.graph.nodes):
        # Arguments: input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override.
        if node.target is not aten.avg_pool2d.default or len(node.args) < 4 or not any(node.args[3]):
            continue
        source, padding = node.args[0], node.args[3]
        if source.target is not DQ or argument(node, 4, False) or not argument(node, 5, True):
            continue
        rows, columns = padding[0], padding[-1]
        value = source.meta["val"]
        padded = value.new_empty([*value.shape[:2], value.shape[2] + 2 * rows, value.shape[3] + 2 * columns])
        made = source
        for target, arguments in (
            (aten.pad.default, ([columns, columns, rows, rows], "constant", 0.0)),
            (Q, source.args[1:]),
            (DQ, source.args[1:]),
        ):
            result = padded.to(source.args[5]) if target is Q else padded
            made = call_before(node, target, (made, *arguments), result)
        node.args = (made, *node.args[1:3], [0, 0], *node.args[4:])
        changed += 1
    finish(module)
    return changed


def dequantized_weight(module: GraphModule, node: Node) -> torch.Tensor:
    """The float32 weight that a per-channel dequantize node gives."""
    values = attribute(module, str(node.args[0].target))  # type: ignore[union-attr]
    scales = attribute(module, str(node.args[1].target))  # type: ignore[union-attr]
    return values.to(torch.float32) * scales.view(-1, *[1] * (values.dim() - 1))


def narrow_weights(module: GraphModule) -> list[Node]:
    """The layers whose weights fit into 4 bits, in order."""
    found = []
    for node in weight_nodes(module):
        weight = node.args[1]
        if isinstance(weight, Node) and weight.target is DQ_CHANNEL and int(weight.args[5]) <= 7:  # type: ignore[arg-type]
            found.append(node)
    return found


def refuse_few_levels(module: GraphModule, runtime: str) -> None:
    """Refuses activations of fewer than 8 bits for a format that can't compute them as they were trained.

    Raises:
        UnsupportedOperatorError: Naming the first layer that reads such an activation.
    """
    for node in weight_nodes(module):
        source = node.args[0]
        if source.target is DQ and source.args[0].target is Q and source.args[0].args[0].target is aten.clamp.default:
            raise UnsupportedOperatorError(
                f"{layer_name(node)} reads activations of fewer than 8 bits, which {runtime} has no form for: its kernels "
                "round between the two grids in another way",
                "Export it to ONNX, or train with activation_bits=8.",
            )


def activation_bits(module: GraphModule) -> int:
    """How activations of a quantized program are held: 8, 16, or 32 where its weights alone are integers."""
    types = {node.args[5] for node in module.graph.nodes if node.target is Q}
    return 16 if torch.int16 in types else 8 if types else 32


def refuse_other_activations(module: GraphModule, runtime: str, allowed: tuple[int, ...]) -> None:
    """Refuses a quantized program whose activations have a width that a format has no kernels for.

    Raises:
        UnsupportedOperatorError: With the formats that have.
    """
    bits = activation_bits(module)
    if bits in allowed:
        return
    what = "16-bit activations" if bits == 16 else "quantized weights with float activations"
    raise UnsupportedOperatorError(
        f"{runtime} has no kernels for {what}, so that file would compute something else",
        f"Export it to {_FORMATS_OF[bits]}, or quantize with activation_bits=8.",
    )


def pack_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Two values of 4 bits or four of 2 to a byte, the first in the lowest bits, as ONNX and TFLite have it.

    Args:
        values: Integers of so many bits, signed or not, any shape.
        bits: 4 or 2.

    Returns:
        uint8, shape (ceil(size * bits / 8),).
    """
    each = 8 // bits
    flat = values.reshape(-1).astype(np.uint8) & np.uint8(2**bits - 1)
    padded = np.append(flat, np.zeros(-len(flat) % each, np.uint8)).reshape(-1, each)
    return np.bitwise_or.reduce(padded << (bits * np.arange(each, dtype=np.uint8)), axis=1).astype(np.uint8)


def strip_quantization(module: GraphModule) -> dict[str, tuple[float, int]]:
    """Takes every quantize/dequantize pair out, in place, leaving dequantized float weights.

    Returns:
        Scale and zero point of every tensor that was quantized, by the name of its node.
    """
    found: dict[str, tuple[float, int]] = {}
    for node in list(module.graph.nodes):
        if node.target is DQ and node.args[0].target is Q:
            q = node.args[0]
            found[q.args[0].name] = (float(q.args[1]), int(q.args[2]))
            node.replace_all_uses_with(q.args[0])
            module.graph.erase_node(node)
            if not q.users:
                module.graph.erase_node(q)
        elif node.target is DQ_CHANNEL:
            name = str(node.args[0].target).removesuffix("_int8")
            replace_by_tensor(module, node, name, dequantized_weight(module, node))
    finish(module)
    return found


def weight_nodes(module: GraphModule) -> list[Node]:
    """The convolutions and linear layers of a graph, in order."""
    targets = (aten.conv1d.default, aten.conv2d.default, aten.linear.default)
    return [node for node in module.graph.nodes if node.target in targets]
