"""Programs made from edited graphs without tracing them anew.

``torch.export`` runs a graph once with fake tensors, a second or more for a network of some hundred operators. Where an edit
put operators in and left the shapes as they were, every node knows its value already, and only the form has to be that of
an exported program: parameters and buffers come in as inputs ("lifted"), and nodes are named by their operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Node

from edgekit.arithmetic import no_collections
from edgekit.program import output_node, quiet, set_training


def lifted(module: GraphModule, like: ExportedProgram) -> ExportedProgram:
    """The program of an edited graph, as :func:`edgekit.program.export_program` would trace it, for a tenth of the time.

    Args:
        module: A graph made by :func:`edgekit.program.trainable` from ``like`` and edited since. Each of its operators has
            its value in ``meta["val"]``, and that is still true. It belongs to the program afterwards.
        like: The program that it was: what may vary in the shapes is taken from it.
    """
    with quiet(), no_collections():
        set_training(module, False)
        graph = Graph()
        inputs, places = _attributes(module, graph, _fake_mode(module))
        made: dict[Node, Node] = {}
        for node in module.graph.nodes:
            if node.op == "get_attr":
                made[node] = places[str(node.target)]
            elif node.op == "placeholder":
                made[node] = graph.placeholder(node.name)
                made[node].meta["val"] = node.meta["val"]
                inputs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(made[node].name), None))
            elif node.op == "call_function":
                made[node] = _copied(node, graph, made)
        output = made[output_node(module)]
        graph.output((output,))
        outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(output.name), None)]
        calls = [like.module_call_graph[0], *(ModuleCallEntry(name) for name, _ in module.named_modules() if name)]
        tensors = dict([*module.named_parameters(), *module.named_buffers()])
        signature = ExportGraphSignature(inputs, outputs)
        return ExportedProgram(
            module, graph, signature, tensors, dict(like.range_constraints), calls, verifiers=like.verifiers
        )


def _attributes(module: GraphModule, graph: Graph, fake_mode: Any) -> tuple[list[InputSpec], dict[str, Node]]:
    """An input for each parameter and buffer, under the name that torch.export gives it."""
    kinds = (
        ("p", InputKind.PARAMETER, None, module.named_parameters),
        ("b", InputKind.BUFFER, True, module.named_buffers),
    )
    inputs, places, first = [], dict[str, Node](), dict[int, Node]()
    for letter, kind, persistent, named in kinds:
        for name, tensor in named(remove_duplicate=False):
            # A tensor that two layers share comes in once.
            if id(tensor) not in first:
                place = graph.placeholder(f"{letter}_{name.replace('.', '_')}")
                place.meta["val"] = fake_mode.from_tensor(tensor, static_shapes=True)
                inputs.append(InputSpec(kind, TensorArgument(place.name), name, persistent))
                first[id(tensor)] = place
            places[name] = first[id(tensor)]
    return inputs, places


def _copied(node: Node, graph: Graph, made: dict[Node, Node]) -> Node:
    args, kwargs = (torch.fx.map_arg(given, lambda source: made[source]) for given in (node.args, node.kwargs))
    # torch.export has names of its own for what it puts in, sizes above all.
    tensor = isinstance(node.meta["val"], torch.Tensor)
    name = getattr(node.target, "_overloadpacket", node.target).__name__ if tensor else node.name
    copied = graph.create_node("call_function", node.target, args, kwargs, name=name)  # type: ignore[arg-type]
    copied.meta = {key: node.meta[key] for key in ("nn_module_stack", "torch_fn", "val") if key in node.meta}
    return copied


def _fake_mode(module: GraphModule) -> Any:
    return next(node for node in module.graph.nodes if node.op == "placeholder").meta["val"].fake_mode
