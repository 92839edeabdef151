"""Times of each operator that LiteRT executes, those inside of XNNPACK included.

The Python interpreter has no profiler, the library beside it has: ``libLiteRt.so``'s compiled model tells the time of each
operator, and of each one within a delegate, through its C interface (litert_compiled_model.h, litert_profiler.h). It
computes with the same kernels; the whole is timed in the interpreter.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from typing import Any

import numpy as np

from .profile import WARM_RUNS, Operator, Profile, distinct, timed
from .runtime import RunError
from .xnnpack_operators import Event, align

_CPU = 1
_BUILTIN_KERNELS = 2
_LOCK_WRITE = 1
# tflite/core/api/profiler.h: events of an operator, and of one inside a delegate.
OPERATOR_EVENT, DELEGATE_EVENTS = 2, (4, 8)
_MODEL = c_size_t(0)
_FILL = 0xA5
# An event holds two records of memory usage, whose size depends on the version; more than this it never was.
_LARGEST_EVENT = 256
# Tag, type, start and duration stand before the two; two numbers and the source, 24 bytes, behind them.
_TAIL = 24


def profile(interpreter: Any, detail: dict[str, Any], threads: int, plain: bool, runs: int) -> Profile:
    """Profiles the model of an interpreter.

    Args:
        interpreter: The interpreter, with its input set.
        detail: Of that input.
        threads: For XNNPACK.
        plain: LiteRT's own kernels instead of XNNPACK.
        runs: Profiled runs.

    Raises:
        RunError: If this library has no profiler.
    """
    model = _CompiledModel(interpreter._model_content, threads, plain)
    model.set_input(interpreter.get_tensor(detail["index"]))
    whole, profiled, events = [], [], []
    for _ in range(WARM_RUNS + runs):
        whole.append(timed(interpreter.invoke))
        took, found = model.run_profiled()
        profiled.append(took)
        events.append(found)
    kept = events[WARM_RUNS:]
    first = kept[0]
    if any([(e.tag, e.index) for e in one] != [(e.tag, e.index) for e in first] for one in kept):
        raise RunError("LiteRT executed other operators in one run than in another, so they can't be set side by side")
    tensors = {one["index"]: f"{one['name']}#{one['index']}" for one in interpreter.get_tensor_details()}
    computed = align(first, interpreter._get_ops_details())
    names = distinct([event.tag for event in first])
    operators = [
        Operator(
            name=name,
            type=event.tag,
            inputs=tuple(tensors[index] for index in inputs if index in tensors),
            outputs=tuple(tensors[index] for index in outputs if index in tensors),
            samples_ms=tuple(one[position].microseconds / 1000 for one in kept),
        )
        for position, (name, event, (inputs, outputs)) in enumerate(zip(names, first, computed, strict=True))
    ]
    return Profile(
        operators=tuple(operators),
        whole_ms=tuple(whole[WARM_RUNS:]),
        profiled_ms=tuple(profiled[WARM_RUNS:]),
        method="LiteRT's profiler, in whole microseconds; the interpreter's time is the whole's",
        resolution_ms=0.001,
    )


class _CompiledModel:
    """A model compiled with its profiler on."""

    def __init__(self, content: bytes, threads: int, plain: bool) -> None:
        self._library = _library()
        # The library keeps pointers to all of these.
        self._kept: list[Any] = [content]
        environment, model, options = c_void_p(), c_void_p(), c_void_p()
        self._call("LiteRtCreateEnvironment", 0, None, byref(environment))
        size = c_size_t(len(content))
        self._call("LiteRtCreateModelFromBuffer", environment, c_char_p(content), size, byref(model))
        self._call("LiteRtCreateOptions", byref(options))
        self._call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        self._option(options, "runtime_options_string", "enable_profiling = true\n")
        kernels = f"kernel_mode = {_BUILTIN_KERNELS}\n" if plain else ""
        self._option(options, "xnnpack", f"num_threads = {threads}\n{kernels}")
        self._compiled, self._profiler, signature = c_void_p(), c_void_p(), c_void_p()
        self._call("LiteRtCreateCompiledModel", environment, model, options, byref(self._compiled))
        self._call("LiteRtGetModelSignature", model, _MODEL, byref(signature))
        self._inputs = self._buffers("Input", environment, signature)
        self._outputs = self._buffers("Output", environment, signature)
        self._call("LiteRtCompiledModelGetProfiler", self._compiled, byref(self._profiler))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RunError(f"LiteRT's profiler is not usable: {name} failed with status {status}")

    def _option(self, options: c_void_p, name: str, text: str) -> None:
        payload = ctypes.create_string_buffer(text.encode())
        release = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)
        self._kept += [payload, release]
        made = c_void_p()
        self._call("LiteRtCreateOpaqueOptions", c_char_p(name.encode()), payload, release, byref(made))
        self._call("LiteRtAddOpaqueOptions", options, made)

    def _buffers(self, kind: str, environment: c_void_p, signature: c_void_p) -> Any:
        count = c_size_t()
        self._call(f"LiteRtGetNumSignature{kind}s", signature, byref(count))
        found = []
        for index in map(c_size_t, range(count.value)):
            tensor, requirements, buffer = c_void_p(), c_void_p(), c_void_p()
            self._call(f"LiteRtGetSignature{kind}TensorByIndex", signature, index, byref(tensor))
            # Filled by the library and handed back to it: what is inside need not be known.
            described = ctypes.create_string_buffer(1024)
            self._call("LiteRtGetRankedTensorType", tensor, described)
            name = f"LiteRtGetCompiledModel{kind}BufferRequirements"
            self._call(name, self._compiled, _MODEL, index, byref(requirements))
            name = "LiteRtCreateManagedTensorBufferFromRequirements"
            self._call(name, environment, described, requirements, byref(buffer))
            found.append(buffer)
        return (c_void_p * len(found))(*found)

    def set_input(self, x: np.ndarray) -> None:
        if len(self._inputs) != 1:
            raise RunError(f"the file takes {len(self._inputs)} inputs, and edgekit gives one")
        place = c_void_p()
        self._call("LiteRtLockTensorBuffer", c_void_p(self._inputs[0]), byref(place), _LOCK_WRITE)
        content = x.tobytes()
        ctypes.memmove(place, content, len(content))
        self._call("LiteRtUnlockTensorBuffer", c_void_p(self._inputs[0]))

    def run_profiled(self) -> tuple[float, list[Event]]:
        """One run: its time in ms, and the events of its operators in the order of execution."""
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        took = timed(self._run)
        self._call("LiteRtStopProfiler", self._profiler)
        return took, self._events()

    def _run(self) -> None:
        count = (c_size_t(len(self._inputs)), c_size_t(len(self._outputs)))
        name = "LiteRtRunCompiledModel"
        self._call(name, self._compiled, _MODEL, count[0], self._inputs, count[1], self._outputs)

    def _events(self) -> list[Event]:
        number = c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, byref(number))
        if number.value < 1:
            raise RunError("LiteRT's profiler recorded nothing")
        raw = ctypes.create_string_buffer(bytes([_FILL]) * (number.value * _LARGEST_EVENT))
        self._call("LiteRtGetProfilerEvents", self._profiler, number, raw)
        content: bytes = raw.raw[:-1]
        written = len(content.rstrip(bytes([_FILL])))
        # The padding behind the last field may not have been written.
        size = -(-written // number.value // 8) * 8
        found = []
        for start in range(0, size * number.value, size):
            event = content[start : start + size]
            tag = ctypes.string_at(_integer(event[:8])).decode()
            kind, duration, index = _integer(event[8:12]), _integer(event[24:32]), _integer(event[size - _TAIL :][:8])
            if kind == OPERATOR_EVENT or kind in DELEGATE_EVENTS:
                found.append(Event(tag, kind in DELEGATE_EVENTS, index, duration))
        return found


def _integer(content: bytes) -> int:
    return int.from_bytes(content, "little")


def _library() -> Any:
    try:
        import ai_edge_litert

        return ctypes.CDLL(os.path.join(os.path.dirname(ai_edge_litert.__file__), "libLiteRt.so"))
    except (ImportError, OSError) as error:
        raise RunError(f"this LiteRT has no profiler that can be reached from Python: {error}") from error
