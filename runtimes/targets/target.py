"""Where a file is executed: what a target is, and the link to a worker that runs there."""

from __future__ import annotations

import abc
import contextlib
import importlib
import json
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np

from edgekit.errors import (
    ExecutionError,
    RuntimeUnavailableError,
    UnknownNameError,
    WorkerCrashError,
    WorkerTimeoutError,
)
from edgekit.runtimes.runtime import Options

TARGETS: Mapping[str, str] = {"local": "edgekit.runtimes.targets.local:LocalTarget"}
"""Every target by its name, with the place of its class: imported only when it is used."""

START_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 600.0


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
        request = {
            "do": "open",
            "runtime": runtime,
            "path": self._transfer.push(path),
            "threads": options.threads,
            "taps": list(options.taps),
            "extra": dict(options.extra),
        }
        self.opened = self._call(request, timeout_s)
        return self.opened

    def run(self, x: np.ndarray, timeout_s: float = RUN_TIMEOUT_S) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Outputs float32 (n, …) for inputs (n, …) in the bundle's layout, and the tapped tensors."""
        source, target = self._folder / "input.npy", self._folder / "output.npz"
        np.save(source, np.ascontiguousarray(x, np.float32))
        self._transfer.send(source)
        self._call(
            {"do": "run", "input": self._transfer.name(source), "output": self._transfer.name(target)}, timeout_s
        )
        self._transfer.pull(target)
        with np.load(target) as found:
            taps = {str(name): found[f"tap{position}"] for position, name in enumerate(found["taps"])}
            return found["output"], taps

    def time(
        self, x: np.ndarray, *, runs: int, seconds: float, warmup_runs: int, warmup_seconds: float
    ) -> dict[str, Any]:
        """Times inference on one input: ``first_run_ms`` and raw ``samples_ms``."""
        source = self._folder / "input.npy"
        np.save(source, np.ascontiguousarray(x, np.float32))
        self._transfer.send(source)
        plan = {"runs": runs, "seconds": seconds, "warmup_runs": warmup_runs, "warmup_seconds": warmup_seconds}
        request = {"do": "time", "input": self._transfer.name(source), **plan}
        return self._call(request, RUN_TIMEOUT_S + seconds + warmup_seconds)

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
        code = self._process.returncode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        said = self._log.read_text(errors="replace").strip().splitlines() if self._log.is_file() else []
        # faulthandler's stack follows the native library's last words, which are what a user can use.
        words = [
            line for line in said if line.strip() and not line.startswith((" ", "Extension modules", "Current thread"))
        ]
        tail = f"; its last words: {words[-1].strip()[:300]}" if words else ""
        hint = (
            "It may have run out of memory."
            if code == -signal.SIGKILL
            else "The file may be damaged, or hit a bug of the library."
        )
        return WorkerCrashError(f"{self._what} {how}{tail}", hint)

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


class Target(abc.ABC):
    """A machine that can run workers.

    An implementation guarantees: every :meth:`worker` is a fresh process; leaving its block ends that process, also
    when the block raised; a worker that dies or hangs is a :class:`WorkerCrashError` or :class:`WorkerTimeoutError`,
    never the end of the command; command lines are argument lists.
    """

    name: ClassVar[str]
    times_are_real: ClassVar[bool] = True
    """Whether its milliseconds are latencies; an emulator's are not."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """The machine: system, CPU model and flags, cores, memory, governor and clocks."""

    @abc.abstractmethod
    def start(self, folder: Path, log: Path) -> tuple[subprocess.Popen[bytes], Transfer]:
        """Starts a worker; ``folder`` is for exchanged files, ``log`` takes its stderr."""

    @contextlib.contextmanager
    def worker(self) -> Iterator[Link]:
        """A fresh worker for one file."""
        with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
            folder = Path(name)
            link = Link(*self.start(folder, folder / "stderr.txt"), folder, folder / "stderr.txt")
            try:
                yield link
            finally:
                link.close()

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets go of the machine."""


def target_for(name: str) -> Target:
    """The target of a name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in TARGETS:
        raise UnknownNameError("target", name, TARGETS)
    module, _, attribute = TARGETS[name].partition(":")
    made: Target = getattr(importlib.import_module(module), attribute)()
    return made
