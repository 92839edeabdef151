"""The link to a worker: its messages, the files that go with them, and how it may end."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import (
    ExecutionError,
    RuntimeUnavailableError,
    TargetError,
    WorkerCrashError,
    WorkerMemoryError,
    WorkerTimeoutError,
)
from edgekit.files import disk_errors
from edgekit.runtimes.profile import Profile
from edgekit.runtimes.runtime import RUNTIMES, Options
from edgekit.runtimes.targets import instructions

START_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 600.0
COUNTED_RUNS = 6
COUNTS = "instructions.jsonl"
"""The file of the exchange folder that a counting target writes: a line for each region."""
# No kernel has this system call: it marks a region for whoever looks on.
MARK = 31337

# faulthandler's stack follows the native library's last words, which are what a user can use.
_OF_PYTHON = (" ", "Extension modules", "Current thread", "Thread 0x", "Fatal Python error")
_DAMAGED = "The file may be damaged, or hit a bug of the library."


class Transfer(abc.ABC):
    """Moves files between this machine and the target."""

    @abc.abstractmethod
    def push(self, path: Path) -> str:
        """Makes a file or folder present on the target, with what lies beside it; returns its name there."""

    @abc.abstractmethod
    def name(self, path: Path) -> str:
        """What a file of the exchange folder is called on the target."""

    @abc.abstractmethod
    def pull(self, path: Path) -> None:
        """Fetches a file of the exchange folder back."""

    @abc.abstractmethod
    def send(self, path: Path) -> None:
        """Sends a file of the exchange folder."""

    def provide(self, runtime: str) -> None:
        """Makes the module of a runtime given as ``package.module:Class`` importable there; it is, by default."""

    def close(self) -> None:
        """Removes what a worker left there."""

    def ended(self, code: int | None) -> tuple[str, str]:
        """How a worker ended that was not asked to, in words, and what may be done.

        Args:
            code: Exit status of the local process; negative for a signal, None if it did not end.
        """
        if code is not None and code < 0:
            hint = "It may have run out of memory." if code == -signal.SIGKILL else _DAMAGED
            return f"was killed by {signal.Signals(-code).name}", hint
        return f"ended with exit code {code}", _DAMAGED


class SameDisk(Transfer):
    """Files need no transport where the worker sees this machine's."""

    def push(self, path: Path) -> str:
        return os.path.abspath(path)

    def name(self, path: Path) -> str:
        return os.path.abspath(path)

    def pull(self, path: Path) -> None:
        """Nothing to do."""

    def send(self, path: Path) -> None:
        """Nothing to do."""


