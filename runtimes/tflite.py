"""LiteRT (TensorFlow Lite) on the CPU, with XNNPACK."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .runtime import Options, RunError, Runtime, Session, TensorSpec, first_line, from_file_tensor, to_file_input, wants
from .settings import read

if TYPE_CHECKING:
    from .profile import Profile

_MAGIC = b"TFL3"


_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


@dataclass(frozen=True, kw_only=True)
class TfliteSettings:
    """What can be set.

    Attributes:
        xnnpack: Compute with XNNPACK what it takes; otherwise with LiteRT's own kernels.
        fusion: XNNPACK takes neighbouring operators together; otherwise each by itself, with its tensors between.
        reference: LiteRT's plain reference kernels instead of its optimized ones: slow, and what others are judged by.
    """

    xnnpack: bool = True
    fusion: bool = True
    reference: bool = False

    def __post_init__(self) -> None:
        if self.reference and self.xnnpack:
            raise ValueError("reference=true is about LiteRT's own kernels: add xnnpack=false")
        if not self.fusion and not self.xnnpack:
            raise ValueError("fusion=false is about XNNPACK, and xnnpack=false leaves it out")


class TfliteRuntime(Runtime):
    """Runs ``.tflite``."""

    name: ClassVar[str] = "tflite"
    suffix: ClassVar[str] = ".tflite"
    install: ClassVar[str] = "pip install ai-edge-litert"
    install_on: ClassVar[Mapping[str, str]] = {"armv7l": "pip install tflite-runtime"}
    settings: ClassVar[type] = TfliteSettings

    def version(self) -> str:
        return _interpreter()[2]

    def open(self, path: str, options: Options) -> Session:
        return TfliteSession(path, options)


def _interpreter() -> tuple[Any, Any, str]:
    """Interpreter class, resolver enumeration and version of the best library there is."""
    from importlib.metadata import version

    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        return Interpreter, OpResolverType, f"ai-edge-litert {version('ai-edge-litert')}"
    except ImportError:
        # Its predecessor, for boards that have no wheel of the new one.
        from tflite_runtime.interpreter import Interpreter, OpResolverType

        return Interpreter, OpResolverType, f"tflite-runtime {version('tflite-runtime')}"


class TfliteSession(Session):
    """A ``.tflite`` file; without delegate when tensors are tapped or XNNPACK is switched off."""

    def __init__(self, path: str, options: Options) -> None:
        interpreter, resolver, self._version = _interpreter()
        self._options = options
        chosen = read(TfliteSettings, options.extra, "tflite")
        self._plain = bool(options.taps) or not chosen.xnnpack
        self._kernels = "reference" if chosen.reference else "optimized"
        settings: dict[str, Any] = {"num_threads": options.threads}
        if chosen.reference:
            settings["experimental_op_resolver_type"] = resolver.BUILTIN_REF
        elif self._plain:
            settings["experimental_op_resolver_type"] = resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        elif not chosen.fusion:
            settings["experimental_disable_delegate_node_fusion"] = True
        if options.taps:
            settings["experimental_preserve_all_tensors"] = True
        try:
            with open(path, "rb") as stream:
                content = stream.read()
            if content[4:8] != _MAGIC:
                raise RunError(f"{path} is no TFLite file: its identifier is {content[4:8]!r}")
            self._interpreter = interpreter(model_content=content, **settings)
            self._operators_before = len(self._interpreter._get_ops_details())
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise RunError(f"LiteRT can't load {path}: {first_line(error)}") from error
        except TypeError as error:  # tflite-runtime is older than some settings
            raise RunError(
                f"{self._version} lacks a setting: {first_line(error)}; pip install ai-edge-litert"
            ) from error
        self._metadata = _read_metadata(content)
        self._input = self._interpreter.get_input_details()[0]
        self._output = self._interpreter.get_output_details()[0]
        self._index = self._input["index"]

    def metadata(self) -> dict[str, Any]:
        return self._metadata

    def inputs(self) -> list[TensorSpec]:
        return [_spec(detail) for detail in self._interpreter.get_input_details()]

    def outputs(self) -> list[TensorSpec]:
        return [_spec(detail) for detail in self._interpreter.get_output_details()]

    def prepare(self, x: np.ndarray) -> None:
        layout = self._metadata.get("input_layout", "NCHW")
        self._interpreter.set_tensor(self._index, to_file_input(x, _spec(self._input), layout))

    def invoke(self) -> None:
        self._interpreter.invoke()

    def results(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        output = from_file_tensor(self._interpreter.get_tensor(self._output["index"]), *self._output["quantization"])
        taps: dict[str, np.ndarray] = {}
        if self._options.taps:
            written = {int(i) for op in self._interpreter._get_ops_details() for i in op["outputs"]}
            for detail in self._interpreter.get_tensor_details():
                if detail["index"] in written and wants(self._options.taps, detail["name"]):
                    value = self._interpreter.get_tensor(detail["index"])
                    taps[f"{detail['name']}#{detail['index']}"] = from_file_tensor(value, *detail["quantization"])
        return output, taps

    def _integer_weights(self, operators: list[dict[str, Any]]) -> list[int]:
        details = {detail["index"]: detail for detail in self._interpreter.get_tensor_details()}
        found = []
        for operator in operators:
            if operator["op_name"] in _WEIGHTED:
                x, weight = (details[int(index)] for index in operator["inputs"][:2])
                if np.dtype(x["dtype"]) in (np.int8, np.int16):
                    found.append(int(np.prod(weight["shape"])))
        return found

    def facts(self) -> dict[str, Any]:
        operators = self._interpreter._get_ops_details()
        delegated = sum(op["op_name"] == "DELEGATE" for op in operators)
        replaced = {int(i) for op in operators if op["op_name"] == "DELEGATE" for i in op["outputs"]}
        wanted = not self._plain
        left = [] if not wanted else _left_to_kernels(operators)
        return {
            "library": "litert",
            "version": self._version,
            "delegate": "XNNPACK" if delegated else "none",
            "delegate_partitions": delegated,
            "kernels": self._kernels,
            "operators": self._operators_before,
            "operators_outside_delegate": left,
            "delegate_outputs": len(replaced),
            "integer_weights": self._integer_weights(operators),
            "threads": self._options.threads,
            "not_honoured": ["XNNPACK was asked for and took no operator"] if wanted and not delegated else [],
        }

    def profile(self, runs: int) -> Profile:
        from .profile_tflite import profile

        return profile(self._interpreter, self._input, self._options.threads, self._plain, runs)


def _left_to_kernels(operators: list[dict[str, Any]]) -> list[str]:
    """The operators that the delegate did not take: those whose outputs no delegate partition computes.

    The execution plan keeps replaced operators in the list; a partition's inputs and outputs tell what it covers.
    """
    plain = [op for op in operators if op["op_name"] != "DELEGATE"]
    partitions = [op for op in operators if op["op_name"] == "DELEGATE"]
    producers = {int(i): op for op in plain for i in op["outputs"]}
    covered: set[int] = set()
    for partition in partitions:
        known = {int(i) for i in partition["inputs"]}
        frontier = [int(i) for i in partition["outputs"]]
        while frontier:
            index = frontier.pop()
            op = producers.get(index)
            if index in known or op is None or op["index"] in covered:
                continue
            covered.add(op["index"])
            frontier += [int(i) for i in op["inputs"] if int(i) >= 0]
    return [op["op_name"] for op in plain if op["index"] not in covered] if partitions else []


def _spec(detail: dict[str, Any]) -> TensorSpec:
    scale, zero_point = detail["quantization"]
    dtype = np.dtype(detail["dtype"]).name
    return TensorSpec(detail["name"], tuple(int(s) for s in detail["shape"]), dtype, float(scale), int(zero_point))


def _read_metadata(content: bytes) -> dict[str, Any]:
    """edgekit's JSON from the file's metadata; read without the schema's library where that is missing."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        marker = content.find(b'{"edgekit"')
        if marker < 0:
            return {}
        return dict(json.JSONDecoder().raw_decode(content[marker:].decode("utf-8", "replace"))[0])
    model = schema.Model.GetRootAs(content, 0)
    for position in range(model.MetadataLength()):
        entry = model.Metadata(position)
        if entry.Name() == b"edgekit":
            return dict(json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()))
    return {}
