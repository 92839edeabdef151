"""Where quantize/dequantize pairs stand in a program, and which tensors share one scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.quantize.rules import FIXED, FUSES_ACTIVATION, RULES, Role
from edgekit.compress.quantize.scheme import AffineParameters, quantize_weight, weight_max, weight_scales
from edgekit.compress.rewrite import finish
from edgekit.program import aten, attribute, layer_name, quantized, set_attribute

# Half of what int32 holds, so that bias correction has room.
_BIAS_STEPS = 2.0**30


@dataclass
class Plan:
    """The annotation of one graph.

    Attributes:
        values: Nodes whose result becomes int8, in the order of the graph.
        compute: Nodes whose weight becomes int8.
        in_float: Nodes that stay in float, with the reason.
    """

    values: list[Node]
    compute: list[Node]
    in_float: list[tuple[Node, str]]
    _shares: dict[Node, Node]

    def leader(self, node: Node) -> Node:
        """The node whose scale this one takes."""
        while self._shares.get(node, node) is not node:
            node = self._shares[node]
        return node

    def fixed(self, bits: int = 8) -> dict[Node, AffineParameters]:
        """The grids that the operators give, by the leader: calibration and training have no say in them.

        A tensor that others share its scale with, through a concatenation, has none: theirs may be wider.
        """
        known, kinds = FIXED.get(bits, {}), dict[Node, set[Any]]()
        for node in self.values:
            if RULES.get(node.target) is not Role.SAME_RANGE:
                kinds.setdefault(self.leader(node), set()).add(known.get(node.target))
        grids = {leader: next(iter(kind)) for leader, kind in kinds.items() if len(kind) == 1 and None not in kind}
        return {leader: AffineParameters(scale, zero_point, bits) for leader, (scale, zero_point) in grids.items()}


def make_plan(module: GraphModule, keep_float: tuple[str, ...] = ()) -> Plan:
    """Annotates a graph whose batch norms are folded.

    Args:
        module: The graph; it is not changed.
        keep_float: Name patterns (``fnmatch``) of layers that stay in float.
    """
    import fnmatch

    roles: dict[Node, Role] = {}
    in_float: list[tuple[Node, str]] = []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target is aten.sym_size.int or _is_integer(node):
            continue
        role = RULES.get(node.target)
        if role is Role.COMPUTE and any(fnmatch.fnmatch(layer_name(node), pattern) for pattern in keep_float):
            in_float.append((node, "kept in float on request"))
        elif role is None:
            if isinstance(node.meta.get("val"), torch.Tensor):
                in_float.append((node, f"{node.target} has no integer form here"))
        else:
            roles[node] = role
    marked = _marked(module, roles)
    shares = _sharing(module, roles, marked)
    order = [node for node in module.graph.nodes if node in marked]
    compute = [node for node, role in roles.items() if role is Role.COMPUTE]
    return Plan(order, compute, in_float, shares)


def _is_integer(node: Node) -> bool:
    """Whether a node gives indices or truth values: they stay what they are."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_floating_point()


def _marked(module: GraphModule, roles: dict[Node, Role]) -> set[Node]:
    marked: set[Node] = set()
    for node, role in roles.items():
        marked.update(s for s in tensor_inputs(node) if not _is_list(s) and not _is_integer(s))
        if not _is_list(node) and not _fused_into_next(node, role, roles):
            marked.add(node)
    # Producer and activation are one operator to the runtime: nothing is quantized between them.
    return {node for node in marked if not _fused_into_next(node, roles.get(node), roles)}


def _fused_into_next(node: Node, role: Role | None, roles: dict[Node, Role]) -> bool:
    users = list(node.users)
    return (
        role is not None and node.target in FUSES_ACTIVATION and len(users) == 1 and roles.get(users[0]) is Role.FUSED
    )


