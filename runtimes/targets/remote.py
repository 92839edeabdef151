"""A target that is reached by a shell over a connection: what ssh and adb share.

What is sent lies in a folder of edgekit's own on the target, ``~/.cache/edgekit`` or ``EDGEKIT_TARGET_FOLDER``: the worker's
few files, kept by their content, and a folder for each session that goes with it. A file takes its name when it is whole.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from edgekit.errors import TargetError, UsageError
from edgekit.files import disk_errors, sha256_file
from edgekit.runtimes.targets import kit, portable
from edgekit.runtimes.targets.connection import FOLDER, Connection
from edgekit.runtimes.targets.link import Transfer
from edgekit.runtimes.targets.target import Target

PYTHON = "EDGEKIT_TARGET_PYTHON"
_STALE_S = 86_400
# What an ncnn file has beside it.
_BESIDE = (".bin", ".json")
# A session that was cut off could not tidy up: the next one does, a day later.
_UNPACK = """
import os, shutil, sys, tarfile, time
base, digest, archive = sys.argv[1:4]
place = os.path.join(base, "kits", digest)
if not os.path.isdir(place):
    part = archive + ".unpacked"
    with tarfile.open(archive) as content:
        content.extractall(part)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    os.rename(part, place)
for name in os.listdir(base):
    path = os.path.join(base, name)
    if name.startswith("session-") and time.time() - os.stat(path).st_mtime > float(sys.argv[4]):
        shutil.rmtree(path, ignore_errors=True)
"""
_WRITABLE = 'mkdir -p "$f" 2>/dev/null && test -w "$f" && printf %s "$f" && exit 0'
_LOOK = "import sys; print(*sys.version_info[:2], flush=True); import numpy"
_START = """
import os, sys
sys.path[:1] = sys.argv[1:3]
os.chdir(sys.argv[3])
from edgekit.runtimes.worker import main
main(supervised=True)
"""


class RemoteTarget(Target):
    """Workers are processes on the target; their messages go through the connection, and files beside it.

    Args:
        connection: How it is reached.
    """

    folders: ClassVar[Sequence[str]] = ('"${XDG_CACHE_HOME:-$HOME/.cache}/edgekit"',)
    """Where the folder may lie, as a shell writes it; the first that can be written."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.name = connection.name
        self.repair = f"edgekit target setup {self.name}"
        self._session: tuple[str, str, str] | None = None

    @classmethod
    def setup(cls, progress: Callable[[int, int, str], None], place: str = "") -> dict[str, Any]:
        """Sends a Python with NumPy and the runtimes, for a target that has none: see
        :mod:`edgekit.runtimes.targets.portable`."""
        with cls.at(place) as target:
            assert isinstance(target, RemoteTarget)
            base = target._base()
            return portable.send(target.connection, base, _venv(base), progress)

    def describe(self) -> dict[str, Any]:
        with self.worker() as worker:
            return {**worker.facts(), "target": self.name}

    def start(self, folder: Path, log: Path, *, counting: bool = False) -> tuple[subprocess.Popen[bytes], Transfer]:
        python, kit_folder, session = self._prepared()
        there = f"{session}/{uuid.uuid4().hex[:12]}"
        made = self.connection.run(["mkdir", "-p", f"{there}/modules"])
        if made.code:
            self.connection.copied(made, there)
        words = [python, "-c", _START, kit_folder, f"{there}/modules", there]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                self.connection.command(words, alone=True),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip
        return process, _OverConnection(self.connection, session, there, log)

    def _prepared(self) -> tuple[str, str, str]:
        """The Python, the worker's folder and this session's folder there; made once."""
        if self._session is None:
            base = self._base()
            python = self._python(base)
            session = f"{base}/session-{uuid.uuid4().hex[:12]}"
            files = kit.worker_files()
            made = self.connection.run(["mkdir", "-p", session])
            self.connection.copied(made, session)
            with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
                archive = Path(name) / "kit.tar"
                with tarfile.open(archive, "w") as content:
                    for inner, text in files.items():
                        entry = tarfile.TarInfo(inner)
                        entry.size, entry.mtime = len(text), int(time.time())
                        content.addfile(entry, io.BytesIO(text))
                self.connection.put(archive, f"{session}/kit.tar")
            digest = kit.digest(files)
            words = [python, "-c", _UNPACK, base, digest, f"{session}/kit.tar", str(_STALE_S)]
            self.connection.copied(self.connection.run(words), "the worker")
            self._session = python, f"{base}/kits/{digest}", session
        return self._session

    def _base(self) -> str:
        named = os.environ.get(FOLDER)
        tries = [shlex.quote(named)] if named else list(self.folders)
        script = f"for f in {' '.join(tries)}; do {_WRITABLE}; done; exit 1"
        done = self.connection.run(["sh", "-c", script])
        if done.code or not done.stdout.startswith("/"):
            raise TargetError(
                f"no folder on {self.name} can be written ({', '.join(tries)})", f"Name one with {FOLDER}."
            )
        return done.stdout.strip()

    def _python(self, base: str) -> str:
        named = os.environ.get(PYTHON)
        tried = [named] if named else [f"{base}/venv/bin/python", f"{base}/{portable.LAUNCHER}", "python3"]
        for python in tried:
            done = self.connection.run([python, "-c", _LOOK])
            if not done.stdout:
                continue
            version = tuple(int(part) for part in done.stdout.split())
            if version < (3, 10):
                raise TargetError(
                    f"{python} on {self.name} is version {'.'.join(map(str, version))}, and the worker needs 3.10",
                    f"{self._told_repair()} Or name a newer one with {PYTHON}.",
                )
            if done.code:
                raise TargetError(
                    f"{python} on {self.name} has no NumPy", f"{self._told_repair()} Or, on the target: {_venv(base)}"
                )
            return python
        raise TargetError(
            f"there is no Python on {self.name} ({', '.join(tried)})",
            f"{self._told_repair()} Or, on the target: install python3 (apt-get install python3-venv), then {_venv(base)}; "
            f"or name one with {PYTHON}.",
        )

    def _told_repair(self) -> str:
        without = f", without {PYTHON}" if os.environ.get(PYTHON) else ""
        return f"Run{without}: {self.repair}  (it sends one)."

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            with contextlib.suppress(TargetError):
                self.connection.run(["rm", "-rf", self._session[2]])
            self._session = None
        self.connection.close()


