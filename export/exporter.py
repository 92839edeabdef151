"""What an exporter is, and the registry of formats.

An exporter turns a bundle into the files of one format in two moves that can be looked at separately: ``lower`` gives
the program that the format will compute, still in PyTorch; ``write`` turns that program into files. The proof compares
the files with the first, and the first with the bundle. Adding a format means adding its file and one line in
``EXPORTERS``: that gives it its name on the command line and the conformance tests of :mod:`edgekit.testing.exporters`.
"""

from __future__ import annotations

import abc
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.errors import ExportError, UnknownNameError

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from edgekit.bundle import Bundle

PRECISIONS = ("float32", "float16", "bfloat16", "int8")

EXPORTERS: Mapping[str, str] = {
    "onnx": "edgekit.export.onnx:OnnxExporter",
    "tflite": "edgekit.export.tflite:TfliteExporter",
    "ncnn": "edgekit.export.ncnn:NcnnExporter",
}
"""Every format by its name, with the place of its exporter: imported only when it is used."""


@dataclass(frozen=True)
class Lowered:
    """A bundle's program as one format will compute it.

    Attributes:
        module: The program, runnable in PyTorch; its weights and scales are those of the file to be.
        precision: One of :data:`PRECISIONS`.
        input_shape: Shape of one input without the batch, in the bundle's layout.
        notes: What was rewritten for this format, and what the format can't keep.
        shifted: Tensors that the file holds as s (x - c), by the name of the node, with s (1 or -1) and c.
    """

    module: GraphModule
    precision: str
    input_shape: tuple[int, ...]
    notes: tuple[str, ...] = field(default=())
    shifted: Mapping[str, tuple[int, float]] = field(default_factory=dict)


class Exporter(abc.ABC):
    """Base of all exporters.

    An implementation guarantees: ``lower`` changes no result beyond what its notes say; ``write`` takes weights, scales
    and zero points from the lowered program and finds none by itself; every operator that the format lacks is refused by
    name before anything is written; the metadata travels in the file.
    """

    name: ClassVar[str]
    runtime: ClassVar[str]
    """The runtime that proves the files."""
    precisions: ClassVar[tuple[str, ...]]
    """Those of :data:`PRECISIONS` that the format can store."""
    activations: ClassVar[tuple[int, ...]]
    """Bits of activations beside int8 weights that its runtime has kernels for; 32 is float."""
    suffix: ClassVar[str]
    """Of the file that is handed to the runtime."""
    input_layout: ClassVar[str]
    """``NCHW`` or ``NHWC``: of the input in the file."""

    @abc.abstractmethod
    def lower(self, bundle: Bundle, precision: str) -> Lowered:
        """The program that the format will compute.

        Raises:
            UnsupportedOperatorError: If the format lacks an operator.
        """

    @abc.abstractmethod
    def write(self, lowered: Lowered, path: Path, metadata: dict[str, Any]) -> list[Path]:
        """Writes the files.

        Args:
            lowered: What :meth:`lower` gave.
            path: The main file, ending in ``suffix``.
            metadata: JSON values that have to travel in the file.

        Returns:
            All files written, the main one first.

        Raises:
            ExportError: If the converter fails; its own words are handed on.
        """

    def remarks(self, lowered: Lowered, path: Path) -> tuple[str, ...]:
        """What a written file tells about itself that was not known before: what its runtime will make of it."""
        return ()


def exporter_for(name: str) -> Exporter:
    """The exporter of a format.

    Raises:
        UnknownNameError: If there is no such format.
    """
    if name not in EXPORTERS:
        raise UnknownNameError("format", name, EXPORTERS)
    module, _, attribute = EXPORTERS[name].partition(":")
    made: Exporter = getattr(importlib.import_module(module), attribute)()
    return made


def check_precision(bundle: Bundle, precision: str, exporters: Iterable[Exporter] = ()) -> None:
    """Refuses a precision that the bundle can't honestly give, or a format can't store.

    Raises:
        ExportError: For int8 from a float bundle, float from an int8 one, and for a format without it.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    for exporter in exporters:
        if precision not in exporter.precisions:
            raise ExportError(
                f"{exporter.name} files can't hold {precision} weights",
                f"Choose --precision {' or '.join(exporter.precisions)} for it, or leave it out of --to.",
            )
    if precision == "int8" and bundle.precision != "int8":
        raise ExportError(
            "the bundle holds float weights and no calibrated ranges, so there is no int8 to export",
            "Run `edgekit compress … --step quantize` first: formats never calibrate on their own here.",
        )
    if precision != "int8" and bundle.precision == "int8":
        raise ExportError(
            f"the bundle is quantized to int8 and its float weights are gone, so {precision} would only pretend",
            "Export the bundle from before its quantize step.",
        )


__all__ = ["EXPORTERS", "PRECISIONS", "ExportError", "Exporter", "Lowered", "check_precision", "exporter_for"]
