"""Runtimes made for the benches of the harness: one that computes nothing, and ones that are slower on purpose."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import numpy as np

from edgekit.runtimes.ncnn import NcnnRuntime
from edgekit.runtimes.onnxruntime import OnnxRuntime
from edgekit.runtimes.runtime import Options, Runtime, Session, TensorSpec
from edgekit.runtimes.tflite import TfliteRuntime

SLOWER = 0.05
NOTHING = "odd_runtimes:NothingRuntime"
SLOW = {
    "onnxruntime": "odd_runtimes:SlowOnnxRuntime",
    "tflite": "odd_runtimes:SlowTfliteRuntime",
    "ncnn": "odd_runtimes:SlowNcnnRuntime",
}


class NothingSession(Session):
    """An inference that takes no time: what is timed is the harness. It notes when it is called."""

    def __init__(self) -> None:
        self._calls: list[int] = []

    def metadata(self) -> dict[str, Any]:
        return {}

    def inputs(self) -> list[TensorSpec]:
        return [TensorSpec("input", (-1, 4), "float32")]

    def outputs(self) -> list[TensorSpec]:
        return [TensorSpec("output", (-1, 1), "float32")]

    def prepare(self, x: np.ndarray) -> None:
        """Takes no input."""

    def invoke(self) -> None:
        self._calls.append(time.perf_counter_ns())

    def results(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return np.zeros((1, 1), np.float32), {}

    def facts(self) -> dict[str, Any]:
        between = np.diff(np.array(self._calls[-2000:])) if len(self._calls) > 1 else np.zeros(1)
        facts = {"library": "none", "version": "0", "threads": 1, "not_honoured": []}
        return {**facts, "median_ns_between_calls": float(np.median(between))}


class NothingRuntime(Runtime):
    """Runs any file, and computes nothing."""

    name: ClassVar[str] = NOTHING
    suffix: ClassVar[str] = ""
    install: ClassVar[str] = ""

    def version(self) -> str:
        return "0"

    def open(self, path: str, options: Options) -> Session:
        return NothingSession()


class _Slow(Runtime):
    """A runtime whose inferences wait on for a share of their time."""

    def open(self, path: str, options: Options) -> Session:
        session = super().open(path, options)  # type: ignore[safe-super]
        fast = session.invoke

        def invoke() -> None:
            start = time.perf_counter()
            fast()
            now = time.perf_counter()
            until = now + SLOWER * (now - start)
            while time.perf_counter() < until:
                pass

        session.invoke = invoke  # type: ignore[method-assign]
        return session


class SlowOnnxRuntime(_Slow, OnnxRuntime):
    """ONNX Runtime, slower on purpose."""


class SlowTfliteRuntime(_Slow, TfliteRuntime):
    """LiteRT, slower on purpose."""


class SlowNcnnRuntime(_Slow, NcnnRuntime):
    """ncnn, slower on purpose."""