class _OverConnection(Transfer):
    """Files are copied through the connection."""

    def __init__(self, connection: Connection, session: str, there: str, log: Path) -> None:
        self._connection, self._session, self._there, self._log = connection, session, there, log

    def push(self, path: Path) -> str:
        if path.is_dir():
            raise UsageError(f"{path} is a bundle: its program runs where edgekit is", "Measure its exports there.")
        if not path.is_file():
            raise UsageError(f"{path} does not exist", "Give an exported file.")
        files = [path, *(path.with_suffix(s) for s in _BESIDE if path.suffix != s and path.with_suffix(s).is_file())]
        # Named by content: each worker of a session needs the file, and it travels once.
        folder = f"{self._session}/{'-'.join(sha256_file(file)[:12] for file in files)}"
        if self._connection.run(["test", "-f", f"{folder}/{path.name}"]).code:
            self._connection.copied(self._connection.run(["mkdir", "-p", folder]), folder)
            for file in reversed(files):
                self._connection.put(file, f"{folder}/{file.name}")
        return f"{folder}/{path.name}"

    def name(self, path: Path) -> str:
        return f"{self._there}/{path.name}"

    def pull(self, path: Path) -> None:
        with disk_errors(path):
            self._connection.get(self.name(path), path)

    def send(self, path: Path) -> None:
        self._connection.put(path, self.name(path))

    def provide(self, runtime: str) -> None:
        files = kit.module_files(runtime)
        for name, content in files.items():
            with tempfile.NamedTemporaryFile(prefix="edgekit-") as stream:
                stream.write(content)
                stream.flush()
                there = f"{self._there}/modules/{name}"
                self._connection.run(["mkdir", "-p", there.rpartition("/")[0]])
                self._connection.put(Path(stream.name), there)

    def ended(self, code: int | None) -> tuple[str, str]:
        said = self._log.read_text(errors="replace") if self._log.is_file() else ""
        lost = self._connection.failure(code, said) if code is not None else None
        if lost is not None:
            return f"lost its connection: {lost.what}", lost.remedy
        if code is not None and code > 128 and code - 128 in set(signal.Signals):
            return super().ended(128 - code)
        return super().ended(code)

    def close(self) -> None:
        with contextlib.suppress(TargetError):
            self._connection.run(["rm", "-rf", self._there])


def _venv(base: str) -> str:
    return f"python3 -m venv {base}/venv && {base}/venv/bin/pip install numpy onnxruntime ai-edge-litert ncnn"
