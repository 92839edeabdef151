"""A runtime whose file says how it behaves; it goes to targets as it is, so it needs the runtimes' interface alone."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgekit.runtimes.profile import Operator, Profile
from edgekit.runtimes.runtime import Options, RunError, Runtime, Session, TensorSpec

RUNTIME = "edgekit.testing.fake_runtime:FakeRuntime"
"""The fake's name: a runtime may be given as ``module:Class``."""
MISSING = "edgekit.testing.fake_runtime:MissingRuntime"
"""The name of one whose library is not installed."""


def write_fake(path: Path, **behaviour: Any) -> Path:
    """Writes a file for the fake runtime.

    Args:
        path: Where; the name should end in ``.fake``.
        behaviour: ``shape`` of one input, ``scale`` (output = scale × sum of the input), ``latency_ms`` of a run,
            ``echo`` (output = scale × input), ``crash``, ``hang``, ``exit`` (after some words on stderr, with code 3) or
            ``killed`` with the moment (``open`` or ``invoke``), ``allocate_bytes`` while open, ``prints`` (on stdout),
            ``binary_sha256`` (of the ``.bin`` beside it, checked when it is opened), ``not_honoured``, ``metadata``,
            ``operators`` (for each its ``name``, ``type``, ``inputs``, ``outputs`` and ``ms``: what ``profile`` tells),
            ``overhead_ms`` and ``resolution_ms`` of that profile.
    """
    path.write_text(json.dumps(behaviour), encoding="utf-8")
    return path


class FakeRuntime(Runtime):
    """Runs ``.fake``: JSON that says how to behave."""

    name: ClassVar[str] = RUNTIME
    suffix: ClassVar[str] = ".fake"
    install: ClassVar[str] = "nothing to install"

    def version(self) -> str:
        return "1"

    def open(self, path: str, options: Options) -> Session:
        try:
            behaviour = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is no fake file: {error}") from error
        if behaviour.get("binary_sha256"):
            binary = Path(path).with_suffix(".bin").read_bytes()
            if hashlib.sha256(binary).hexdigest() != behaviour["binary_sha256"]:
                raise RunError(f"{path}: its .bin of {len(binary)} bytes is another one")
        return FakeSession(behaviour, options)


class FakeSession(Session):
    """Sums its input, with the latency and the accidents that the file asks for."""

    def __init__(self, behaviour: dict[str, Any], options: Options) -> None:
        self._behaviour, self._options = behaviour, options
        if behaviour.get("prints"):
            print(behaviour["prints"], flush=True)
        self._memory = np.ones(behaviour.get("allocate_bytes", 0), np.uint8)
        self._accident("open")
        self._x = self._y = np.zeros((0, 1), np.float32)

    def _accident(self, moment: str) -> None:
        if self._behaviour.get("crash") == moment:
            ctypes.string_at(0)  # a real segmentation fault
        if self._behaviour.get("hang") == moment:
            time.sleep(3600)
        if self._behaviour.get("exit") == moment:
            print("the board is on fire", file=sys.stderr, flush=True)
            os._exit(3)
        if self._behaviour.get("killed") == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def metadata(self) -> dict[str, Any]:
        return dict(self._behaviour.get("metadata", {}))

    def inputs(self) -> list[TensorSpec]:
        return [TensorSpec("input", (-1, *self._behaviour.get("shape", (4,))), "float32")]

    def outputs(self) -> list[TensorSpec]:
        return [TensorSpec("output", (-1, 1), "float32")]

    def prepare(self, x: np.ndarray) -> None:
        if x.shape[1:] != tuple(self._behaviour.get("shape", (4,))):
            raise RunError(f"the file takes inputs of shape {self._behaviour.get('shape', (4,))}, not {x.shape[1:]}")
        self._x = x

    def invoke(self) -> None:
        self._accident("invoke")
        until = time.perf_counter() + self._behaviour.get("latency_ms", 0.0) / 1000
        while time.perf_counter() < until:  # sleeping is too coarse below a millisecond
            pass
        if self._behaviour.get("echo"):
            self._y = self._x * np.float32(self._behaviour.get("scale", 1.0))
            return
        self._y = self._x.reshape(len(self._x), -1).sum(1, keepdims=True) * np.float32(
            self._behaviour.get("scale", 1.0)
        )

    def results(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self._y, {"sum": self._y} if self._options.taps else {}

    def profile(self, runs: int) -> Profile:
        operators = self._behaviour.get("operators")
        if operators is None:
            return super().profile(runs)
        times = [one["ms"] for one in operators]
        return Profile(
            operators=tuple(
                Operator(
                    name=one["name"], type=one["type"], inputs=tuple(one["inputs"]), outputs=tuple(one["outputs"]),
                    samples_ms=(one["ms"],) * runs,
                )
                for one in operators
            ),
            whole_ms=(2 * sum(times),) * runs,
            profiled_ms=(3 * sum(times),) * runs,
            method="as the file says",
            overhead_ms=self._behaviour.get("overhead_ms", 0.0),
            resolution_ms=self._behaviour.get("resolution_ms", 0.0),
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        return {
            "library": "fake",
            "version": "1",
            "threads": self._options.threads,
            "not_honoured": list(self._behaviour.get("not_honoured", ())),
        }


class MissingRuntime(FakeRuntime):
    """A runtime whose library is not installed."""

    install: ClassVar[str] = "pip install no-such-library"

    def version(self) -> str:
        raise ModuleNotFoundError("No module named 'no_such_library'")
