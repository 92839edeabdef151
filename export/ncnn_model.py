"""ncnn's two model files, read and written: the layers of a ``.param`` with their weights from the ``.bin``.

The formats are those of ncnn's ``Net::load_param``, ``Net::load_model`` and ``ModelBinFromDataReader::load`` (format
magic 7767517). A weight array of kind 0 starts with a tag that tells how it is stored; of kind 1 it is bare float32.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgekit.errors import ExportError

MAGIC = "7767517"
TAG_FLOAT16, TAG_INT8 = 0x01306B47, 0x000D4B38


@dataclass
class Layer:
    """One line of a ``.param`` with its weights.

    Attributes:
        type: The layer type, such as ``Convolution``.
        name: Its name.
        inputs: Blob names.
        outputs: Blob names.
        params: Parameters by id, as text.
        arrays: Its weights in file order, with the kind (0 tagged, 1 bare) and dtype they are stored in.
    """

    type: str
    name: str
    inputs: list[str]
    outputs: list[str]
    params: dict[int, str]
    arrays: list[np.ndarray] = field(default_factory=list)

    def integer(self, key: int, default: int = 0) -> int:
        """An integer parameter."""
        return int(self.params.get(key, default))


def read_param(path: Path) -> list[Layer]:
    """Reads the layers of a ``.param`` file.

    Raises:
        ExportError: If it is not in the text format.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[0].strip() != MAGIC:
        raise ExportError(f"{path.name} is no ncnn .param file: it does not begin with {MAGIC}")
    layers = []
    for line in filter(str.strip, lines[2:]):
        parts = line.split()
        n_in, n_out = int(parts[2]), int(parts[3])
        blobs = parts[4 : 4 + n_in + n_out]
        params = {}
        for item in parts[4 + n_in + n_out :]:
            key, _, value = item.partition("=")
            params[int(key)] = value
        layers.append(Layer(parts[0], parts[1], blobs[:n_in], blobs[n_in:], params))
    return layers


def write_param(layers: list[Layer], path: Path) -> None:
    """Writes the layers of a ``.param`` file."""
    blobs = {blob for layer in layers for blob in layer.outputs}
    lines = [MAGIC, f"{len(layers)} {len(blobs)}"]
    for layer in layers:
        params = " ".join(f"{key}={value}" for key, value in layer.params.items())
        blobs_text = " ".join([*layer.inputs, *layer.outputs])
        counts = f"{len(layer.inputs)} {len(layer.outputs)}"
        lines.append(f"{layer.type:<24} {layer.name:<24} {counts} {blobs_text} {params}".rstrip())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.position = content, 0

    def take(self, count: int) -> bytes:
        part = self.content[self.position : self.position + count]
        if len(part) < count:
            raise ExportError("the ncnn .bin file ends too early")
        self.position += (count + 3) // 4 * 4
        return part

    def bare(self, count: int) -> np.ndarray:
        return np.frombuffer(self.take(4 * count), "<f4")

    def tagged(self, count: int) -> np.ndarray:
        tag = struct.unpack("<I", self.take(4))[0]
        if tag == TAG_FLOAT16:
            return np.frombuffer(self.take(2 * count), "<f2")
        if tag == TAG_INT8:
            return np.frombuffer(self.take(count), np.int8)
        if tag == 0:
            return np.frombuffer(self.take(4 * count), "<f4")
        raise ExportError(f"the ncnn .bin file holds weights in an unknown storage (tag {tag:#x})")


def read_weights(layers: list[Layer], path: Path) -> None:
    """Reads the float weights of all layers from a ``.bin`` into ``Layer.arrays``.

    Raises:
        ExportError: If the layers do not fit the file: one of them holds weights that edgekit does not know of.
    """
    reader = _Reader(path.read_bytes())
    for layer in layers:
        layer.arrays = [
            reader.tagged(count) if tagged else reader.bare(count) for tagged, count in _layout(layer) if count
        ]
    if reader.position != len(reader.content):
        raise ExportError(
            f"the ncnn .bin file has {len(reader.content) - reader.position} bytes more than its layers need: one of them "
            "holds weights that edgekit can't rewrite for int8",
            "Keep the network in float for ncnn, and please report it.",
        )


