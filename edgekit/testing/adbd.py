"""The device's side of adb on loopback, for tests: enough of the protocol for Android's real client, and no Android behind it.

Its shell is this machine's, or that of an emulated board (:mod:`edgekit.testing.arm_board`), with a few of Android's commands
that answer in Android's format. The protocol is that of AOSP's
``adb/protocol.txt``, ``shell_protocol.h`` and ``SYNC.TXT``: connect, shell v2 with exit codes, push and pull.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edgekit.cache import alone, cache_folder
from edgekit.errors import TargetError
from edgekit.runtimes.targets import debian
from edgekit.testing.arm_board import ArmBoard

# From this version on messages carry no checksum.
_VERSION, _MAX_DATA, _SYNC_DATA = 0x01000001, 256 * 1024, 64 * 1024
_BANNER = (
    b"device::ro.product.name=loopback;ro.product.model=Loopback;ro.product.device=loopback;features=shell_v2,cmd\0"
)
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_COMMANDS = {
    "getprop": 'case "$1" in ro.product.manufacturer) echo edgekit;; ro.product.model) echo Loopback;; '
    "ro.build.version.release) echo 14;; ro.build.version.sdk) echo 34;; ro.soc.model) echo none;; esac",
    "dumpsys": 'case "$1" in battery) printf "Current Battery Service state:\\n  AC powered: false\\n  USB powered: true\\n'
    '  level: 87\\n  scale: 100\\n  temperature: 301\\n";; '
    'thermalservice) printf "IsStatusOverride: false\\nThermal Status: 1\\nCached temperatures:\\n";; esac',
}


class Device:
    """A device that listens on loopback.

    Args:
        folder: For its commands.
        board: Whose shell it has; this machine's if None.
    """

    def __init__(self, folder: Path, board: ArmBoard | None = None) -> None:
        self._folder, self._board = folder, board
        programs = board.path(board.programs) if board else folder / "bin"
        programs.mkdir(exist_ok=True)
        for name, script in _COMMANDS.items():
            path = programs / name
            path.write_text(f"#!{board.shell if board else '/bin/sh'}\n{script}\n", encoding="utf-8")
            path.chmod(0o755)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections.append(connection)
                threading.Thread(target=_Link(connection, self).serve, daemon=True).start()

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Its shell at work on a command."""
        environment = {"PATH": f"{self._folder}/bin:{os.environ['PATH']}", "HOME": str(self._folder), "LANG": "C.UTF-8"}
        process = subprocess.Popen(
            self._board.command(["sh", "-c", command]) if self._board else ["sh", "-c", command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=None if self._board else environment, cwd="/", start_new_session=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def path(self, name: str) -> str:
        """Where a file of the device is on this machine."""
        return str(self._board.path(name)) if self._board else name

    def vanish(self) -> None:
        """Ends everything at once, as when the cable is pulled."""
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for process in self.processes:
            _end(process)


class _Link:
    """One connection of a client: many streams, each with one message on its way at a time."""

    def __init__(self, connection: socket.socket, device: Device) -> None:
        self._connection, self._device = connection, device
        self._streams: dict[int, _Stream] = {}
        self._sending = threading.Lock()
        self._next = 1

    def serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                command, a, b, size, _, _ = struct.unpack("<4s5I", self._exactly(24))
                data = self._exactly(size)
                self._take(command, a, b, data)
        for stream in list(self._streams.values()):
            stream.closed()

    def _take(self, command: bytes, a: int, b: int, data: bytes) -> None:
        if command == b"CNXN":
            self.send(b"CNXN", _VERSION, _MAX_DATA, _BANNER)
        elif command == b"OPEN":
            stream = _Stream(self, self._next, a)
            self._streams[self._next] = stream
            self._next += 1
            service = data.rstrip(b"\0").decode()
            work = _sync if service == "sync:" else _shell if service.startswith("shell,") else None
            if work is None:
                self.send(b"CLSE", 0, a)
                return
            self.send(b"OKAY", stream.here, a)
            threading.Thread(target=_guarded, args=(work, stream, service, self._device), daemon=True).start()
        elif b in self._streams:
            stream = self._streams[b]
            if command == b"OKAY":
                stream.ready.release()
            elif command == b"WRTE":
                stream.received.put(data)
                self.send(b"OKAY", stream.here, stream.there)
            elif command == b"CLSE":
                stream.closed()
                del self._streams[b]

    def send(self, command: bytes, a: int, b: int, data: bytes = b"") -> None:
        magic = struct.unpack("<I", command)[0] ^ 0xFFFFFFFF
        with self._sending:
            self._connection.sendall(struct.pack("<4s5I", command, a, b, len(data), 0, magic) + data)

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            block = self._connection.recv(size - len(parts))
            if not block:
                raise EOFError
            parts += block
        return bytes(parts)


class _Stream:
    """Bytes in order, both ways."""

    def __init__(self, link: _Link, here: int, there: int) -> None:
        self._link, self.here, self.there = link, here, there
        self.received: queue.Queue[bytes | None] = queue.Queue()
        self.ready = threading.Semaphore(1)
        self._writing = threading.Lock()
        self._rest = b""
        self.gone = threading.Event()

    def write(self, data: bytes) -> None:
        with self._writing:
            for start in range(0, len(data), _MAX_DATA):
                self.ready.acquire()
                if self.gone.is_set():
                    raise EOFError
                self._link.send(b"WRTE", self.here, self.there, data[start : start + _MAX_DATA])

    def read(self, size: int) -> bytes:
        parts = [self._rest]
        have = len(self._rest)
        while have < size:
            block = self.received.get()
            if block is None:
                raise EOFError
            parts.append(block)
            have += len(block)
        whole = b"".join(parts)
        self._rest = whole[size:]
        return whole[:size]

    def close(self) -> None:
        with self._writing:
            self.ready.acquire()
            self._link.send(b"CLSE", self.here, self.there)

    def closed(self) -> None:
        self.gone.set()
        self.received.put(None)
        self.ready.release()


def _guarded(work, stream: _Stream, service: str, device: Device) -> None:  # type: ignore[no-untyped-def]
    with contextlib.suppress(EOFError, OSError):
        work(stream, service, device)


def _shell(stream: _Stream, service: str, device: Device) -> None:
    command = service.partition(":")[2]
    process = device.start(command)
    pumps = [
        threading.Thread(target=_pump, args=(pipe, kind, stream), daemon=True)
        for pipe, kind in ((process.stdout, _STDOUT), (process.stderr, _STDERR))
    ]
    feed = threading.Thread(target=_feed, args=(stream, process), daemon=True)
    for thread in (*pumps, feed):
        thread.start()
    process.wait()
    for thread in pumps:
        thread.join()
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    stream.write(struct.pack("<BIB", _EXIT, 1, code & 255))
    stream.close()


def _pump(pipe, kind: int, stream: _Stream) -> None:  # type: ignore[no-untyped-def]
    with contextlib.suppress(EOFError, OSError):
        while data := pipe.read1(_SYNC_DATA):
            stream.write(struct.pack("<BI", kind, len(data)) + data)


def _feed(stream: _Stream, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        try:
            while True:
                kind, size = struct.unpack("<BI", stream.read(5))
                data = stream.read(size)
                if kind == _CLOSE_STDIN:
                    process.stdin.close()
                elif kind == _STDIN:
                    process.stdin.write(data)
                    process.stdin.flush()
        except EOFError:
            # The client is gone: adbd hangs up on what it started.
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGHUP)


def _sync(stream: _Stream, service: str, device: Device) -> None:
    while True:
        request, size = struct.unpack("<4sI", stream.read(8))
        if request == b"QUIT":
            stream.close()
            return
        path = device.path(stream.read(size).decode())
        if request == b"STAT":
            with contextlib.suppress(OSError):
                found = os.stat(path)
                stream.write(
                    struct.pack("<4s3I", b"STAT", found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))
                )
                continue
            stream.write(struct.pack("<4s3I", b"STAT", 0, 0, 0))
        elif request == b"SEND":
            _receive(stream, path.rpartition(",")[0])
        elif request == b"RECV":
            _give(stream, path)


def _receive(stream: _Stream, path: str) -> None:
    failed = ""
    try:
        target = open(path, "wb")  # noqa: SIM115
    except OSError as error:
        target, failed = open(os.devnull, "wb"), str(error.strerror)  # noqa: SIM115
    while True:
        kind, size = struct.unpack("<4sI", stream.read(8))
        if kind == b"DONE":
            break
        try:
            target.write(stream.read(size))
            target.flush()
        except OSError as error:
            failed = str(error.strerror)
    with contextlib.suppress(OSError):
        target.close()
    stream.write(struct.pack("<4sI", b"FAIL" if failed else b"OKAY", len(failed)) + failed.encode())


def _give(stream: _Stream, path: str) -> None:
    try:
        with open(path, "rb") as source:
            while data := source.read(_SYNC_DATA):
                stream.write(struct.pack("<4sI", b"DATA", len(data)) + data)
        stream.write(struct.pack("<4sI", b"DONE", 0))
    except OSError as error:
        text = str(error.strerror).encode()
        stream.write(struct.pack("<4sI", b"FAIL", len(text)) + text)


@contextlib.contextmanager
def adb(folder: Path) -> Iterator[dict[str, str]]:
    """Android's real client, Debian's build, with a server of its own; yields the variables that bring it onto the PATH.

    The client has a home folder of its own for its keys. The tests keep theirs: the cache is found by it.

    Args:
        folder: For its keys and the command.

    Raises:
        TargetError: If its package can't be fetched.
    """
    unpacked = cache_folder() / "tests" / "adb"
    with alone("adb"):
        if not unpacked.is_dir():
            debian.unpack(("adb",), debian.host_architecture(), unpacked, lambda done, total, text: None)
    words = debian.host_program(unpacked, "usr/lib/android-sdk/platform-tools/adb")
    command = folder / "adb"
    started = shlex.join(["env", f"HOME={folder}", *words])
    command.write_text(f'#!/bin/sh\nexec {started} "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "ANDROID_ADB_SERVER_PORT": str(port), "ADB_MDNS": "0"}
    with (folder / "log").open("wb") as log:
        # In the foreground: to fork it would start itself by a name that its loader does not know.
        server = subprocess.Popen(
            [*words, "nodaemon", "server"],
            env={**os.environ, **variables, "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        else:
            raise TargetError(f"adb's server did not start: {(folder / 'log').read_text(errors='replace')[-300:]}")
        yield variables
    finally:
        server.kill()
        server.wait()