class Link:
    """A running worker with one file open in it.

    Args:
        process: The worker, or what leads to it; stdin and stdout are its messages.
        transfer: How files get there.
        folder: The exchange folder on this side.
        log: The file that collects the worker's stderr.
    """

    def __init__(self, process: subprocess.Popen[bytes], transfer: Transfer, folder: Path, log: Path) -> None:
        self._process, self._transfer, self._folder, self._log = process, transfer, folder, log
        self._pending = b""
        self._what = "the worker"
        self._limit: int | None = None
        self.opened: dict[str, Any] = {}

    def open(self, path: Path, runtime: str, options: Options, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """Opens a file.

        Returns:
            ``load_ms``, ``facts``, ``metadata``, ``inputs``, ``outputs``.

        Raises:
            ExecutionError: If the runtime can't load it.
            RuntimeUnavailableError: If the runtime is not usable on the target.
        """
        self._what = f"{runtime} with {path.name}"
        self._transfer.provide(runtime)
        request = {
            "do": "open",
            "runtime": runtime,
            "path": self._transfer.push(path),
            "threads": options.threads,
            "taps": list(options.taps),
            "extra": dict(options.extra),
            "cpus": list(options.cpus),
            "memory_limit_bytes": options.memory_limit_bytes,
        }
        self._limit = options.memory_limit_bytes
        self.opened = self._call(request, timeout_s)
        return self.opened

    def run(self, x: np.ndarray, timeout_s: float = RUN_TIMEOUT_S) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Outputs float32 (n, …) for inputs (n, …) in the bundle's layout, and the tapped tensors."""
        source, target = self._send_input(x), self._folder / "output.npz"
        self._call(
            {"do": "run", "input": self._transfer.name(source), "output": self._transfer.name(target)}, timeout_s
        )
        self._transfer.pull(target)
        with np.load(target) as found:
            taps = {str(name): found[f"tap{position}"] for position, name in enumerate(found["taps"])}
            return found["output"], taps

    def time(
        self,
        x: np.ndarray,
        *,
        runs: int,
        seconds: float,
        warmup_runs: int,
        warmup_seconds: float,
        timeout_s: float = RUN_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Times inference on one input: ``first_run_ms``, raw ``samples_ms``, ``energy_j`` of these and its source."""
        source = self._send_input(x)
        plan = {"runs": runs, "seconds": seconds, "warmup_runs": warmup_runs, "warmup_seconds": warmup_seconds}
        request = {"do": "time", "input": self._transfer.name(source), **plan}
        return self._call(request, timeout_s + seconds + warmup_seconds)

    def count(
        self, x: np.ndarray, runs: int = COUNTED_RUNS, timeout_s: float = RUN_TIMEOUT_S
    ) -> tuple[dict[str, Any], list[dict[str, int]]]:
        """Counts the instructions of inferences on one input, by a worker that was started for it.

        Args:
            x: The input, float32, in the bundle's layout.
            runs: Inferences that are counted, after warm-up.

        Returns:
            The session's facts, and for each inference the number of instructions of each class.

        Raises:
            TargetError: If the target counted nothing.
        """
        source = self._send_input(x)
        request = {"do": "count", "input": self._transfer.name(source), "runs": runs, "mark": MARK}
        facts = self._call(request, timeout_s)["facts"]
        record = self._folder / COUNTS
        lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
        # The worker marks an empty region twice before: the second one is what the marks themselves take.
        if len(lines) != runs + 2:
            raise TargetError(
                f"the emulator counted {len(lines)} regions instead of {runs + 2}", "Its plugin is missing."
            )
        counted = [json.loads(line) for line in lines[1:]]
        unknown = sum(one.get(instructions.UNKNOWN, 0) for one in counted)
        if unknown:
            raise TargetError(
                f"instructions can't be counted: the emulator's disassembler does not know {unknown} of them",
                "A qemu-user that is built with Capstone knows them, as Debian's is: take that one off the PATH.",
            )
        return facts, [{name: one[name] - counted[0][name] for name in one} for one in counted[1:]]

    def profile(self, x: np.ndarray, runs: int) -> tuple[dict[str, Any], Profile]:
        """Times each operator on one input.

        Args:
            x: The input, float32, in the bundle's layout.
            runs: Profiled runs, after warm-up.

        Returns:
            The session's facts, and the times.

        Raises:
            ExecutionError: If the runtime can't tell the times of its layers.
        """
        source = self._send_input(x)
        request = {"do": "profile", "input": self._transfer.name(source), "runs": runs}
        answer = self._call(request, RUN_TIMEOUT_S)
        return answer["facts"], Profile.from_dict(answer["profile"])

    def bandwidth(self, threads: int) -> dict[str, Any]:
        """How fast the machine copies memory: see :func:`edgekit.runtimes.peak.copy_bandwidth`."""
        return self._call({"do": "bandwidth", "threads": threads}, RUN_TIMEOUT_S)

    def matrix_product(self, size: int, threads: int) -> dict[str, Any]:
        """How fast NumPy multiplies matrices there: see :func:`edgekit.runtimes.peak.matrix_product`."""
        return self._call({"do": "matrix product", "size": size, "threads": threads}, RUN_TIMEOUT_S)

    def facts(self) -> dict[str, Any]:
        """What the machine tells of itself, and of each runtime whether it can be loaded there."""
        return self._call({"do": "facts", "runtimes": list(RUNTIMES)}, START_TIMEOUT_S)

    def sensors(self) -> dict[str, Any]:
        """Clocks, temperatures and load now."""
        return self._call({"do": "sensors"}, START_TIMEOUT_S)

    def _send_input(self, x: np.ndarray) -> Path:
        source = self._folder / "input.npy"
        with disk_errors(source):
            np.save(source, np.ascontiguousarray(x, np.float32))
        self._transfer.send(source)
        return source

    def memory(self) -> dict[str, int]:
        """``peak_bytes`` of the worker since the file was opened, and ``before_bytes`` just before."""
        return self._call({"do": "memory"}, START_TIMEOUT_S)

    def _call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
        except OSError as error:
            raise self._crash() from error
        answer: dict[str, Any] = json.loads(self._read_line(timeout_s))
        if answer.get("error") == "unavailable":
            raise RuntimeUnavailableError(
                f"the runtime {request['runtime']} is not usable here: {answer['message']}", answer.get("install", "")
            )
        if answer.get("error") == "memory":
            raise WorkerMemoryError(
                f"{self._what} found no memory{self._under_limit()}: {answer['message']}",
                "Raise the limit."
                if self._limit is not None
                else "Take a smaller batch, or a target with more memory.",
            )
        if "error" in answer:
            raise ExecutionError(answer["message"])
        return answer

    def _read_line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                left = until - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self._process.kill()
                    raise WorkerTimeoutError(
                        f"{self._what} gave no answer in {timeout_s:g} s and was stopped",
                        "The native library hangs on this file; try another runtime or fewer threads.",
                    )
                block = self._process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
                if not block:
                    raise self._crash()
                self._pending += block
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _crash(self) -> WorkerCrashError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        how, hint = self._transfer.ended(self._process.returncode)
        said = self._log.read_text(errors="replace").strip().splitlines() if self._log.is_file() else []
        words = [line for line in said if line.strip() and not line.startswith(_OF_PYTHON)]
        tail = f"; its last words: {words[-1].strip()[:300]}" if words else ""
        if self._limit is not None:
            hint = f"Libraries end like this when they get no memory: raise the limit, or try without it. {hint}"
        return WorkerCrashError(f"{self._what} {how}{self._under_limit()}{tail}", hint)

    def _under_limit(self) -> str:
        return "" if self._limit is None else f" under a memory limit of {self._limit / 1024 / 1024:.0f} MiB"

    def close(self) -> None:
        """Ends the worker."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._transfer.close()
