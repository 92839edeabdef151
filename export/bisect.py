"""Which layer of an exported file is the first to compute something else than the program.

Formats rename, fuse and transpose, so layers are not matched by name: the file's intermediate tensors are laid beside
the program's, and each layer takes the tensor that resembles its own value most. A layer whose likeness is missing, or
is worse than it was when the file was proved, is where the file goes wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from edgekit.compress.quantize.rules import RULES, Role
from edgekit.export.exporter import Lowered
from edgekit.export.lowering import DQ, Q, weight_nodes
from edgekit.program import layer_name, node_values

# SQNR that stands for "equal" where nothing differs, and the caps of what is compared.
EQUAL_DB = 150.0
# A layer diverges below this when there is no earlier proof to compare with.
THRESHOLD_DB = {"float32": 40.0, "float16": 35.0, "bfloat16": 35.0, "int16": 35.0, "int8": 6.0}
# … and when it got this much worse than in its proof. Repeated runs of one file agree to the bit on one machine.
DROP_DB = 6.0
_UNLIKE_DB = 1.0


@dataclass(frozen=True)
class LayerMatch:
    """One layer of the program beside its tensor in the file.

    Attributes:
        layer: The layer's name in the user's modules.
        tensor: The file's tensor that resembles its value most; empty when none does.
        worst_channel_db: SQNR of its worst channel, noise against the mean energy of the layer's channels, in dB.
    """

    layer: str
    tensor: str
    worst_channel_db: float


def match_layers(lowered: Lowered, inputs: np.ndarray, taps: Mapping[str, np.ndarray]) -> list[LayerMatch]:
    """Finds for every convolution and linear layer of a lowered program its tensor in the file.

    Args:
        lowered: The lowered program.
        inputs: float32 inputs, shape (n, C, H, W).
        taps: The file's intermediate tensors for the same inputs, each with n samples in its first dimension.

    Returns:
        The layers in the order of the program.
    """
    module = lowered.module
    values = node_values(module, torch.from_numpy(inputs))
    matches = []
    for node in weight_nodes(module):
        best = LayerMatch(layer_name(node), "", -EQUAL_DB)
        for place in _same_layer(node):
            sign, offset = lowered.shifted.get(place.name, (1, 0.0))
            reference = sign * (values[place.name].numpy() - np.float32(offset))
            for name, tap in taps.items():
                for candidate in _layouts(tap, reference.shape):
                    if candidate.dtype.kind != "f":
                        candidate = _rescaled(candidate, reference)
                    likeness = worst_channel_db(reference, candidate)
                    if likeness > best.worst_channel_db:
                        best = LayerMatch(layer_name(node), name, likeness)
        if best.worst_channel_db < _UNLIKE_DB:
            best = LayerMatch(best.layer, "", best.worst_channel_db)
        matches.append(best)
    return matches


def first_divergence(
    matches: Sequence[LayerMatch], precision: str, proved: Sequence[Mapping[str, Any]] = ()
) -> LayerMatch | None:
    """The first layer that differs.

    Args:
        matches: What :func:`match_layers` found.
        precision: Of the file.
        proved: The same layers as recorded when the file was proved, if it was.

    Returns:
        The layer, or None when all agree. With a proof at hand and no clear break, the layer that got worst.
    """
    before = {entry["layer"]: float(entry["worst_channel_db"]) for entry in proved}
    drops = [(before.get(match.layer, match.worst_channel_db) - match.worst_channel_db, match) for match in matches]
    for drop, match in drops:
        if drop > DROP_DB or (match.layer not in before and match.worst_channel_db < THRESHOLD_DB[precision]):
            return match
    worst = max(drops, key=lambda pair: pair[0], default=(0.0, None))
    return worst[1] if worst[0] > 0 else None


def worst_channel_db(reference: np.ndarray, output: np.ndarray) -> float:
    """SQNR of the worst channel (dimension 1), with its noise set against the mean energy of all channels."""
    r = np.moveaxis(reference, 1, 0).reshape(reference.shape[1], -1).astype(np.float64)
    o = np.moveaxis(output, 1, 0).reshape(reference.shape[1], -1).astype(np.float64)
    signal = float((r**2).sum(1).mean())
    with np.errstate(invalid="ignore", over="ignore"):
        noise = float(((r - o) ** 2).sum(1).max())
    if not np.isfinite(noise):
        return -EQUAL_DB
    if noise == 0:
        return EQUAL_DB
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), -EQUAL_DB, EQUAL_DB))


def _rescaled(integers: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Integers whose scale the file keeps to itself, brought to the reference's by least squares."""
    values = integers.astype(np.float64)
    energy = float((values**2).sum())
    return values * (float((values * reference).sum()) / energy) if energy else values


def _same_layer(node: Node) -> list[Node]:
    """The places where a file may show a layer's value: behind it, behind its activation, behind their quantizer."""
    places = [node]
    current = node
    while len(users := list(current.users)) == 1:
        current = users[0]
        if RULES.get(current.target) is not Role.FUSED and current.target not in (Q, DQ):
            break
        if current.target is not Q:
            places.append(current)
    return places


def _layouts(tap: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The tap in every layout in which it has the reference's shape."""
    found: list[np.ndarray] = []
    if tap.size != int(np.prod(shape)) or tap.dtype.kind not in "fiu":
        return found
    if tap.shape == shape or tap.ndim < 4 or len(shape) < 4:
        found.append(tap.reshape(shape))
    if tap.ndim == 4 and len(shape) == 4 and (tap.shape[0], tap.shape[3], tap.shape[1], tap.shape[2]) == shape:
        found.append(tap.transpose(0, 3, 1, 2))
    return found
