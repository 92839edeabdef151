"""How a file is executed: what a runtime and a session are, and the registry of runtimes.

This module runs on targets: it needs Python and NumPy alone.
"""

from __future__ import annotations

import abc
import importlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from .profile import Profile
    from .settings import Lacking

RUNTIMES: Mapping[str, str] = {
    "torch": ".torch:TorchRuntime",
    "onnxruntime": ".onnxruntime:OnnxRuntime",
    "tflite": ".tflite:TfliteRuntime",
    "ncnn": ".ncnn:NcnnRuntime",
    "openvino": ".openvino:OpenvinoRuntime",
}
"""Every runtime by its name, with the place of its class: imported only when it is used."""

SUFFIXES: Mapping[str, str] = {".onnx": "onnxruntime", ".tflite": "tflite", ".param": "ncnn", ".pt2": "torch"}
"""Which runtime runs a file unless another is named, by the end of its name; a bundle folder runs in torch."""


class RunError(Exception):
    """A file can't be opened or run; the message says why, with the runtime's own words."""


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can be used here.

    Attributes:
        usable: It was really loaded.
        version: Of its library; empty when it is missing.
        reason: Why it can't be used; empty when it can.
        install: The line that installs it.
    """

    usable: bool
    version: str = ""
    reason: str = ""
    install: str = ""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a file as the file has it.

    Attributes:
        name: In the file.
        shape: With -1 for a free dimension.
        dtype: NumPy's name of the type.
        scale: Of a quantized tensor; 0 for none.
        zero_point: Of a quantized tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True)
class Options:
    """How to open a file.

    Attributes:
        threads: Of the runtime.
        taps: Intermediate tensors to hand out with every run; ``("*",)`` for all. They may cost speed and fusion, so a
            session with taps is never timed.
        extra: Settings of one runtime that differ from its defaults, such as ``{"xnnpack": False}``; its
            :attr:`Runtime.settings` takes them.
        cpus: Keep the process on these CPUs; on any if empty.
        memory_limit_bytes: What loading and running the file may take, over what the library took; None for no limit.
    """

    threads: int = 1
    taps: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    cpus: tuple[int, ...] = ()
    memory_limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """A runtime that has nothing to set."""


class Session(abc.ABC):
    """A file, loaded in its runtime.

    An implementation guarantees: ``run`` takes and gives the bundle's layout and float32, whatever the file holds (it
    transposes, quantizes and dequantizes by the file's own scales); a batch gives what its samples give one by one;
    ``invoke`` does the inference alone, on the inputs of the last ``prepare``; ``facts`` tells what was really used, and
    lists in ``not_honoured`` whatever was asked for and not done; nothing is printed on stdout.
    """

    @abc.abstractmethod
    def metadata(self) -> dict[str, Any]:
        """What edgekit wrote into the file; empty for a stranger's file."""

    @abc.abstractmethod
    def inputs(self) -> list[TensorSpec]:
        """The inputs as the file has them."""

    @abc.abstractmethod
    def outputs(self) -> list[TensorSpec]:
        """The outputs as the file has them."""

    @abc.abstractmethod
    def prepare(self, x: np.ndarray) -> None:
        """Puts an input where :meth:`invoke` finds it: float32, bundle layout, batch as the file takes it."""

    @abc.abstractmethod
    def invoke(self) -> None:
        """Runs once on the prepared input."""

    @abc.abstractmethod
    def results(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The output of the last :meth:`invoke` as float32 (batch, …), and the tapped tensors."""

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """Library version, provider or delegate, threads, options, and ``not_honoured`` (a list of sentences).

        Where the session knows it, ``integer_weights``: the number of weights of each convolution or linear layer that is
        computed in integers. (ONNX Runtime tells it with the option ``{"kernels": True}``.)
        """

    def fixed_batch(self) -> int | None:
        """The batch that the file was made for; None when it is free."""
        first = self.inputs()[0].shape
        return first[0] if first and first[0] > 0 else None

    def run(self, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Runs a batch.

        Args:
            x: float32, bundle layout, shape (n, …).

        Returns:
            Output float32 (n, …), and the tapped tensors with n in front.
        """
        size = self.fixed_batch() or len(x)
        outputs: list[np.ndarray] = []
        taps: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(x), size):
            part = x[start : start + size]
            missing = size - len(part)
            if missing:
                part = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            self.prepare(part)
            self.invoke()
            output, tapped = self.results()
            outputs.append(np.array(output[: size - missing]))
            for name, value in tapped.items():
                taps.setdefault(name, []).append(np.array(value))
        joined = {}
        for name, values in taps.items():
            if all(value.ndim and value.shape == values[0].shape for value in values):
                joined[name] = np.concatenate(values) if len(values) > 1 else values[0]
        return np.concatenate(outputs), joined

    def profile(self, runs: int) -> Profile:
        """How long each operator takes, on the prepared input, as the runtime executes the file: after its fusions.

        An implementation guarantees: every operator that was executed is there once, in order, under a name of its own,
        with one sample of each run; ``whole_ms`` was taken without any profiling, in turn with the profiled runs; the
        runtime's settings are the session's.

        Args:
            runs: Profiled runs, after warm-up; as many are timed without profiling.

        Raises:
            RunError: If the runtime can't tell.
        """
        raise RunError("this runtime can't tell the times of its layers")

    def close(self) -> None:
        """Lets go of the file; nothing may be called afterwards."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Runtime(abc.ABC):
    """A library that runs files."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    install: ClassVar[str]
    install_on: ClassVar[Mapping[str, str]] = {}
    """What to do instead, by the machine (``platform.machine()``): where ``install`` finds no wheel."""
    settings: ClassVar[type] = NoSettings
    """A frozen dataclass of what can be set beside the threads; every field has a default."""

    @abc.abstractmethod
    def version(self) -> str:
        """Loads the library and tells its version; raises ImportError, or whatever the library raises."""

    @abc.abstractmethod
    def open(self, path: str, options: Options) -> Session:
        """Loads a file.

        Raises:
            RunError: If it can't be loaded.
        """

    def runs(self, path: str) -> bool:
        """Whether a file is of the kind that it runs."""
        return path.endswith(self.suffix)

    def lacking(self) -> Mapping[str, Lacking]:
        """The values of settings that can't be used here, as typed (``provider=cuda``), and what is missing for each.

        Opening a file with one of them raises :class:`.settings.UnusableError` with the same words. Only a runtime that is
        usable at all is asked.
        """
        return {}

    def availability(self) -> Availability:
        """Whether the runtime can be used here, tried by loading it."""
        try:
            return Availability(True, self.version())
        except Exception as error:
            install = self.install_on.get(platform.machine(), self.install)
            return Availability(False, "", f"{type(error).__name__}: {error}", install)


