"""Calls in processes of their own that don't pay for their imports each time.

Some work has to be kept apart: native code that may crash or hang, libraries that print. A fresh Python for each call spends
most of its time on imports. A :class:`ForkServer` is one process that has imported them; it forks for each call, so that each
runs in a process of its own all the same, and what it breaks dies with it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

# How often the server looks whether its call has ended, or who asked for it has.
_LOOK_S = 0.02


@dataclass(frozen=True)
class Ended:
    """How a call ended.

    Attributes:
        returncode: 0, 1 if it raised, or the negative number of the signal that it died by.
        output: What it printed, with the traceback of what it raised.
    """

    returncode: int
    output: str


class ServerError(RuntimeError):
    """The server itself came to nothing, before a call or during it; its message is what it printed."""


class ForkServer:
    """One function, to be called in forked processes.

    Started at the first call, ended when it has not been asked for a while, and with this process. Calls of several threads
    wait for each other. The function's module may have a ``preload()``: what is slow to import, and starts no threads.

    Args:
        function: ``package.module:name``. It takes keyword arguments that JSON can hold; what it returns is lost.
        idle_s: How long the server waits for the next call.

    Example:
        >>> server = ForkServer("os:chdir")
        >>> server.call({"path": "/nowhere"}, timeout_s=60).returncode
        1
        >>> server.close()
    """

    def __init__(self, function: str, *, idle_s: float = 30.0) -> None:
        self._function, self._idle_s = function, idle_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._owner = 0

    def call(self, arguments: Mapping[str, Any], timeout_s: float) -> Ended:
        """Calls the function and waits for its end.

        Raises:
            TimeoutError: If it takes longer; it is killed.
            ServerError: If there is no server to call it: its module can't be imported, for example.
        """
        with self._lock, tempfile.NamedTemporaryFile(prefix="edgekit-") as log:
            request = {"arguments": dict(arguments), "log": log.name}
            returncode = self._asked(request, timeout_s)
            return Ended(returncode, Path(log.name).read_text(encoding="utf-8", errors="replace"))

    def _asked(self, request: dict[str, Any], timeout_s: float) -> int:
        warm = self._running()
        answer = self._answer(request, timeout_s)
        if answer is None and warm:
            # It gave up waiting just as it was asked.
            answer = self._answer(request, timeout_s)
        if answer is None:
            raise ServerError(self._said())
        return int(answer["returncode"])

    def _answer(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """The server's answer; None where it is no more."""
        if not self._running():
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], timeout_s)[0]:
                raise TimeoutError(f"no end in {timeout_s:g} s")
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:
            self.close()
            raise
        if not line:
            process.wait()
            return None
        found: dict[str, Any] = json.loads(line)
        return found

    def _running(self) -> bool:
        return self._process is not None and self._owner == os.getpid() and self._process.poll() is None

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the server
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgekit.forked", self._function, str(self._idle_s)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            # A group of its own: its end takes a call along that hangs, and Ctrl-C reaches this process alone.
            start_new_session=True,
        )  # fmt: skip
        atexit.register(self.close)

    def _said(self) -> str:
        if self._errors is None:
            return ""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def close(self) -> None:
        """Ends the server, and a call that it is at."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        atexit.unregister(self.close)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def serve(function: str, idle_s: float) -> None:
    """The server's side: reads calls from stdin, a line each, and tells on stdout how each ended."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # imports may print
    place, _, name = function.partition(":")
    module = importlib.import_module(place)
    if hasattr(module, "preload"):
        module.preload()
    while select.select([sys.stdin], [], [], idle_s)[0]:
        line = sys.stdin.readline()
        if not line:
            return
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(getattr(module, name), request)
        answers.write(json.dumps({"returncode": _end_of(child)}) + "\n")


def _run(function: Any, request: dict[str, Any]) -> NoReturn:
    """In the forked process; the server's own clean-up is not run at its end."""
    code = 1
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        function(**request["arguments"])
        code = 0
    except BaseException:  # all that is left to do is to tell
        sys.stdout.flush()  # what went wrong comes last
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_of(child: int) -> int:
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        # Nothing is asked while a call runs: a stdin that can be read is at its end, and so is who asked.
        if select.select([sys.stdin], [], [], _LOOK_S)[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            sys.exit(1)


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]))
