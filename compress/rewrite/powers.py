"""Powers in products and a square root."""

from __future__ import annotations

from torch.fx import GraphModule

from edgekit.compress.rewrite.edit import call_before, finish
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
        root = [call_before(node, aten.sqrt.default, (source,), value)] if half else []
        product, *factors = [source] * int(whole) + root
        for factor in factors:
            product = call_before(node, aten.mul.Tensor, (product, factor), value)
        node.replace_all_uses_with(product)
        module.graph.erase_node(node)
        changed += 1
    finish(module)
    return changed


def _is_product(exponent: float) -> bool:
    return 0 < exponent <= _MOST and exponent % 0.5 == 0 and exponent not in (1, 2)