def runtime_for(name: str) -> Runtime:
    """The runtime of a registered name, or of ``package.module:Class``.

    Raises:
        RunError: If there is none.
    """
    place = RUNTIMES.get(name, name)
    if ":" not in place:
        raise RunError(f"no runtime is called {name!r}; known: {', '.join(RUNTIMES)}")
    module, _, attribute = place.partition(":")
    made: Runtime = getattr(importlib.import_module(module, __package__), attribute)()
    return made


def runtime_of_file(path: str) -> str | None:
    """The name of the runtime that runs a file or bundle folder; None if there is none."""
    import os

    if os.path.isdir(path):
        return "torch"
    return next((name for suffix, name in SUFFIXES.items() if path.endswith(suffix)), None)


def to_file_input(x: np.ndarray, spec: TensorSpec, layout: str) -> np.ndarray:
    """An input in the bundle's layout as the file takes it: NHWC and quantized if the file says so.

    Raises:
        RunError: If the shape does not fit.
    """
    if layout == "NHWC" and x.ndim == 4:
        x = x.transpose(0, 2, 3, 1)
    if len(spec.shape) != x.ndim or any(a not in (-1, b) for a, b in zip(spec.shape[1:], x.shape[1:], strict=True)):
        raise RunError(f"the file takes inputs of shape {spec.shape}, not {x.shape}")
    if spec.scale:
        info = np.iinfo(spec.dtype)
        x = np.clip(np.round(x / np.float32(spec.scale)) + spec.zero_point, info.min, info.max)
    return np.ascontiguousarray(x.astype(spec.dtype))


def from_file_tensor(value: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """A tensor of the file as float32, dequantized if it is quantized."""
    if scale:
        return (value.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return value.astype(np.float32) if value.dtype != np.float32 else value


def first_line(error: BaseException) -> str:
    """The first line of a library's message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def wants(taps: Sequence[str], name: str) -> bool:
    """Whether a tensor is to be tapped."""
    return "*" in taps or name in taps
