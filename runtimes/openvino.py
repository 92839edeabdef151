"""OpenVINO: ``.onnx`` files on Intel's and other x86 CPUs, ARM CPUs, and Intel's GPUs and NPUs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from .runtime import Options, RunError, Runtime, Session, TensorSpec, first_line, from_file_tensor, to_file_input, wants
from .settings import Lacking, UnusableError, read

if TYPE_CHECKING:
    from .profile import Profile

_DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
_INSTALL = "pip install openvino"
_DRIVERS = {
    "gpu": "install Intel's GPU driver (apt-get install intel-opencl-icd), then pip install openvino",
    "npu": "install Intel's NPU driver (github.com/intel/linux-npu-driver), then pip install openvino",
}
# OpenVINO's names, to be asked for and as it tells them.
_PRECISIONS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_TOLD = {told: name for name, told in _PRECISIONS.items()}
_WEIGHTED = ("Convolution", "FullyConnected")
_INTEGERS = ("i8", "u8")
# Where OpenVINO keeps the metadata entry that edgekit writes into an ONNX file.
_METADATA = ["framework", "edgekit"]


@dataclass(frozen=True, kw_only=True)
class OpenvinoSettings:
    """What can be set.

    Attributes:
        device: Where to compute.
        precision: Of float layers. OpenVINO's own choice is bfloat16 on CPUs that have it, and float16 on GPUs, which changes
            results by up to 1e-2: float32 unless asked. Quantized layers compute in integers in any case.
        hint: ``latency`` gives all threads to one input, ``throughput`` divides them over streams that work side by side; a
            single caller then waits longer.
    """

    device: Literal["cpu", "gpu", "npu"] = "cpu"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    hint: Literal["latency", "throughput"] = "latency"


class OpenvinoRuntime(Runtime):
    """Runs ``.onnx`` where it is named: the files' usual runtime is ONNX Runtime."""

    name: ClassVar[str] = "openvino"
    suffix: ClassVar[str] = ".onnx"
    install: ClassVar[str] = _INSTALL
    settings: ClassVar[type] = OpenvinoSettings

    def version(self) -> str:
        import openvino

        return _version(openvino)

    def lacking(self) -> Mapping[str, Lacking]:
        found = {device: _lacking(device) for device in _DRIVERS}
        return {f"device={device}": lacking for device, lacking in found.items() if lacking is not None}

    def open(self, path: str, options: Options) -> Session:
        return OpenvinoSession(path, options)


def _version(library: Any) -> str:
    return str(library.__version__).split("-")[0]  # without the build's number and commit


def _lacking(device: str) -> Lacking | None:
    """Why a device can't be used; None if it can."""
    import openvino

    there = openvino.Core().available_devices
    if any(name.split(".")[0] == _DEVICES[device] for name in there):
        return None
    return Lacking(
        f"OpenVINO sees no {_DEVICES[device]} here, only {', '.join(there)}",
        _DRIVERS.get(device, _INSTALL),
    )


