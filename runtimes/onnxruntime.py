"""ONNX Runtime, on the CPU or with one of its other execution providers."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from . import onnx_graph, onnx_provider
from .runtime import Options, RunError, Runtime, Session, TensorSpec, first_line, from_file_tensor, to_file_input
from .settings import Lacking, UnusableError, read

if TYPE_CHECKING:
    from .profile import Profile

_ERRORS_ONLY, _NOTHING = 3, 4
_LEVELS = {
    "disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL",
}  # fmt: skip
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int8)": "int8", "tensor(uint8)": "uint8"}
_PRECISIONS = {"cuda": ("float32", "tf32"), "tensorrt": ("float32", "tf32", "float16", "int8")}


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeSettings:
    """What can be set.

    Attributes:
        provider: What computes. On a GPU (cuda, tensorrt) a run ends when the GPU has ended it; the input is copied there
            before. A provider that is missing or would not start is an error, never a run on the CPU.
        precision: Of float layers in cuda (``tf32``: the factors of products are rounded to 10 bits of fraction) and tensorrt
            (also ``float16``, and ``int8`` for symmetrically quantized files, with float16 for the rest).
        optimization: How much of the graph is rewritten when it is loaded. Q/DQ pairs become integer operators from
            ``extended`` on.
        execution: ``parallel`` runs branches of the graph side by side, with the same number of threads.
        spinning: Whether idle threads wait busily; ``auto`` does with more than one.
        kernels: Tell in ``integer_weights`` what the optimized graph computes in integers; loading takes longer.
    """

    provider: Literal["cpu", "cuda", "tensorrt", "openvino"] = "cpu"
    precision: Literal["float32", "tf32", "float16", "int8"] = "float32"
    optimization: Literal["disabled", "basic", "extended", "all"] = "all"
    execution: Literal["sequential", "parallel"] = "sequential"
    spinning: Literal["auto", "on", "off"] = "auto"
    kernels: bool = False

    def __post_init__(self) -> None:
        offered = _PRECISIONS.get(self.provider, ("float32",))
        if self.precision not in offered:
            raise ValueError(
                f"precision={self.precision} is not for provider={self.provider}, which computes float layers in "
                f"{' or '.join(offered)}; int8 and float16 files need no setting"
            )


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

    def lacking(self) -> Mapping[str, Lacking]:
        found = {provider: onnx_provider.lacking(provider) for provider in onnx_provider.NAMES}
        return {f"provider={provider}": lacking for provider, lacking in found.items() if lacking is not None}

    def open(self, path: str, options: Options) -> Session:
        return OnnxSession(path, options)


class OnnxSession(Session):
    """An ``.onnx`` file; no optimizations when tensors are tapped."""

    def __init__(self, path: str, options: Options) -> None:
        import onnxruntime as ort

        self._options = options
        self._chosen = read(OnnxRuntimeSettings, options.extra, "onnxruntime")
        provider = self._chosen.provider
        if (lacking := onnx_provider.lacking(provider)) is not None:
            raise UnusableError(f"provider={provider}", lacking)
        self._taps: list[str] = []
        self._integer_weights: list[int] | None = None
        with (
            tempfile.TemporaryDirectory(prefix="edgekit-")
            if self._chosen.kernels
            else contextlib.nullcontext("") as folder
        ):
            optimized = os.path.join(folder, "optimized.onnx") if folder else ""
            try:
                source = self._source(path)
                if onnx_provider.is_gpu(provider):
                    onnx_provider.preload()
                asked = onnx_provider.asked(provider, self._chosen.precision)
                self._session = ort.InferenceSession(source, self._session_options(optimized), providers=asked)
            except RunError:
                raise
            except Exception as error:
                raise RunError(f"ONNX Runtime can't load {path}: {first_line(error)}") from error
            if self._session.get_providers()[0] != onnx_provider.NAMES[provider]:
                raise UnusableError(f"provider={provider}", onnx_provider.not_started(provider))
            if optimized:
                self._integer_weights = onnx_graph.integer_weights(optimized)
        self._version = ort.__version__
        self._input = self._session.get_inputs()[0]
        self._names = [output.name for output in self._session.get_outputs()]
        self._metadata = self._session.get_modelmeta().custom_metadata_map
        self._bound = onnx_provider.Bound(self._session, "cuda") if onnx_provider.is_gpu(provider) else None
        self._elsewhere = onnx_provider.placed_elsewhere(self._session, provider) if provider != "cpu" else []
        self._feed: dict[str, np.ndarray] = {}
        self._values: list[np.ndarray] = []
        self._run: Callable[[], None] = self._run_on_cpu

    def _source(self, path: str) -> str | bytes:
        if not self._options.taps and self._chosen.provider != "tensorrt":
            return path
        with open(path, "rb") as stream:
            content = stream.read()
        if self._chosen.provider == "tensorrt":
            content = onnx_graph.for_tensorrt(content, self._chosen.precision)
        if self._options.taps:
            content, self._taps = onnx_graph.with_taps(content, self._options.taps)
        return content

    def _session_options(self, optimized: str) -> Any:
        import onnxruntime as ort

        settings, chosen, threads = ort.SessionOptions(), self._chosen, self._options.threads
        parallel = chosen.execution == "parallel"
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = threads if parallel else 1
        settings.execution_mode = ort.ExecutionMode.ORT_PARALLEL if parallel else ort.ExecutionMode.ORT_SEQUENTIAL
        level = "disabled" if self._options.taps else chosen.optimization
        settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[level])
        settings.log_severity_level = _ERRORS_ONLY
        # Spinning threads of one file would slow the other that is measured beside it.
        spins = threads > 1 if chosen.spinning == "auto" else chosen.spinning == "on"
        for pool in ("intra", "inter"):
            settings.add_session_config_entry(f"session.{pool}_op.allow_spinning", str(int(spins)))
        if chosen.provider != "cpu":
            settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if optimized:
            settings.optimized_model_filepath = optimized
            # The graph after the last, hardware-specific pass is the one that runs; ONNX Runtime warns of keeping it.
            settings.log_severity_level = _NOTHING
        return settings

    def metadata(self) -> dict[str, Any]:
        return dict(json.loads(self._metadata["edgekit"])) if "edgekit" in self._metadata else {}

    def inputs(self) -> list[TensorSpec]:
        return [_spec(value) for value in self._session.get_inputs()]

    def outputs(self) -> list[TensorSpec]:
        return [_spec(value) for value in self._session.get_outputs() if value.name not in self._taps]

    def prepare(self, x: np.ndarray) -> None:
        self._feed = {self._input.name: to_file_input(x, self.inputs()[0], "NCHW")}
        if self._bound is not None:
            self._run = self._bound.prepare(self._feed)

    def _run_on_cpu(self) -> None:
        self._values = self._session.run(None, self._feed)

    def invoke(self) -> None:
        self._run()

    def results(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        values = self._values if self._bound is None else self._bound.values()
        taps = {
            name: np.asarray(value, np.float32)
            for name, value in zip(self._names, values, strict=True)
            if name in self._taps
        }
        return from_file_tensor(values[0], 0.0, 0), taps

    def facts(self) -> dict[str, Any]:
        gpu = self._bound is not None
        return {
            "library": "onnxruntime",
            "version": self._version,
            "provider": self._session.get_providers()[0],
            "optimization": "disabled" if self._options.taps else self._chosen.optimization,
            "execution": self._chosen.execution,
            "spinning": self._chosen.spinning,
            "threads": self._options.threads,
            "arithmetic": self._arithmetic(),
            **({"timed": "on the device, until it has ended; without the copies of input and output"} if gpu else {}),
            **({} if self._integer_weights is None else {"integer_weights": self._integer_weights}),
            "not_honoured": list(self._elsewhere),
        }

    def _arithmetic(self) -> str:
        if self._chosen.provider == "cuda":
            return f"{self._chosen.precision}; quantized layers are simulated in it"
        if self._chosen.provider == "tensorrt":
            return f"{self._chosen.precision}; TensorRT may take a wider type where that is faster"
        return "as the file says; float16 weights are computed in float32"

    def profile(self, runs: int) -> Profile:
        from .profile_onnxruntime import profile

        if self._chosen.provider != "cpu":
            raise RunError("ONNX Runtime's layers are timed with provider=cpu alone")
        return profile(self._session, self._feed, runs)


def _spec(value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(value.name, shape, _DTYPES.get(value.type, value.type))
