"""Times of each node that ONNX Runtime executes, from its own profiler."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .profile import WARM_RUNS, Operator, Profile, distinct, timed
from .runtime import RunError, first_line

_SUFFIX = "_kernel_time"
_NOTHING = 4
# Fields of the ONNX protocol buffers, onnx.proto: ModelProto.graph, GraphProto.node, and those of NodeProto.
_GRAPH, _NODE = 7, 1
_INPUT, _OUTPUT, _NAME, _TYPE = 1, 2, 3, 4

Node = tuple[str, str, tuple[str, ...], tuple[str, ...]]
"""Name, type, inputs and outputs of a node."""


def profile(session: Any, feed: dict[str, Any], runs: int) -> Profile:
    """Profiles a session in a second one with the same options and the profiler on; the first times the whole.

    Args:
        session: The ``onnxruntime.InferenceSession``.
        feed: Its inputs by name.
        runs: Profiled runs.

    Raises:
        RunError: If the profiler gives nothing.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        second = _profiled(session, folder)
        nodes = executed_nodes(os.path.join(folder, "executed.onnx"))
        whole, profiled = [], []
        for _ in range(WARM_RUNS + runs):
            whole.append(timed(lambda: session.run(None, feed)))
            profiled.append(timed(lambda: second.run(None, feed)))
        with open(second.end_profiling(), encoding="utf-8") as stream:
            events = json.load(stream)
    operators = _operators(events, nodes, runs)
    return Profile(
        operators=tuple(operators),
        whole_ms=tuple(whole[WARM_RUNS:]),
        profiled_ms=tuple(profiled[WARM_RUNS:]),
        method="ONNX Runtime's profiler, in whole microseconds, its own work at each node included",
        resolution_ms=0.001,
    )


def _operators(events: list[dict[str, Any]], nodes: list[Node], runs: int) -> list[Operator]:
    taken: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            detail = event["args"]
            key = (event["name"].removesuffix(_SUFFIX), detail["op_name"], detail["node_index"])
            taken.setdefault(key, []).append(event["dur"] / 1000)
    waiting = list(nodes)
    operators = []
    for (name, kind, _), samples in taken.items():
        # A node without a name is called after its type and number in the events.
        node = next((one for one in waiting if one[1] == kind and one[0] in (name, "")), None)
        # The nodes of a loop's or branch's body are within the time of the node that holds them.
        if node is None:
            continue
        waiting.remove(node)
        operators.append(
            Operator(name=name, type=kind, inputs=node[2], outputs=node[3], samples_ms=tuple(samples[-runs:]))
        )
    if waiting:
        raise RunError(f"ONNX Runtime's profiler does not tell of {len(waiting)} nodes, such as {waiting[0][:2]}")
    names = distinct([one.name for one in operators])
    return [replace(one, name=name) for one, name in zip(operators, names, strict=True)]


def _profiled(session: Any, folder: str) -> Any:
    import onnxruntime

    options = session.get_session_options()
    options.enable_profiling = True
    options.profile_file_prefix = os.path.join(folder, "profile")
    # The graph after the last, hardware-specific pass is the one that runs; ONNX Runtime warns of keeping it.
    options.optimized_model_filepath = os.path.join(folder, "executed.onnx")
    options.log_severity_level = _NOTHING
    # Weights beside the graph: what is read here is the graph alone.
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    source = session._model_path or session._model_bytes
    try:
        providers = list(session.get_provider_options().items())
        return onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:
        raise RunError(f"ONNX Runtime can't load the file with its profiler: {first_line(error)}") from error


def executed_nodes(path: str) -> list[Node]:
    """Name, type, inputs and outputs of each node of an ``.onnx`` file, read without the onnx library: targets lack it.

    Raises:
        RunError: If the file is none.
    """
    with open(path, "rb") as stream:
        content = memoryview(stream.read())
    try:
        nodes = [
            list(_fields(node))
            for number, graph in _fields(content)
            if number == _GRAPH
            for kind, node in _fields(graph)
            if kind == _NODE
        ]
    except (IndexError, ValueError, TypeError) as error:
        raise RunError(f"{path} is no ONNX file") from error
    found = []
    for fields in nodes:
        text = {number: [str(value, "utf-8") for key, value in fields if key == number] for number in range(1, 5)}
        (kind,) = text[_TYPE] or [""]
        name = (text[_NAME] or [""])[0]
        found.append((name, kind, tuple(filter(None, text[_INPUT])), tuple(filter(None, text[_OUTPUT]))))
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a protocol buffer message, by number (Protocol Buffers, "Encoding")."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            _, position = _varint(message, position)
        elif wire == 1:
            position += 8
        elif wire == 5:
            position += 4
        elif wire == 2:
            size, position = _varint(message, position)
            if position + size > len(message):
                raise ValueError("a field ends behind its message")
            yield number, message[position : position + size]
            position += size
        else:
            raise ValueError(f"wire type {wire}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