class OpenvinoSession(Session):
    """An ``.onnx`` file, compiled for a device with every option that changes results set explicitly."""

    def __init__(self, path: str, options: Options) -> None:
        import openvino

        self._path, self._options, self._openvino = path, options, openvino
        self._chosen = read(OpenvinoSettings, options.extra, "openvino")
        device = self._chosen.device
        if device != "cpu" and (lacking := _lacking(device)) is not None:
            raise UnusableError(f"device={device}", lacking)
        try:
            core = openvino.Core()
            model = core.read_model(path)
            self._outputs = len(model.outputs)
            self._taps = _add_taps(model, options.taps) if options.taps else []
            self._model = core.compile_model(model, _DEVICES[device], self._asked())
            self._request = self._model.create_infer_request()
        except (RuntimeError, OSError, ValueError) as error:
            raise RunError(f"OpenVINO can't load {path}: {_reason(error)}") from error
        self._metadata = json.loads(model.get_rt_info(_METADATA).astype(str)) if model.has_rt_info(_METADATA) else {}
        self._device = core.get_property(_DEVICES[device], "FULL_DEVICE_NAME")
        self._inputs = [_spec(port) for port in self._model.inputs]
        self._integer_weights: list[int] | None = None
        self._array = np.zeros(0, np.float32)

    def _asked(self) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "PERFORMANCE_HINT": self._chosen.hint.upper(),
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self._chosen.precision],
        }
        if self._chosen.device == "cpu":
            # Pinned threads of two files that are measured in turn would meet on the same cores.
            asked |= {"INFERENCE_NUM_THREADS": self._options.threads, "ENABLE_CPU_PINNING": False}
        return asked

    def metadata(self) -> dict[str, Any]:
        return self._metadata

    def inputs(self) -> list[TensorSpec]:
        return self._inputs

    def outputs(self) -> list[TensorSpec]:
        return [_spec(port) for port in self._model.outputs[: self._outputs]]

    def prepare(self, x: np.ndarray) -> None:
        # The tensor is a view of the array, which must live as long.
        self._array = to_file_input(x, self._inputs[0], "NCHW")
        self._request.set_input_tensor(self._openvino.Tensor(self._array, shared_memory=True))

    def invoke(self) -> None:
        self._request.infer()

    def results(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        taps = {
            name: np.array(self._request.get_output_tensor(self._outputs + position).data, np.float32)
            for position, name in enumerate(self._taps)
        }
        return from_file_tensor(np.array(self._request.get_output_tensor(0).data), 0.0, 0), taps

    def facts(self) -> dict[str, Any]:
        told = {name.lower(): self._property(name) for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS")}
        threads = told["inference_num_threads"]
        if self._integer_weights is None:  # asked for here, so that loading is not timed with it
            self._integer_weights = _integer_weights(self._model)
        hinted = self._property("INFERENCE_PRECISION_HINT")
        used = _TOLD.get(hinted.get_type_name(), "") if hinted is not None else ""
        not_honoured = []
        if used != self._chosen.precision:
            not_honoured.append(
                f"precision={self._chosen.precision} was asked for, and OpenVINO computes in {used or '?'}"
            )
        if threads not in (None, self._options.threads):
            not_honoured.append(f"{self._options.threads} threads were asked for, and OpenVINO takes {threads}")
        return {
            "library": "openvino",
            "version": _version(self._openvino),
            "device": self._device,
            "precision": used,
            "hint": self._chosen.hint,
            "streams": told["num_streams"],
            "threads": self._options.threads if threads is None else threads,
            "integer_weights": self._integer_weights,
            "not_honoured": not_honoured,
        }

    def profile(self, runs: int) -> Profile:
        from .profile_openvino import profile

        asked = {**self._asked(), "PERF_COUNT": True}
        counted = self._openvino.Core().compile_model(self._path, _DEVICES[self._chosen.device], asked)
        tensor = self._openvino.Tensor(self._array, shared_memory=True)
        return profile(counted, self._request, tensor, runs)

    def _property(self, name: str) -> Any:
        """A property of the compiled model; None where its device does not tell it."""
        try:
            return self._model.get_property(name)
        except RuntimeError:
            return None

    def close(self) -> None:
        del self._request, self._model


def _spec(port: Any) -> TensorSpec:
    shape = tuple(-1 if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(port.any_name, shape, np.dtype(port.element_type.to_dtype()).name)


def _add_taps(model: Any, taps: tuple[str, ...]) -> list[str]:
    """Makes float intermediate values outputs; gives their names in order."""
    present = {name for port in model.outputs for name in port.names}
    chosen = []
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Constant", "Parameter", "Result", "Convert"):
            continue
        for port in node.outputs():
            name = next(iter(sorted(port.names)), "")
            if name and name not in present and wants(taps, name) and port.element_type.to_dtype() == np.float32:
                chosen.append(name)
    if chosen:
        model.add_outputs(chosen)
    return chosen


def _integer_weights(model: Any) -> list[int]:
    """How many weights each layer has that the compiled model computes in integers."""
    found = []
    for node in model.get_runtime_model().get_ordered_ops():
        told = node.get_rt_info()
        kind, precision = (told[key].astype(str) if key in told else "" for key in ("layerType", "runtimePrecision"))
        if kind in _WEIGHTED and precision in _INTEGERS and len(node.inputs()) > 1:
            found.append(math.prod(node.input_value(1).get_partial_shape().to_shape()))
    return found


def _reason(error: Exception) -> str:
    """The last line of what OpenVINO says that says something; those before name lines of its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)