_TAGGED, _BARE = True, False
_CONVOLUTIONS = {
    f"{kind}{depthwise}{rank}"
    for kind in ("Convolution", "Deconvolution")
    for depthwise in ("", "DepthWise")
    for rank in ("", "1D", "3D")
}
# Gates of recurrent layers, and the rows of their biases.
_GATES = {"RNN": (1, 1), "LSTM": (4, 4), "GRU": (3, 4)}


def _layout(layer: Layer) -> list[tuple[bool, int]]:
    """The arrays that a layer loads, in order: whether each has a tag, and how many numbers it has.

    As ``load_model`` of each layer reads them.
    """
    integer = layer.integer
    if layer.type in _CONVOLUTIONS:
        return [(_TAGGED, integer(6)), (_BARE, integer(0) if integer(5) else 0)]
    if layer.type == "InnerProduct":
        return [(_TAGGED, integer(2)), (_BARE, integer(0) if integer(1) else 0)]
    if layer.type == "Embed":
        return [(_TAGGED, integer(3)), (_BARE, integer(0) if integer(2) else 0)]
    if layer.type == "BatchNorm":
        return [(_BARE, integer(0))] * 4
    if layer.type in ("PReLU", "Bias"):
        return [(_BARE, integer(0))]
    if layer.type == "Scale":
        return [(_BARE, integer(0))] * (1 + integer(1))
    if layer.type in ("LayerNorm", "InstanceNorm"):
        return [(_BARE, integer(0))] * (2 * integer(2, 1))
    if layer.type == "RMSNorm":
        return [(_BARE, integer(0))] * integer(2, 1)
    if layer.type == "GroupNorm":
        return [(_BARE, integer(1))] * (2 * integer(3, 1))
    if layer.type == "Normalize":
        return [(_BARE, integer(3))]
    if layer.type == "MemoryData":
        return [(_BARE, int(np.prod([size for key in (0, 1, 11, 2) if (size := integer(key))])))]
    if layer.type in _GATES:
        return _recurrent_layout(layer)
    if layer.type == "MultiHeadAttention":
        inner, weights = integer(0), integer(2)
        outer = weights // inner
        sizes = [
            (weights, inner),
            (inner * integer(3, inner), inner),
            (inner * integer(4, inner), inner),
            (weights, outer),
        ]
        return [array for weight, bias in sizes for array in ((_TAGGED, weight), (_BARE, bias))]
    if layer.type == "Gemm":
        m, n, k = integer(7), integer(8), integer(9)
        third = {0: 1, 1: m, 2: m, 3: m * n, 4: n}.get(integer(10), 0)
        given = zip((4, 5, 6), (m * k, k * n, third), strict=True)
        return [(_TAGGED, count) for key, count in given if integer(key)]
    return []


def _recurrent_layout(layer: Layer) -> list[tuple[bool, int]]:
    gates, rows = _GATES[layer.type]
    outputs, directions = layer.integer(0), 2 if layer.integer(2) == 2 else 1
    cells = layer.integer(3, outputs) if layer.type == "LSTM" else outputs
    arrays = [
        (_TAGGED, layer.integer(1)),
        (_TAGGED, directions * rows * cells),
        (_TAGGED, directions * gates * cells * outputs),
    ]
    if cells != outputs:
        arrays.append((_TAGGED, directions * cells * outputs))
    return arrays


def write_weights(layers: list[Layer], path: Path) -> None:
    """Writes the weights of all layers as a ``.bin``, each array in the storage of its dtype."""
    parts = []
    for layer in layers:
        # What int8 adds comes last, and has no tags.
        tags = [tagged for tagged, count in _layout(layer) if count]
        for position, array in enumerate(layer.arrays):
            if position < len(tags) and tags[position]:
                tag = {np.dtype(np.int8): TAG_INT8, np.dtype(np.float16): TAG_FLOAT16}.get(array.dtype, 0)
                parts.append(struct.pack("<I", tag))
            content = array.tobytes()
            parts.append(content + b"\0" * (-len(content) % 4))
    path.write_bytes(b"".join(parts))
