"""The small program that runs on the target: opens one file in one runtime, runs it and times it.

    python -m edgekit.runtimes.worker          beside an installed edgekit
    python -m runtimes.worker                  from a bare copy of this folder

It reads one JSON object a line on stdin and answers each with one on stdout; arrays pass through ``.npy`` and ``.npz``
files, whose names are in the messages. Whatever libraries print goes to stderr. The process lives for one file, so its
memory is that file's, and a crash in a native library is the end of this process alone.

    {"do": "open", "runtime", "path", "threads", "taps", "extra", "cpus", "memory_limit_bytes"}
                                                                    → {"load_ms", "facts", "metadata", "inputs", "outputs"}
    {"do": "run", "input", "output"}                                → {}; output holds "output" and the taps
    {"do": "time", "input", "runs", "seconds", "warmup_runs", "warmup_seconds"}
                                                                    → {"first_run_ms", "samples_ms", "energy_j", "energy"}
    {"do": "count", "input", "runs", "mark"}                        → {"facts"}; the runs are marked for an onlooker
    {"do": "profile", "input", "runs"}                          → {"facts", "profile"}: the times of each operator
    {"do": "bandwidth", "threads"}                              → how fast this machine copies memory
    {"do": "matrix product", "size", "threads"}                 → how fast NumPy multiplies matrices here
    {"do": "memory"}                                                → {"peak_bytes", "before_bytes"}
    {"do": "sensors"}                                               → clocks, temperatures, load
    {"do": "facts", "runtimes"}                                     → the machine's, and "runtimes": which can be used

A failure is ``{"error": kind, "message": text}`` with the kind ``unavailable``, ``memory`` or ``failed``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import faulthandler
import gc
import json
import os
import signal
import sys
import time
from typing import Any, TextIO

import numpy as np

from . import energy
from .facts import machine_facts, sensors, usable_runtimes
from .peak import copy_bandwidth, matrix_product
from .process import die_with_parent, go_first, limit_memory, pin, reset_peak, status
from .runtime import Options, RunError, Session, first_line, runtime_for
from .settings import UnusableError

# Python specializes its bytecode after eight runs of it (PEP 659).
_WARM_RUNS, _WARM_SECONDS = 10, 5.0
_NO_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "failed to allocate",
    "out of memory",
    "can't allocate memory",
    "not enough memory",
)


class Worker:
    """Answers the messages."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._before = 0

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to one message."""
        if message["do"] == "open":
            return self._open(message)
        if message["do"] == "facts":
            return {**machine_facts(), "runtimes": usable_runtimes(message["runtimes"])}
        if message["do"] == "sensors":
            return sensors()
        if message["do"] == "bandwidth":
            return copy_bandwidth(message["threads"])
        if message["do"] == "matrix product":
            return matrix_product(message["size"], message["threads"])
        if self._session is None:
            raise RunError("no file is open")
        if message["do"] == "run":
            output, taps = self._session.run(np.load(message["input"]))
            with open(message["output"], "wb") as stream:
                # Names of tensors hold any character, names in an archive do not: number them.
                numbered: dict[str, Any] = {f"tap{position}": value for position, value in enumerate(taps.values())}
                np.savez(stream, output=output, taps=np.array(list(taps), np.str_), **numbered)
            return {}
        if message["do"] == "time":
            return self._time(self._session, message)
        if message["do"] == "count":
            return self._count(self._session, message)
        if message["do"] == "profile":
            self._session.prepare(np.load(message["input"]))
            profile = self._session.profile(message["runs"]).to_dict()
            return {"facts": self._session.facts(), "profile": profile}
        if message["do"] == "memory":
            return {"peak_bytes": status("VmHWM"), "before_bytes": self._before}
        raise RunError(f"a worker does not know how to {message['do']!r}")

    def _open(self, message: dict[str, Any]) -> dict[str, Any]:
        # The threads that libraries start stay where their process is when they are loaded.
        pin(message.get("cpus", ()))
        runtime = runtime_for(message["runtime"])
        found = runtime.availability()
        if not found.usable:
            return {"error": "unavailable", "message": found.reason, "install": found.install}
        self._before = status("VmRSS")
        reset_peak()
        limit_memory(message.get("memory_limit_bytes"))
        options = Options(message["threads"], tuple(message["taps"]), message["extra"])
        start = time.perf_counter_ns()
        try:
            session = runtime.open(message["path"], options)
        except UnusableError as error:
            return {"error": "unavailable", "message": str(error), "install": error.install}
        took = time.perf_counter_ns() - start
        self._session = session
        return {
            "load_ms": took / 1e6,
            "facts": session.facts(),
            "metadata": session.metadata(),
            "inputs": [dataclasses.asdict(spec) for spec in session.inputs()],
            "outputs": [dataclasses.asdict(spec) for spec in session.outputs()],
        }

    def _time(self, session: Session, message: dict[str, Any]) -> dict[str, Any]:
        session.prepare(np.load(message["input"]))
        first = _timed(session)
        until = time.perf_counter() + message["warmup_seconds"]
        runs = 0
        while runs < message["warmup_runs"] or time.perf_counter() < until:
            session.invoke()
            runs += 1
        samples: list[float] = []
        gc.collect()
        gc.disable()
        before = energy.read()
        until = time.perf_counter() + message["seconds"]
        while len(samples) < message["runs"] or time.perf_counter() < until:
            samples.append(_timed(session))
        after = energy.read()
        gc.enable()
        # Delegates and arithmetic may be settled by the first run only: tell what was used now.
        return {
            "first_run_ms": first,
            "samples_ms": samples,
            "energy_j": energy.spent(before, after),
            "energy": after.source or f"not available: {after.reason}",
            "facts": session.facts(),
        }

    def _count(self, session: Session, message: dict[str, Any]) -> dict[str, Any]:
        """Marks two empty regions, and then one around each inference."""
        session.prepare(np.load(message["input"]))
        until = time.perf_counter() + _WARM_SECONDS
        for run in range(_WARM_RUNS):
            if run < 2 or time.perf_counter() < until:
                session.invoke()
        # A system call that no kernel has: it fails, and an emulator that looks on sees it.
        syscall, mark = ctypes.CDLL(None).syscall, message["mark"]
        for _ in range(2):
            syscall(mark, 1)
            syscall(mark, 0)
        gc.collect()
        gc.disable()
        for _ in range(message["runs"]):
            syscall(mark, 1)
            session.invoke()
            syscall(mark, 0)
        gc.enable()
        return {"facts": session.facts()}


def _timed(session: Session) -> float:
    start = time.perf_counter_ns()
    session.invoke()
    return (time.perf_counter_ns() - start) / 1e6


def _for_memory(error: BaseException) -> bool:
    """Whether a library failed because it got no memory, in the words that they use for it."""
    text = f"{error} {error.__cause__ or ''}".lower()
    return isinstance(error.__cause__, MemoryError) or any(word in text for word in _NO_MEMORY)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answers until the requests end."""
    worker = Worker()
    for line in requests:
        try:
            answer = worker.answer(json.loads(line))
        except MemoryError as error:
            answer = {"error": "memory", "message": first_line(error)}
        except RunError as error:
            answer = {"error": "memory" if _for_memory(error) else "failed", "message": str(error)}
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the target's disk is full" if full else f"{type(error).__name__} on the target"
            answer = {"error": "failed", "message": f"{what}: {first_line(error)}"}
        except Exception as error:  # the libraries raise what they like
            kind = "memory" if _for_memory(error) else "failed"
            answer = {"error": kind, "message": f"{type(error).__name__}: {first_line(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main(*, supervised: bool = False) -> None:
    """Serves stdin and stdout; keeps stdout clean of what native code prints.

    Args:
        supervised: Work in a child process, and end as a shell would tell its end (128 and the signal's number): for
            connections that hand on an exit code and no signal.
    """
    die_with_parent()
    if supervised:
        child = os.fork()
        if child:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os._exit(128 - code if code < 0 else code)
        die_with_parent()
    go_first()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command that asked decides when to stop
    serve(sys.stdin, answers)
    # Native libraries crash in their exit handlers now and then; everything has been said.
    os._exit(0)


if __name__ == "__main__":
    main()
