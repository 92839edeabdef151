"""What every rewrite needs to change a graph: parameters put into it, names that are free, and the clearing up."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.program import delete_unused_attributes, set_attribute


def finish(module: GraphModule) -> None:
    """Clears what an edit left without use, and compiles the graph again."""
    module.graph.eliminate_dead_code()
    delete_unused_attributes(module)
    module.graph.lint()
    module.recompile()


def replace_by_tensor(module: GraphModule, node: Node, name: str, value: torch.Tensor) -> None:
    """Puts a parameter in the place of a node that computed it, in place; call :func:`finish` when all are done."""
    plain = parameter_before(module, node, name, value)
    plain.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(plain)
    module.graph.erase_node(node)


def call_before(node: Node, target: Any, arguments: tuple[Any, ...], value: Any) -> Node:
    """Makes an operator before ``node`` that belongs to the same layer.

    Args:
        node: Whose place it takes a part of.
        target: The operator.
        arguments: Its arguments.
        value: What ``meta["val"]`` is to be: a tensor of the result's shape and type.
    """
    with node.graph.inserting_before(node):
        made: Node = node.graph.call_function(target, arguments)
    made.meta.update({**node.meta, "val": value})
    return made


def parameter_before(module: GraphModule, node: Node, name: str, value: torch.Tensor) -> Node:
    """Makes a parameter of this name, and the node that reads it, before ``node``."""
    return _stored_before(module, node, name, torch.nn.Parameter(value))


def buffer_before(module: GraphModule, node: Node, name: str, value: torch.Tensor) -> Node:
    """The same for a tensor that is not trained."""
    return _stored_before(module, node, name, value)


def _stored_before(module: GraphModule, node: Node, name: str, value: torch.Tensor) -> Node:
    set_attribute(module, name, value)
    with module.graph.inserting_before(node):
        made = module.graph.get_attr(name)
    made.meta["val"] = torch.empty_like(value, device="meta", requires_grad=False)
    return made


def free_name(module: GraphModule, wanted: str) -> str:
    """The dotted name of a module that does not exist yet: this one, or with a number behind it."""
    taken = {name for name, _ in module.named_modules(remove_duplicate=False)}
    found, number = wanted, 1
    while found in taken:
        number += 1
        found = f"{wanted}{number}"
    return found


def owned_parameter(node: Any) -> str | None:
    """The name of the tensor behind a ``get_attr`` node that one node alone reads; None for anything else."""
    owned = isinstance(node, Node) and node.op == "get_attr" and len(node.users) == 1
    return str(node.target) if owned else None


def argument(node: Node, position: int, default: Any = None) -> Any:
    """A positional argument, or its default when the graph leaves it out."""
    return node.args[position] if len(node.args) > position else default


def resized(value: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """A value for ``meta["val"]``, as ``value`` but of another size in one dimension."""
    sizes = list(value.shape)
    sizes[dim] = size
    return value.new_empty(sizes)
