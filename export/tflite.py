"""TFLite: through litert-torch in a child process, quantized programs as full-integer models with int8 in and out."""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.compress.rewrite import (
    crop_transposed_convolutions,
    global_pool_to_mean,
    mean_over_space_in_two,
    resizing_to_products,
)
from edgekit.errors import ExportError, MissingDependencyError, UnsupportedOperatorError
from edgekit.export.exporter import Exporter, Lowered
from edgekit.export.flatbuffer import edit_model
from edgekit.export.lowering import (
    activation_bits,
    deployed,
    expand_weights,
    narrow_weights,
    one_reader_each,
    pad_before_averages,
    refuse_few_levels,
    refuse_other_activations,
    round_weights,
)
from edgekit.export.tflite_sparse import sparse_path
from edgekit.files import atomic_file
from edgekit.forked import Ended, ForkServer, ServerError
from edgekit.program import duplicate, export_program, layer_name
from edgekit.pt2 import save_pt2

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from edgekit.bundle import Bundle

# MobileNetV2 takes some 20 s; a converter that hangs must not hang the command.
TIMEOUT_S = 1800
# Of what stands in the way of sparse kernels so much is told: most networks have the same reason many times.
_FEW = 3
_CONVERTER = ForkServer("edgekit.export.tflite_converter:convert")


class TfliteExporter(Exporter):
    """Writes ``.tflite`` with NHWC input and batch 1, proved in LiteRT."""

    name: ClassVar[str] = "tflite"
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float16", "int8")
    activations: ClassVar[tuple[int, ...]] = (8, 16)
    runtime: ClassVar[str] = "tflite"
    suffix: ClassVar[str] = ".tflite"
    input_layout: ClassVar[str] = "NHWC"

    def lower(self, bundle: Bundle, precision: str) -> Lowered:
        if importlib.util.find_spec("litert_torch") is None:
            raise MissingDependencyError("litert-torch", "tflite", "TFLite export")
        module = deployed(bundle)
        refuse_few_levels(module, "TFLite")
        notes = ["the input is NHWC"] if len(bundle.input_shape) == 3 else []
        # TFLite's int8 pooling demands the same scale in and out; its mean does not. Exact in float.
        global_pool_to_mean(module)
        mean_over_space_in_two(module)
        if crop_transposed_convolutions(module):
            notes.append("the padding of transposed convolutions is written as slices of their whole result: exact")
        if resizing_to_products(module):
            notes.append(
                "resizing that TFLite has no operator for is written as products with matrices, stored as weights"
            )
        if bundle.weights == "codes":
            notes.append("TFLite has no shared weights: the file holds each as a float, and is no smaller")
        if bundle.weights == "sparse" and precision == "float16":
            notes.append("zeros are stored and multiplied like any number: this file is no smaller and no faster")
        elif bundle.weights == "sparse":
            notes.append("weights are stored without their zeros: smaller")
        if precision == "float16":
            round_weights(module, precision)
            notes.append("weights are stored in float16; XNNPACK computes in float32 on x86")
        if precision == "int8":
            refuse_other_activations(module, "TFLite", self.activations)
            pad_before_averages(module)
            bits = activation_bits(module)
            notes.append(f"input and output are int{bits}, with the scales that the bundle gives them")
            if bits == 16:
                notes.append(
                    "XNNPACK has no kernels for int16 activations: TFLite's own compute them, more slowly than int8"
                )
            if narrow_weights(module):
                notes.append(
                    "weights of up to 4 bits are stored as int4: XNNPACK has no such convolutions, TFLite's own kernels "
                    "compute them more slowly than int8"
                )
        return Lowered(module, precision, bundle.input_shape, tuple(notes))

    def write(self, lowered: Lowered, path: Path, metadata: dict[str, Any]) -> list[Path]:
        module = lowered.module
        if lowered.precision == "int8":
            module = duplicate(module)
            expand_weights(module)
            one_reader_each(module)
        content = _convert(module, lowered)
        content = edit_model(
            content,
            metadata=json.dumps(metadata),
            half_weights=lowered.precision == "float16",
            narrow_weights=lowered.precision == "int8" and bool(narrow_weights(module)),
            sparse_weights=lowered.precision != "float16",
            wide_biases=lowered.precision == "int8" and activation_bits(module) == 16,
        )
        with atomic_file(path) as partial:
            partial.write_bytes(content)
        return [path]

    def remarks(self, lowered: Lowered, path: Path) -> tuple[str, ...]:
        found = sparse_path(path.read_bytes())
        if not found.stored:
            return ()
        where = "on ARM; on x86 it has none for processors with AVX, and dense ones fill the zeros in: no faster there"
        if found.layers:
            every = len(found.layers) + len(found.dense)
            return (
                f"XNNPACK computes {len(found.layers)} of {every} 1×1 convolutions by its sparse kernels {where}",
                *(f"not the others: {reason}" for reason in found.obstacles[:_FEW] if found.dense),
            )
        return (
            "zeros are filled in on loading: no faster. For XNNPACK's sparse kernels stand in the way: "
            + "; ".join(found.obstacles[:_FEW] or ("the weights are no float32",)),
        )


def _convert(module: GraphModule, lowered: Lowered) -> bytes:
    """Runs the converter in a process of its own: it is native code, brings jax along, and prints."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        source, target = Path(folder, "program.pt2"), Path(folder, "model.tflite")
        save_pt2(export_program(module, lowered.input_shape, origin="the lowered program"), source)
        request = {"source": str(source), "target": str(target), "int8": lowered.precision == "int8"}
        try:
            done = _CONVERTER.call(request, TIMEOUT_S)
        except TimeoutError as error:
            raise ExportError(f"the TFLite converter gave no result in {TIMEOUT_S} s and was stopped") from error
        except ServerError as error:
            last = str(error).splitlines()[-1:] or ["no message"]
            raise ExportError(f"the TFLite converter could not be started: {last[0]}") from error
        if done.returncode or not target.is_file():
            raise _failure(module, done)
        return target.read_bytes()


def _failure(module: GraphModule, done: Ended) -> ExportError:
    text = done.output
    for node in module.graph.nodes:
        short = str(node.target).removesuffix(".default")
        if node.op == "call_function" and f"{short}" in text and "not implemented" in text.lower():
            return UnsupportedOperatorError(
                f"TFLite export refuses the operator {node.target} at {layer_name(node)} (node {node.name})",
                "Write that part of the model with operators that TFLite has, or leave TFLite out of --to.",
            )
    reason = f"died by signal {-done.returncode}" if done.returncode < 0 else "failed"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*:", line)]
    last = (said or lines or ["no message"])[-1]
    at = re.findall(r"While executing %(\w+) ", text)
    node = next((node for node in module.graph.nodes if at and node.name == at[-1]), None)
    if node is not None:
        return UnsupportedOperatorError(
            f"the TFLite converter {reason} on the operator {node.target} at {layer_name(node)} (node {node.name}): {last}",
            "Write that part of the model otherwise, or leave TFLite out of --to.",
        )
    return ExportError(
        f"the TFLite converter {reason}: {last}", "The operator may have no TFLite form; see the message."
    )
