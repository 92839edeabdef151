"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .runtime import Options, RunError, Runtime, Session, TensorSpec, first_line, from_file_tensor, to_file_input

_ERRORS_ONLY, _NOTHING = 3, 4
# Operators that ONNX Runtime computes in integers, and which of their inputs is the weight.
_INTEGER_WEIGHT = {
    "QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3, "ConvInteger": 1, "MatMulInteger": 1, "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
}  # fmt: skip
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int8)": "int8", "tensor(uint8)": "uint8"}


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeSettings:
    """What can be set.

    Attributes:
        kernels: Tell in ``integer_weights`` what the optimized graph computes in integers; loading takes longer.
    """

    kernels: bool = False


class OnnxRuntime(Runtime):
    """Runs ``.onnx``."""

    name: ClassVar[str] = "onnxruntime"
    suffix: ClassVar[str] = ".onnx"
    install: ClassVar[str] = "pip install onnxruntime"
    install_on: ClassVar[Mapping[str, str]] = {
        "armv7l": "there is no wheel of it for 32-bit ARM: build it from its sources, or take a .tflite or ncnn file there"
    }
    settings: ClassVar[type] = OnnxRuntimeSettings

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def open(self, path: str, options: Options) -> Session:
        return OnnxSession(path, options)


class OnnxSession(Session):
    """An ``.onnx`` file, all graph optimizations on (basic ones alone when tensors are tapped)."""

    def __init__(self, path: str, options: Options) -> None:
        import onnxruntime as ort

        self._options = options
        chosen = OnnxRuntimeSettings(**options.extra)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = _ERRORS_ONLY
        # Spinning threads of one file would slow the other that is measured beside it.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0" if options.threads == 1 else "1")
        source: Any = path
        self._integer_weights: list[int] | None = None
        optimized = tempfile.TemporaryDirectory(prefix="edgekit-") if chosen.kernels else None
        if optimized is not None:
            settings.optimized_model_filepath = os.path.join(optimized.name, "optimized.onnx")
            # The graph after the last, hardware-specific pass is the one that runs; ONNX Runtime warns of keeping it.
            settings.log_severity_level = _NOTHING
        self._taps: list[str] = []
        try:
            if options.taps:
                source, self._taps = _with_taps(path, options.taps)
                settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            self._session = ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise RunError(f"ONNX Runtime can't load {path}: {first_line(error)}") from error
        if optimized is not None:
            self._integer_weights = _integer_weights(settings.optimized_model_filepath)
            optimized.cleanup()
        self._version = ort.__version__
        self._input = self._session.get_inputs()[0]
        self._names = [output.name for output in self._session.get_outputs()]
        self._metadata = self._session.get_modelmeta().custom_metadata_map
        self._feed: dict[str, np.ndarray] = {}
        self._values: list[np.ndarray] = []

    def metadata(self) -> dict[str, Any]:
        return dict(json.loads(self._metadata["edgekit"])) if "edgekit" in self._metadata else {}

    def inputs(self) -> list[TensorSpec]:
        return [_spec(value) for value in self._session.get_inputs()]

    def outputs(self) -> list[TensorSpec]:
        return [_spec(value) for value in self._session.get_outputs() if value.name not in self._taps]

    def prepare(self, x: np.ndarray) -> None:
        self._feed = {self._input.name: to_file_input(x, self.inputs()[0], "NCHW")}

    def invoke(self) -> None:
        self._values = self._session.run(None, self._feed)

    def results(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        taps = {
            name: np.asarray(value, np.float32)
            for name, value in zip(self._names, self._values, strict=True)
            if name in self._taps
        }
        return from_file_tensor(self._values[0], 0.0, 0), taps

    def facts(self) -> dict[str, Any]:
        return {
            "library": "onnxruntime",
            "version": self._version,
            "provider": self._session.get_providers()[0],
            "threads": self._options.threads,
            "arithmetic": "as the file says; float16 weights are computed in float32",
            **({} if self._integer_weights is None else {"integer_weights": self._integer_weights}),
            "not_honoured": [],
        }


def _integer_weights(path: str) -> list[int]:
    """How many weights each integer convolution and product of an optimized graph has."""
    import onnx

    graph = onnx.load(path).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in _INTEGER_WEIGHT]
    return [sizes.get(node.input[_INTEGER_WEIGHT[node.op_type]], 0) for node in nodes]


def _spec(value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(value.name, shape, _DTYPES.get(value.type, value.type))


def _with_taps(path: str, taps: tuple[str, ...]) -> tuple[bytes, list[str]]:
    """The model with float intermediate values as outputs, in memory."""
    import onnx

    model = onnx.load(path)
    inferred = onnx.shape_inference.infer_shapes(model)
    floats = {
        value.name for value in inferred.graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    present = {output.name for output in model.graph.output}
    constants = {name for node in model.graph.node if node.op_type in ("Constant", "Cast") for name in node.output}
    produced = [name for node in model.graph.node for name in node.output if name in floats - present - constants]
    chosen = [name for name in produced if "*" in taps or name in taps]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in chosen)
    return model.SerializeToString(), chosen
