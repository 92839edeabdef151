"""Which operators of a TFLite file each operator of XNNPACK computes: it numbers and names its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Both keep the order of the file, so these pair off one by one: XNNPACK neither splits nor merges them.
_HEAVY_FILE = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"}
_HEAVY = ("Convolution", "Deconvolution", "Fully Connected", "Batch Matrix Multiply")
# What XNNPACK's names of all others may stand for; a name that is not here stands for its own in capitals.
_STANDS_FOR = {
    "Subtract": {"SUB"}, "Multiply": {"MUL"}, "Divide": {"DIV"}, "Constant Pad": {"PAD", "PADV2"},
    "Max Pooling": {"MAX_POOL_2D"}, "Average Pooling": {"AVERAGE_POOL_2D"},
    "Global Average Pooling": {"MEAN", "AVERAGE_POOL_2D"}, "Sigmoid": {"LOGISTIC"},
    "Copy": {"RESHAPE", "CONCATENATION", "SPLIT", "EXPAND_DIMS", "SQUEEZE"}, "Concatenate": {"CONCATENATION"},
    "Slice": {"SLICE", "STRIDED_SLICE", "SPLIT"}, "Clamp": {"RELU", "RELU6", "RELU_N1_TO_1", "MINIMUM", "MAXIMUM"},
    "Convert": {"QUANTIZE", "DEQUANTIZE"}, "HardSwish": {"HARD_SWISH"}, "Leaky ReLU": {"LEAKY_RELU"},
}  # fmt: skip

Tensors = tuple[tuple[int, ...], tuple[int, ...]]
"""Indices of the tensors that an operator reads, and of those that it writes."""


@dataclass(frozen=True)
class Event:
    """An operator that was executed.

    Attributes:
        tag: Its name.
        delegated: Inside of a delegate.
        index: Of the file's operator, or of the delegate's own within its part of the file.
        microseconds: How long it took.
    """

    tag: str
    delegated: bool
    index: int
    microseconds: int


@dataclass
class _Part:
    operators: list[dict[str, Any]]
    events: list[int]


def align(events: Sequence[Event], operators: Sequence[dict[str, Any]]) -> list[Tensors]:
    """For each executed operator the tensors of the file that it reads and writes; none where it can't be told.

    Args:
        events: In the order of execution.
        operators: The interpreter's, with its delegate's parts at the end.
    """
    own = {op["index"]: op for op in operators if op["op_name"] != "DELEGATE"}
    found: list[Tensors] = [
        ((), ()) if event.delegated or event.index not in own else _tensors([own[event.index]]) for event in events
    ]
    parts = [_Part(_members(op, own), []) for op in operators if op["op_name"] == "DELEGATE"]
    current = -1
    for position, event in enumerate(events):
        if event.delegated:
            current += event.index == 0
            if 0 <= current < len(parts):
                parts[current].events.append(position)
    for part in parts:
        for position, tensors in _pair(part, events).items():
            found[position] = tensors
    return found


def _members(delegate: dict[str, Any], own: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The file's operators that a delegate's part replaced: from its outputs back to its inputs."""
    makers = {int(tensor): op for op in own.values() for tensor in op["outputs"]}
    known = {int(tensor) for tensor in delegate["inputs"]}
    waiting = [int(tensor) for tensor in delegate["outputs"]]
    members: dict[int, dict[str, Any]] = {}
    while waiting:
        tensor = waiting.pop()
        op = makers.get(tensor)
        if tensor in known or op is None or op["index"] in members:
            continue
        members[op["index"]] = op
        waiting += [int(source) for source in op["inputs"] if int(source) >= 0]
    return [members[index] for index in sorted(members)]


def _pair(part: _Part, events: Sequence[Event]) -> dict[int, Tensors]:
    heavy = [op for op in part.operators if op["op_name"] in _HEAVY_FILE]
    heavy_events = [position for position in part.events if events[position].tag.startswith(_HEAVY)]
    depthwise = [op["op_name"] == "DEPTHWISE_CONV_2D" for op in heavy]
    if len(heavy) != len(heavy_events) or any(
        "DWConv" in events[position].tag and not deep for position, deep in zip(heavy_events, depthwise, strict=True)
    ):
        return {}
    made: dict[int, list[dict[str, Any]]] = {p: [op] for p, op in zip(heavy_events, heavy, strict=True)}
    left = [op for op in part.operators if op["op_name"] not in _HEAVY_FILE]
    last = None
    within: dict[int, int] = {}
    for position in part.events:
        if position not in made:
            kind = events[position].tag.split(" (")[0]
            names = _STANDS_FOR.get(kind, {kind.upper().replace(" ", "_")})
            # Between the heavy ones before and behind it, order alone decides among operators of a kind.
            before = max((op["index"] for op in made[last]), default=-1) if last is not None else -1
            after = next((made[p][0]["index"] for p in heavy_events if p > position), None)
            fitting = [
                op
                for op in left
                if op["op_name"] in names and op["index"] > before and (after is None or op["index"] < after)
            ]
            if fitting:
                made[position] = [fitting[0]]
                left.remove(fitting[0])
            elif kind == "Clamp" and last is not None:
                within[position] = last
        if position in made:
            last = position
    _absorb(made, left)
    tensors = {position: _tensors(members) for position, members in made.items()}
    # An activation that the file has within the operator before: in its place.
    return tensors | {position: (tensors[source][1][:1], ()) for position, source in within.items()}


def _absorb(made: dict[int, list[dict[str, Any]]], left: list[dict[str, Any]]) -> None:
    """Operators of the file without one of XNNPACK's, such as a padding: part of the one that reads their output."""
    for op in reversed(left):
        written = {int(tensor) for tensor in op["outputs"]}
        for members in made.values():
            if any(written & {int(tensor) for tensor in member["inputs"]} for member in members):
                members.append(op)
                break


def _tensors(members: Sequence[dict[str, Any]]) -> Tensors:
    written = [int(tensor) for op in members for tensor in op["outputs"]]
    read = [int(tensor) for op in members for tensor in op["inputs"] if int(tensor) >= 0]
    return tuple(dict.fromkeys(tensor for tensor in read if tensor not in written)), tuple(dict.fromkeys(written))
