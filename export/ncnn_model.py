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
        ExportError: For a layer type whose weights edgekit can't read, or a file that does not fit.
    """
    reader = _Reader(path.read_bytes())
    for layer in layers:
        layer.arrays = []
        if layer.type in (
            "Convolution",
            "Convolution1D",
            "ConvolutionDepthWise",
            "Deconvolution",
            "DeconvolutionDepthWise",
        ):
            layer.arrays.append(reader.tagged(layer.integer(6)))
            if layer.integer(5):
                layer.arrays.append(reader.bare(layer.integer(0)))
        elif layer.type == "InnerProduct":
            layer.arrays.append(reader.tagged(layer.integer(2)))
            if layer.integer(1):
                layer.arrays.append(reader.bare(layer.integer(0)))
        elif layer.type == "BatchNorm":
            layer.arrays += [reader.bare(layer.integer(0)) for _ in range(4)]
        elif layer.type == "PReLU":
            layer.arrays.append(reader.bare(layer.integer(0)))
        elif layer.type == "Scale":
            layer.arrays += [reader.bare(layer.integer(0)) for _ in range(1 + layer.integer(1))]
        elif layer.type == "MemoryData":
            sizes = [layer.integer(key) for key in (0, 1, 11, 2)]
            layer.arrays.append(reader.bare(int(np.prod([size for size in sizes if size]))))
        elif layer.type in _WITH_OTHER_WEIGHTS:
            raise ExportError(
                f"the ncnn layer {layer.type} ({layer.name}) holds weights that edgekit can't rewrite for int8",
                "Keep the network in float for ncnn.",
            )
    if reader.position != len(reader.content):
        raise ExportError(
            f"the ncnn .bin file has {len(reader.content) - reader.position} bytes more than its layers need"
        )


_WITH_OTHER_WEIGHTS = {
    "Embed", "LayerNorm", "GroupNorm", "InstanceNorm", "RNN", "LSTM", "GRU", "Gemm", "MultiHeadAttention", "Bias",
    "Normalize", "RMSNorm", "Deconvolution1D", "ConvolutionDepthWise1D", "Convolution3D", "ConvolutionDepthWise3D",
}  # fmt: skip
# Their first array is tagged, all others are bare.
_TAGGED_FIRST = {
    "Convolution", "Convolution1D", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise", "InnerProduct",
}  # fmt: skip


def write_weights(layers: list[Layer], path: Path) -> None:
    """Writes the weights of all layers as a ``.bin``, each array in the storage of its dtype."""
    parts = []
    for layer in layers:
        for position, array in enumerate(layer.arrays):
            if position == 0 and layer.type in _TAGGED_FIRST:
                tag = {np.dtype(np.int8): TAG_INT8, np.dtype(np.float16): TAG_FLOAT16}.get(array.dtype, 0)
                parts.append(struct.pack("<I", tag))
            content = array.tobytes()
            parts.append(content + b"\0" * (-len(content) % 4))
    path.write_bytes(b"".join(parts))
