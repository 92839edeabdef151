"""Calls in forked processes: imports are paid for once, and nothing that a call does reaches the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit.forked import ForkServer, ServerError

TIMEOUT_S = 60.0


@pytest.fixture
def server_of() -> Iterator[Callable[..., ForkServer]]:
    made: list[ForkServer] = []

    def make(name: str, **settings: float) -> ForkServer:
        made.append(ForkServer(f"edgekit.testing.calls:{name}", **settings))
        return made[-1]

    yield make
    for server in made:
        server.close()


def _gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    # A process that nobody has waited for yet is there, and does nothing more.
    return "State:\tZ" in Path(f"/proc/{process}/status").read_text()


def _until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_each_call_has_its_own_process_and_none_pays_for_the_imports(
    server_of: Callable[..., ForkServer], tmp_path: Path
) -> None:
    server = server_of("tell")
    for name in ("a", "b"):
        ended = server.call({"path": str(tmp_path / name)}, TIMEOUT_S)
        assert (ended.returncode, ended.output) == (0, "told\n")
    first, second = ((tmp_path / name).read_text().split(" ", 1) for name in "ab")
    assert len({first[0], second[0], str(os.getpid())}) == 3
    assert first[1] == second[1] != f"[{os.getpid()}]", "the same preload, in the server's process"


def test_what_a_call_raises_comes_last(server_of: Callable[..., ForkServer]) -> None:
    ended = server_of("complain").call({"text": "not so"}, TIMEOUT_S)
    assert ended.returncode == 1
    assert ended.output.startswith("on the way")
    assert ended.output.strip().splitlines()[-1] == "ValueError: not so"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_the_calls_own(number: int, server_of: Callable[..., ForkServer]) -> None:
    server = server_of("die")
    assert server.call({"number": int(number)}, TIMEOUT_S).returncode == -number
    assert server.call({"number": int(signal.SIGTERM)}, TIMEOUT_S).returncode == -signal.SIGTERM


def test_a_call_can_not_end_the_server(server_of: Callable[..., ForkServer]) -> None:
    server = server_of("leave")
    assert server.call({"code": 0}, TIMEOUT_S).returncode == 1
    assert server.call({"code": 0}, TIMEOUT_S).returncode == 1


def test_what_hangs_is_killed_and_the_next_call_answered(server_of: Callable[..., ForkServer], tmp_path: Path) -> None:
    server = server_of("hang")
    for name in ("first", "second"):
        with pytest.raises(TimeoutError):
            server.call({"path": str(tmp_path / name)}, 5)
        assert _until(lambda name=name: _gone(int((tmp_path / name).read_text())))


def test_a_server_that_has_left_is_started_again(server_of: Callable[..., ForkServer], tmp_path: Path) -> None:
    server = server_of("tell", idle_s=0.05)
    processes = []
    for name in ("a", "b", "c"):
        assert server.call({"path": str(tmp_path / name)}, TIMEOUT_S).returncode == 0
        processes.append((tmp_path / name).read_text().split(" ", 1)[1])
        assert _until(lambda: not server._running())
    assert len(set(processes)) == 3


def test_a_server_that_dies_as_it_is_asked_is_started_again(
    server_of: Callable[..., ForkServer], tmp_path: Path
) -> None:
    server = server_of("tell")
    server.call({"path": str(tmp_path / "a")}, TIMEOUT_S)
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGSTOP)  # it takes the request, and never reads it
    threading.Timer(0.3, os.kill, (server._process.pid, signal.SIGKILL)).start()
    assert server.call({"path": str(tmp_path / "b")}, TIMEOUT_S).returncode == 0


def test_a_function_that_is_not_there_is_told() -> None:
    server = ForkServer("edgekit.testing.nowhere:tell")
    with pytest.raises(ServerError, match=r"No module named 'edgekit\.testing\.nowhere'"):
        server.call({}, TIMEOUT_S)


def test_nothing_is_left_when_who_asked_is_killed(tmp_path: Path) -> None:
    script = (
        "from edgekit.forked import ForkServer\n"
        f"ForkServer('edgekit.testing.calls:hang').call({{'path': {str(tmp_path / 'at')!r}}}, 600)\n"
    )
    asking = subprocess.Popen([sys.executable, "-c", script])
    assert _until(lambda: (tmp_path / "at").is_file() and (tmp_path / "at").read_text() != "")
    asking.kill()
    asking.wait()
    assert _until(lambda: _gone(int((tmp_path / "at").read_text())))
