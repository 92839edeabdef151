"""The program: a trained network as a ``torch.export`` graph, the form that every pass and exporter works on.

A program is a :class:`torch.export.ExportedProgram` in ATen training IR with a free batch dimension. Passes edit a
:class:`torch.fx.GraphModule` made by :func:`trainable` and turn it back with :func:`export_program`. Parameters are
``get_attr`` nodes (``layer1.0.conv1.weight``), every node carries ``meta["val"]`` (its fake tensor).
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators that programs hold
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from edgekit.arithmetic import no_collections
from edgekit.errors import SourceError

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed

# The batch that is traced with: 2, because torch.export specializes on 0 and 1.
_TRACE_BATCH = 2


def export_program(
    module: torch.nn.Module, input_shape: Sequence[int], *, origin: str = "the model"
) -> ExportedProgram:
    """Exports a module once, with a free batch dimension.

    Args:
        module: The network; it is exported as it computes in evaluation.
        input_shape: Shape of one input without the batch, for example ``(3, 32, 32)``.
        origin: What to call the model in messages.

    Raises:
        SourceError: If torch.export refuses the module; the reason is handed on. If it returns several tensors.
    """
    if isinstance(module, GraphModule):
        set_training(module, False)
    else:
        module = module.eval()
    example = torch.zeros(_TRACE_BATCH, *input_shape)
    reference = next((p for p in module.parameters()), None)
    if reference is not None:
        example = example.to(reference.device)
    said = io.StringIO()
    try:
        # torch prints the graph so far when it gives up; the user's line in it is worth keeping, the rest is not.
        with quiet(), no_collections(), torch.no_grad(), contextlib.redirect_stderr(said):
            program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        lines = re.findall(r"# File: (.*?), code: (.*)", said.getvalue())
        where = f" at {lines[-1][0]} ({lines[-1][1].strip()})" if lines else ""
        raise SourceError(
            f"{origin} can't be exported with inputs of shape (batch, {', '.join(map(str, input_shape))}){where}: {first}",
            "torch.export must be able to trace the network with a free batch dimension: look for a wrong input shape "
            "(--input-shape), control flow that depends on values, or a batch size written into a view.",
        ) from error
    for node in program.graph.nodes:
        # Paths and memory addresses of the process that exported: they would make equal programs differ.
        node.meta.pop("stack_trace", None)
        node.meta.pop("from_node", None)
    return one_tensor(program, input_shape, origin=origin)


def one_tensor(program: ExportedProgram, input_shape: Sequence[int], *, origin: str = "the model") -> ExportedProgram:
    """The program that returns its one output itself, where it lies in a tuple, a dictionary or a class of outputs.

    Args:
        program: Any program.
        input_shape: Shape of one input without the batch.
        origin: What to call the model in messages.

    Raises:
        SourceError: If there are several outputs, or none.
    """
    outputs = program.graph_signature.user_outputs
    if len(outputs) != 1:
        raise SourceError(
            f"{origin} returns {len(outputs)} values; edgekit takes networks that return one tensor",
            "Wrap it in a module whose forward returns the one that is deployed.",
        )
    if program.call_spec.out_spec is None or program.call_spec.out_spec.is_leaf():
        return program
    module = trainable(program)
    output = next(node for node in module.graph.nodes if node.op == "output")
    output.args = (output_node(module),)
    module.graph.set_codegen(CodeGen())
    module.recompile()
    return export_program(module, input_shape, origin=origin)


def trainable(program: ExportedProgram) -> GraphModule:
    """A fresh GraphModule of the program with parameters of its own, in evaluation mode.

    Use :func:`set_training` to switch; ``train()`` and ``eval()`` of exported graphs are not supported by torch.
    """
    with quiet(), no_collections():
        # Its graph is a copy already; what the graph reads is the program's own.
        exported = program.module(check_guards=False)
        # A plain GraphModule over the same attributes: torch's own overrides train() and eval() to raise.
        module = GraphModule(exported, exported.graph)
    copied: dict[int, Any] = {}
    for tensors in (module.named_parameters, module.named_buffers):
        for name, tensor in list(tensors(remove_duplicate=False)):
            set_attribute(module, name, copy.deepcopy(tensor, copied))
    module.meta.update(getattr(exported, "meta", {}))
    for name in ("_in_spec", "_out_spec"):
        setattr(module, name, getattr(exported, name, None))
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    clean(module)
    from edgekit.batch_first import needs_batch_first, put_batch_first  # rests on this module

    return put_batch_first(module) if needs_batch_first(module) else module


def duplicate(module: GraphModule) -> GraphModule:
    """A copy that shares nothing with the original."""
    with quiet(), no_collections():
        return copy.deepcopy(module)


def set_training(module: GraphModule, training: bool) -> GraphModule:
    """Switches batch norm and dropout between training and evaluation by the flags in the graph.

    Args:
        module: A graph in ATen training IR; changed in place.
        training: True to normalize by batch statistics and move the running ones, and to drop.
    """
    changed = False
    for node in module.graph.nodes:
        position = _TRAINING_FLAG.get(node.target)
        if node.target is aten.instance_norm.default and node.args[3] is None:
            continue  # without running statistics it takes each input's own, in training and evaluation
        if position is not None and node.args[position] != training:
            node.update_arg(position, training)
            changed = True
    if changed:
        module.recompile()
    return module


# Weights that are not named weight: those of attention (in_proj_weight, q_proj_weight …) and of recurrent layers.
_PACKED = re.compile(r"(.*_proj)_weight(?:_\w+)?|(.+)\.weight_ih_l\w+")
_TALKATIVE = (
    "torch.onnx", "torch.export", "torch._export", "torch.utils._pytree", "torch.fx.experimental.symbolic_shapes",
)  # fmt: skip
_TRAINING_FLAG: dict[Any, int] = {
    aten.batch_norm.default: 5,
    aten.dropout.default: 2,
    aten.dropout_.default: 2,
    aten.feature_dropout.default: 2,
    aten.alpha_dropout.default: 2,
    aten.instance_norm.default: 5,
}


_PADDED_BY_NAME: dict[Any, Any] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def clean(module: GraphModule) -> GraphModule:
    """Normal form of a graph: functional operators, padding in numbers, reshapes for views, no slice of all, nothing dead.

    Raises:
        SourceError: If an in-place operator has no functional counterpart.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten._assert_tensor_metadata.default:
            # torch.export writes one beside every conversion; it computes nothing.
            graph.erase_node(node)
        elif node.target is aten.slice.Tensor and _keeps_all(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in _PADDED_BY_NAME:
            _pad_in_numbers(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            # The same, and without a demand on strides that a runtime's order of channels may not meet.
            node.target = aten.reshape.default
        elif (functional := _functional(node)) is not None:
            _make_functional(node, functional)
    # get_attr of batch norm's counters has no users; placeholders and outputs are never dead.
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.lint()
    module.recompile()
    return module


def _pad_in_numbers(node: Node) -> None:
    """Writes the padding ``"same"`` or ``"valid"`` of a convolution in numbers: rules look for one form of it alone.

    ``same`` adds an odd element behind, as torch does: with an operator of its own, for convolutions pad both sides alike.
    """
    given = (*node.args, *(None, [1], "valid", [1], 1)[len(node.args) - 2 :])
    source, weight, bias, stride, padding, dilation, groups = given
    kernel = weight.meta["val"].shape[2:]  # type: ignore[union-attr]
    # One number stands for all dimensions.
    stride, dilation = ([*v] * (len(kernel) // len(v)) for v in (stride, dilation))  # type: ignore[misc, arg-type]
    total = [d * (int(k) - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    odd = [t % 2 for t in total]
    if any(odd):
        behind = [side for one in reversed(odd) for side in (0, one)]
        value = source.meta["val"]  # type: ignore[union-attr]
        sizes = [*value.shape[: -len(odd)], *(s + one for s, one in zip(value.shape[-len(odd) :], odd, strict=True))]
        with node.graph.inserting_before(node):
            source = node.graph.call_function(aten.pad.default, (source, behind, "constant", 0.0))
        source.meta.update({**node.meta, "val": value.new_empty(sizes)})
    node.target = _PADDED_BY_NAME[node.target]
    node.args = (source, weight, bias, stride, [t // 2 for t in total], dilation, groups)


def _keeps_all(node: Node) -> bool:
    start = node.args[2] if len(node.args) > 2 else None
    end = node.args[3] if len(node.args) > 3 else None
    step = node.args[4] if len(node.args) > 4 else 1
    return start in (None, 0) and (end is None or (isinstance(end, int) and end >= 2**62)) and step == 1


def _functional(node: Node) -> Any:
    """The functional operator for an in-place one such as ``aten.relu_.default``; None for any other node."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    namespace, name = target._schema.name.split("::")
    if not name.endswith("_"):
        return None  # batch_norm and its kind mutate their running statistics, which is meant
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    functional = getattr(packet, target._overloadname, None) if packet is not None else None
    if functional is None:
        raise SourceError(
            f"the operator {target} (node {node.name}, {module_path(node) or 'top level'}) changes its input in place "
            "and has no functional counterpart",
            "Write it without the in-place form in the model's source.",
        )
    return functional


def _make_functional(node: Node, functional: Any) -> None:
    source = node.args[0]
    node.target = functional
    if not isinstance(source, Node):
        return
    # Whoever reads the input after the mutation means the mutated value.
    later = False
    for other in list(node.graph.nodes):
        if other is node:
            later = True
        elif later and source in other.all_input_nodes:
            other.replace_input_with(source, node)


def module_path(node: Node) -> str:
    """The place of a node in the user's module hierarchy, for example ``layer1.0.conv1``; empty at the top level."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed([entry for entry in stack.values() if isinstance(entry, tuple)]):
        path = re.sub(r"L__self__\.?|L\['self'\]\.?", "", str(path)).strip(".")
        if path and not path.startswith("_empty"):
            return path
    return ""


# Operators that decode a weight: see codebook_of and sparse_of.
DECODES = (aten.index.Tensor, aten.masked_scatter.default)


def codebook_of(node: Any) -> tuple[str, str] | None:
    """The names of codes and codebook where a node is a weight ``codebook[codes]``; None for any other."""
    if not isinstance(node, Node) or node.target is not aten.index.Tensor:
        return None
    table, indices = node.args[0], node.args[1]
    wide = indices[0] if isinstance(indices, (list, tuple)) and len(indices) == 1 else None
    codes = wide.args[0] if isinstance(wide, Node) and wide.target is aten.to.dtype else None
    if not (isinstance(table, Node) and isinstance(codes, Node) and table.op == codes.op == "get_attr"):
        return None
    return str(codes.target), str(table.target)


def sparse_of(node: Any) -> tuple[str, str] | None:
    """The names of mask and values where a node is a weight ``masked_scatter(0, mask, values)``; None for any other."""
    if not isinstance(node, Node) or node.target is not aten.masked_scatter.default:
        return None
    _, mask, values = node.args
    if not (isinstance(mask, Node) and isinstance(values, Node) and mask.op == values.op == "get_attr"):
        return None
    return str(mask.target), str(values.target)


def layer_name(node: Node) -> str:
    """What to call a node to a user: the module it belongs to where its weight tells, else the node's own name."""
    for argument in node.all_input_nodes:
        coded = codebook_of(argument) or sparse_of(argument)
        dequantized = argument.target is quantized.dequantize_per_channel.default
        source = argument.all_input_nodes[0] if dequantized else argument
        name = coded[0] if coded else str(source.target) if source.op == "get_attr" else ""
        if name.endswith((".weight", ".weight_int8", ".weight_codes", ".weight_mask")):
            return name.rsplit(".", 1)[0]
        if packed := _PACKED.fullmatch(name):
            return packed[1] or packed[2]
    path = module_path(node)
    return f"{path} ({node.name})" if path else node.name


def attribute(module: torch.nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer that a ``get_attr`` node of this target reads."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def set_attribute(module: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    """Replaces, or makes, the parameter or buffer of this dotted name; a floating ``nn.Parameter`` stays one."""
    owner: Any = module
    *path, last = name.split(".")
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, torch.nn.Module())
        owner = getattr(owner, part)
    if last in owner._parameters or last in owner._buffers:
        delattr(owner, last)
    if isinstance(value, torch.nn.Parameter):
        owner.register_parameter(last, value)
    else:
        owner.register_buffer(last, value)


def delete_unused_attributes(module: GraphModule) -> None:
    """Removes the parameters and buffers that no node reads, so that none is stored."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    names += [name for name, _ in module.named_buffers(remove_duplicate=False)]
    for name in names:
        if name not in used:
            owner, _, last = name.rpartition(".")
            delattr(module.get_submodule(owner), last)


def shape_of(node: Node) -> tuple[int, ...]:
    """The node's shape with the free batch dimension given as -1."""
    value = node.meta["val"]
    return tuple(int(size) if isinstance(size, int) else -1 for size in value.shape)


def input_node(module: GraphModule) -> Node:
    """The single input of the graph.

    Raises:
        SourceError: If the network has more than one input.
    """
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise SourceError(f"the network has {len(inputs)} inputs; edgekit takes networks with one input")
    return inputs[0]


def output_node(module: GraphModule) -> Node:
    """The node whose value the graph returns.

    Raises:
        SourceError: If the network returns anything but one tensor.
    """
    output = next(node for node in module.graph.nodes if node.op == "output")
    returned = output.args[0]
    while isinstance(returned, (list, tuple)) and len(returned) == 1:
        returned = returned[0]
    if not isinstance(returned, Node):
        raise SourceError("the network must return one tensor; wrap it so that it does")
    return returned


def refresh_shapes(module: GraphModule, example: torch.Tensor) -> None:
    """Recomputes ``meta["val"]`` of every node after an edit, by running the graph on ``example``."""

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor):
                n.meta["val"] = torch.empty(result.shape, dtype=result.dtype, device="meta")
            return result

    with torch.no_grad():
        Recorder(module).run(example)


def refresh_values(module: GraphModule) -> bool:
    """Recomputes ``meta["val"]`` of every node after an edit, sizes that depend on the batch staying free.

    Args:
        module: A graph made by :func:`trainable` and edited since, whose input has its value still.

    Returns:
        Whether every node has its value; not where an edit changed how a size depends on the batch. Then trace it anew.
    """
    given = input_node(module).meta["val"]
    fine = True

    def value(was: Any, now: Any) -> Any:
        nonlocal fine
        if isinstance(now, (list, tuple)):
            return [value(*pair) for pair in zip(was, now, strict=True)]
        if not isinstance(now, torch.Tensor):
            return was
        free = [not isinstance(size, int) for size in was.shape]
        sizes = [old if frees else new for old, new, frees in zip(was.shape, now.shape, free, strict=True)]
        fine &= all(old.node.hint == new for old, new, frees in zip(was.shape, now.shape, free, strict=True) if frees)
        return torch.empty(sizes, dtype=now.dtype)

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if n.op in ("call_function", "get_attr"):
                with given.fake_mode:
                    n.meta["val"] = value(n.meta["val"], result)
            return result

    with torch.no_grad():
        Recorder(module).run(
            torch.zeros([s if isinstance(s, int) else s.node.hint for s in given.shape], dtype=given.dtype)
        )
    return fine


def node_values(module: GraphModule, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Runs the graph and returns the value of every tensor node by its name."""
    values: dict[str, torch.Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor) and n.op in ("placeholder", "call_function"):
                values[n.name] = result
            return result

    with torch.no_grad():
        Recorder(module).run(x)
    return values


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences torch's notices about its own internals (missing torchvision, deprecations of its own calls)."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
