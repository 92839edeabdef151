"""What tells the operators of an exported file apart: its proof, and the names of its tensors, weights and nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.benchmark.mapping import Program, kind_of, map_nodes, map_operators
from edgekit.errors import UsageError
from edgekit.runtimes.profile import Operator
from edgekit.runtimes.profile_onnxruntime import executed_nodes
from edgekit.runtimes.runtime import RunError


def place_operators(
    program: Program, path: Path, runtime: str, opened: Mapping[str, Any], operators: Sequence[Operator]
) -> list[int | str]:
    """For each operator of an exported file, or of a bundle's own program, what it computes.

    Args:
        program: The bundle's groups.
        path: The file, with its proof's record beside it, or the bundle.
        runtime: That executed it.
        opened: What the worker told when it opened the file: ``inputs`` and ``outputs``.
        operators: As executed.

    Returns:
        The position of a group, or the bracketed name of where else it is put; one for each operator.
    """
    if runtime == "torch":
        return map_nodes(program, operators)
    named_inputs = {spec["name"] for spec in opened["inputs"]}
    # TFLite's tensors are called NAME#NUMBER where they stand beside others.
    inputs = {t for op in operators for t in op.inputs if t.partition("#")[0] in named_inputs} | named_inputs
    clues = clues_of(program, record_beside(path), _nodes(path), [spec["name"] for spec in opened["outputs"]])
    return map_operators(program, operators, inputs, clues)


def record_beside(path: Path) -> dict[str, Any]:
    """The record of a file's proof that lies beside it; empty where there is none.

    Raises:
        UsageError: If it is damaged.
    """
    from edgekit.export.run import record_of

    place = record_of(path)
    if not place.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{place} is damaged: {error}", "Export the file again.") from error
    return found


def _nodes(path: Path) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    if path.suffix != ".onnx":
        return []
    try:
        return executed_nodes(str(path))
    except RunError as error:
        raise UsageError(str(error), "Give another file.") from error


def clues_of(program: Program, record: Mapping[str, Any], nodes: Sequence[tuple[str, str, Sequence[str], Sequence[str]]],
             outputs: Sequence[str]) -> dict[str, int]:  # fmt: skip
    """What tells a file's multiplying operators apart.

    Args:
        program: The groups.
        record: Of the file's proof; empty for none.
        nodes: Name, type, inputs and outputs of each node of the file itself, before the runtime's passes; empty where
            the runtime keeps the names.
        outputs: Names of the file's outputs.

    Returns:
        Positions of groups by names of tensors, weights and nodes.
    """
    clues: dict[str, int] = {}
    proved = record.get("layers", ())
    if [entry["layer"] for entry in proved] != program.paths:
        proved = ()
    maker = {tensor: node for node in nodes for tensor in node[3]}
    for entry, place in zip(proved, program.weighted, strict=False):
        # A proof calls the tensor that a runtime hands out at the end "output", whatever the file calls it.
        for tensor in [entry["tensor"], *(outputs if entry["tensor"] == "output" else ())]:
            clues.setdefault(tensor, place)
            node = maker.get(tensor)
            while node is not None and kind_of(node[1]) != "multiply":
                node = maker.get(node[2][0]) if node[2] else None
            if node is not None:
                clues |= dict.fromkeys((node[0], *node[3]), place)
    readers: dict[str, set[int]] = {}
    for name, kind, read, written in nodes:
        mine = clues.get(name)
        if mine is not None and kind_of(kind) == "multiply":
            for constant in _constants(read[1:], maker):
                readers.setdefault(constant, set()).add(mine)
            _follow(written, nodes, mine, clues)
    clues |= {constant: next(iter(places)) for constant, places in readers.items() if len(places) == 1}
    return clues


def _constants(tensors: Sequence[str], maker: Mapping[str, Any]) -> list[str]:
    """The constants behind a node's weights, through their casts and dequantization."""
    found = []
    waiting = list(tensors)
    while waiting:
        tensor = waiting.pop()
        found.append(tensor)
        if tensor in maker:
            waiting += list(maker[tensor][2])
    return found


def _follow(tensors: Sequence[str], nodes: Sequence[Any], place: int, clues: dict[str, int]) -> None:
    """Activations and quantizers behind a node: a fused operator is called after the last of them."""
    current = set(tensors)
    for name, kind, read, written in nodes:
        if read and read[0] in current and kind_of(kind) in ("activation", "quantize"):
            clues.setdefault(name, place)
            for tensor in written:
                clues.setdefault(tensor, place)
            current |= set(written)
