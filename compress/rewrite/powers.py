"""Powers in products and a square root."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.edit import finish
from edgekit.program import aten

# Beyond, a product of so many factors has lost more by rounding than a logarithm has.
_MOST = 8


def powers_to_products(module: GraphModule) -> int:
    """Writes ``x ** 3`` as ``x * x * x``, and halves with a square root, in place; returns how many.

    To float rounding. ncnn takes the logarithm of x, which is none of 0 or less; squares and inverses it knows.
    """
    changed = 0
    for node in list(module.graph.nodes):
        if node.target is not aten.pow.Tensor_Scalar or not _is_product(float(node.args[1])):
            continue
        whole, half = divmod(float(node.args[1]), 1)
        source, value = node.args[0], node.args[0].meta["val"]
        with module.graph.inserting_before(node):

            def call(target: Any, *arguments: Node, like: Node = node, value: Any = value) -> Node:
                made: Node = like.graph.call_function(target, arguments)
                made.meta.update({**like.meta, "val": value})
                return made

            factors = [source] * int(whole) + ([call(aten.sqrt.default, source)] if half else [])
            product = factors[0]
            for factor in factors[1:]:
                product = call(aten.mul.Tensor, product, factor)
        node.replace_all_uses_with(product)
        module.graph.erase_node(node)
        changed += 1
    finish(module)
    return changed


def _is_product(exponent: float) -> bool:
    return 0 < exponent <= _MOST and exponent % 0.5 == 0 and exponent not in (1, 2)
