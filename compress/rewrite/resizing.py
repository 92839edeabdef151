"""Resizing as products with matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.rewrite.edit import argument, buffer_before, call_before, finish, resized
from edgekit.program import aten, shape_of

# Each output is a weighted sum along the rows of weighted sums along the columns, whatever the image.
ANTIALIASED = (aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec)
BICUBIC = (aten.upsample_bicubic2d.vec,)


def resizing_to_products(module: GraphModule, operators: Sequence[Any] = (*ANTIALIASED, *BICUBIC)) -> int:
    """Writes resizing by these operators as a product with a matrix along each axis, in place; returns how many.

    Exact but for the order of the sums. TFLite has none of them: litert-torch refuses those with antialiasing, and writes the
    bicubic one as 16 gathered copies of the image, which take the wrong axes where the image was integers before (0.10.0:
    another function, or an error). ncnn's resizing has no antialiasing, and pnnx leaves it away without a word.
    """
    changed = 0
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    for node in list(module.graph.nodes):
        if node.target not in operators:
            continue
        result, value = node.args[0], node.args[0].meta["val"]
        sizes = zip(shape_of(result)[2:], shape_of(node)[2:], strict=True)
        for axis, (old, new) in enumerate(sizes):
            matrix = buffer_before(module, node, f"{node.name}_axis{axis}", _along(node, axis, old, new).to(dtype))
            # The product runs over the last axis.
            value = resized(value, axis + 2, new)
            if axis == 0:
                turned = value.permute(0, 1, 3, 2)
                result = call_before(node, aten.permute.default, (result, [0, 1, 3, 2]), resized(turned, 3, old))
                result = call_before(node, aten.linear.default, (result, matrix), turned)
                result = call_before(node, aten.permute.default, (result, [0, 1, 3, 2]), value)
            else:
                result = call_before(node, aten.linear.default, (result, matrix), value)
        node.replace_all_uses_with(result)
        module.graph.erase_node(node)
        changed += 1
    finish(module)
    return changed


def _along(node: Node, axis: int, old: int, new: int) -> torch.Tensor:
    """The matrix (new, old) of one axis: the operator's own answer, in float64, to each single point of it."""
    operator: Any = node.target
    points = torch.eye(old, dtype=torch.float64).reshape(1, 1, old, old)
    factors = argument(node, 3)
    # By the size or by the factor, as in the program: they may differ. The rows, one for each point, stay as many.
    told = ([old, new], node.args[2], None) if factors is None else (None, node.args[2], [1.0, factors[axis]])
    return torch.as_tensor(operator(points, *told)).reshape(old, new).T.contiguous()