def _sharing(module: GraphModule, roles: dict[Node, Role], marked: set[Node]) -> dict[Node, Node]:
    """Union of the tensors that hand the same int8 values on."""
    parent: dict[Node, Node] = {node: node for node in module.graph.nodes}

    def find(node: Node) -> Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node, role in roles.items():
        if role is Role.SAME_RANGE:
            for source in tensor_inputs(node):
                a, b = find(source), find(node)
                if a is not b:
                    parent[b] = a
    return {node: find(node) for node in module.graph.nodes if node in marked}


def tensor_inputs(node: Node) -> list[Node]:
    """The nodes whose activations this one reads (no weights, no sizes)."""
    return [
        source for source in node.all_input_nodes if source.op != "get_attr" and source.target is not aten.sym_size.int
    ]


def _is_list(node: Node) -> bool:
    return not isinstance(node.meta.get("val"), torch.Tensor)


def insert(
    module: GraphModule,
    plan: Plan,
    parameters: Mapping[Node, AffineParameters],
    bits: Mapping[str, int] | None = None,
    *,
    per_channel: bool = True,
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor, int]] | None = None,
) -> None:
    """Puts the quantize/dequantize pairs and the integer weights into the graph, in place.

    Args:
        module: The graph that the plan was made for.
        plan: Which tensors become int8.
        parameters: Scale and zero point for each leader of a shared scale.
        bits: Of the weights, by the name of the layer; 8 where it says nothing.
        per_channel: A weight scale for each output channel, or the same for all of a layer.
        weights: Integers, scale of each channel and largest integer, by the name of the node, where they are known
            already; the others are rounded to nearest.
    """
    graph = module.graph
    for node in plan.compute:
        known = (weights or {}).get(node.name)
        source = node.args[0]
        step = parameters[plan.leader(source)].scale if source in plan.values else None  # type: ignore[index]
        _quantize_weight_of(module, node, (bits or {}).get(layer_name(node), 8), per_channel, step, known)
    for node in plan.values:
        bounds = parameters[plan.leader(node)].bounds
        with graph.inserting_after(node):
            q = graph.call_function(quantized.quantize_per_tensor.default, (node, *bounds))
        with graph.inserting_after(q):
            dq = graph.call_function(quantized.dequantize_per_tensor.default, (q, *bounds))
        q.meta["val"] = node.meta["val"].to(bounds[-1])
        dq.meta["val"] = node.meta["val"]
        for added in (q, dq):
            added.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
        node.replace_all_uses_with(dq, delete_user_cb=lambda user, q=q: user is not q)
    finish(module)


def _quantize_weight_of(
    module: GraphModule,
    node: Node,
    bits: int,
    per_channel: bool,
    input_scale: float | None,
    known: tuple[torch.Tensor, torch.Tensor, int] | None,
) -> None:
    source = node.args[1]
    if not isinstance(source, Node) or source.op != "get_attr":
        return
    name = str(source.target)
    if known is not None:
        values, scales, top = known
    else:
        weight = attribute(module, name).detach()
        scales = weight_scales(weight, bits, per_channel=per_channel)
        bias = node.args[2] if len(node.args) > 2 else None
        if input_scale is not None and isinstance(bias, Node) and bias.op == "get_attr":
            # The bias is held in 32 bits of s_x s_w: a channel of next to no weight must not make that too fine for it.
            least = attribute(module, str(bias.target)).detach().abs() / (input_scale * _BIAS_STEPS)
            scales = torch.maximum(scales, least.to(torch.float32))
        values, top = quantize_weight(weight, scales, bits), weight_max(bits)
    set_attribute(module, f"{name}_int8", values)
    set_attribute(module, f"{name}_scale", scales)
    set_attribute(module, f"{name}_zero_point", torch.zeros_like(scales, dtype=torch.int64))
    with module.graph.inserting_before(node):
        tensors = [module.graph.get_attr(f"{name}_{part}") for part in ("int8", "scale", "zero_point")]
        dq = module.graph.call_function(quantized.dequantize_per_channel.default, (*tensors, 0, -top, top, torch.int8))
    for tensor in tensors:
        tensor.meta["val"] = attribute(module, str(tensor.target))
    dq.meta["val"] = source.meta["val"]
    node.update_arg(1, dq)
