"""What computes nothing in evaluation is taken out: dropout, and operators that hand their input on."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.edit import argument, finish
from edgekit.program import aten, shape_of

_DROPOUT = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
_COPIES = (aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default)
_RESHAPES = (
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.squeeze.dim, aten.squeeze.dims,
    aten.expand.default, aten.adaptive_avg_pool2d.default,
)  # fmt: skip
# A second time they change nothing.
_IDEMPOTENT = (aten.relu.default, aten.relu6.default)


def remove_dropout(module: GraphModule) -> int:
    """Removes dropout, which does nothing in evaluation, in place; returns how many."""
    return _remove(module, [node for node in module.graph.nodes if node.target in _DROPOUT])


def remove_identities(module: GraphModule) -> int:
    """Removes operators that give what they are given, in place; returns how many.

    Copies, conversions to the type that is there, reshapes and permutations to the same, poolings over single elements,
    concatenations of one tensor, additions of 0 and products with 1, and an activation twice in a row.
    """
    removed = 0
    # One may only come to light when another behind it is gone.
    while found := [node for node in module.graph.nodes if node.op == "call_function" and _is_identity(node)]:
        removed += _remove(module, found)
    return removed


def remove_dead_code(module: GraphModule) -> int:
    """Removes what the output does not depend on, in place; returns how many operators."""
    before = sum(node.op == "call_function" for node in module.graph.nodes)
    finish(module)
    return before - sum(node.op == "call_function" for node in module.graph.nodes)


def _remove(module: GraphModule, nodes: list[Node]) -> int:
    for node in nodes:
        source = node.args[0]
        node.replace_all_uses_with(source[0] if isinstance(source, (list, tuple)) else source)
        module.graph.erase_node(node)
    finish(module)
    return len(nodes)


def _is_identity(node: Node) -> bool:
    target, source = node.target, node.args[0] if node.args else None
    if target is aten.cat.default:
        return isinstance(source, (list, tuple)) and len(source) == 1
    if not isinstance(source, Node) or not hasattr(source.meta.get("val"), "shape"):
        return False
    if target in _COPIES:
        return True
    if target is aten.to.dtype:
        return bool(node.args[1] == source.meta["val"].dtype)
    if target in _RESHAPES:
        return shape_of(node) == shape_of(source)
    if target is aten.permute.default:
        return all(d % len(node.args[1]) == place for place, d in enumerate(node.args[1]))
    if target is aten.max_pool2d.default:
        return shape_of(node) == shape_of(source) and _all(node, 1, 1) and _all(node, 3, 0)
    if target is aten.avg_pool2d.default:
        # A divisor of one's own scales.
        return (
            shape_of(node) == shape_of(source) and _all(node, 1, 1) and _all(node, 3, 0) and argument(node, 6) is None
        )
    if target in (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar):
        return _is_number(node, 0)
    if target in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        return _is_number(node, 1) and not node.kwargs
    return target in _IDEMPOTENT and source.target is target


def _is_number(node: Node, number: int) -> bool:
    given, source = argument(node, 1), node.args[0]
    # A sum with a float makes floats of integers.
    same_type = node.meta["val"].dtype == source.meta["val"].dtype  # type: ignore[union-attr]
    return isinstance(given, (int, float)) and given == number and bool(same_type)


def _all(node: Node, position: int, value: int) -> bool:
    given = argument(node, position) or []
    return all(item == value for item in given)
