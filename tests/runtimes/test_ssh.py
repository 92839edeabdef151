"""ssh, with OpenSSH's client and a real sshd on loopback; its Python is this machine's, or the emulated ARM one where said."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.compress.pipeline import compress
from edgekit.compress.prune import stopwatch
from edgekit.cost import cost_of
from edgekit.errors import ExecutionError, PackagesError, StepError, TargetError, UsageError, WorkerCrashError
from edgekit.runtimes.measure import Plan
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets import emulated_root
from edgekit.runtimes.targets.check import check
from edgekit.runtimes.targets.remote import RemoteTarget
from edgekit.runtimes.targets.target import Target, target_for
from edgekit.sources.load import load
from edgekit.testing.fakes import RUNTIME, write_fake
from edgekit.testing.sshd import Sshd, sshd
from edgekit.testing.targets import TargetConformance, X

pytestmark = pytest.mark.targets


@pytest.fixture(scope="module")
def monkeymodule() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, monkeymodule: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A server that does not see the tests' files, where it can have mounts of its own."""
    here = tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory(prefix="sshd-") as name:
        try:
            with sshd(Path(name), hidden=[here]) as found:
                (here / "exchange").mkdir(exist_ok=True)
                monkeymodule.setattr(tempfile, "tempdir", str(here / "exchange"))
                monkeymodule.setenv("EDGEKIT_SSH_CONFIG", str(found.config))
                monkeymodule.setenv("EDGEKIT_TARGET_PYTHON", sys.executable)
                monkeymodule.setenv("EDGEKIT_TARGET_FOLDER", f"{name}/board")
                yield found
        except PackagesError as error:
            pytest.skip(f"no sshd: {error.what}")


class TestSsh(TargetConformance):
    """The suite, over a connection."""

    @pytest.fixture(scope="class")
    def target(self, server: Sshd) -> Iterator[Target]:
        with target_for(f"ssh:{server.place}") as target:
            yield target


def test_nothing_is_left_there_but_the_worker(server: Sshd, tmp_path: Path) -> None:
    board = server.folder / "board"
    with target_for(f"ssh:{server.place}") as target, target.worker() as worker:
        worker.open(write_fake(tmp_path / "a.fake"), RUNTIME, Options())
        assert worker.run(X)[0].shape == (2, 1)
        assert [path.name for path in board.glob("session-*/*/a.fake")] == ["a.fake"]
    assert [path.name for path in board.iterdir()] == ["kits"]


def test_channels_are_cut_by_the_clock_there(server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    start = RemoteTarget.start

    def watched(target: RemoteTarget, *arguments: Any, **settings: Any) -> Any:
        started.append(target.name)
        return start(target, *arguments, **settings)

    monkeypatch.setattr(RemoteTarget, "start", watched)
    monkeypatch.setattr(stopwatch, "_PLAN", Plan(rounds=3, seconds=0.05))
    monkeypatch.setattr(stopwatch, "MULTIPLES", (4,))
    before, clock = load("zoo:digits-cnn"), f"onnx@ssh:{server.place}"
    small = compress(before, f"prune-channels:macs=0.5,align={clock},reconstruct=0,epochs=0")
    found = small.steps[-1]["report"]["stopwatch"]
    (trial,) = found["grids"]
    assert found["align"] == clock
    assert set(started) == {f"ssh:{server.place}"}
    assert 0 < trial["low"] <= trial["ratio"] <= trial["high"]
    assert cost_of(small.module()).macs < cost_of(before.module()).macs


def test_a_clock_that_is_not_there_is_told_and_leaves_nothing(server: Sshd, tmp_path: Path) -> None:
    host = server.place.rpartition(":")[0]
    with pytest.raises(StepError, match=r"onnxruntime on ssh:\S+:1 could not be timed: no connection"):
        compress(
            load("zoo:digits-cnn"), f"prune-channels:latency=0.9@onnx@ssh:{host}:1,epochs=0", output=tmp_path / "small"
        )
    assert not list(tmp_path.rglob("bundle.json"))


def test_the_board_does_not_see_this_machine_s_files(server: Sshd, tmp_path: Path) -> None:
    if not server.isolated:
        pytest.skip("the server has no mounts of its own: tests run as another user than root")
    (tmp_path / "here").touch()
    target = target_for(f"ssh:{server.place}")
    assert target.connection.run(["test", "-e", str(tmp_path / "here")]).code == 1  # type: ignore[attr-defined]


def test_a_full_disk_there_is_a_clear_error_and_leaves_nothing(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not server.isolated:
        pytest.skip("a small disk needs mounts of its own: tests run as another user than root")
    monkeypatch.setenv("EDGEKIT_TARGET_FOLDER", str(server.folder / "small"))
    path = write_fake(tmp_path / "large.fake", echo=True, shape=[2_500_000])
    with target_for(f"ssh:{server.place}") as target:
        (tmp_path / "large.bin").write_bytes(bytes(30_000_000))
        with (
            target.worker() as worker,
            pytest.raises(TargetError, match=r"disk of ssh:\S+ is full: large\.bin \(30000000"),
        ):
            worker.open(path, RUNTIME, Options())
        (tmp_path / "large.bin").unlink()
        with target.worker() as worker:
            worker.open(path, RUNTIME, Options())
            # The input of 10 MB fits, the output beside it does not.
            with pytest.raises(ExecutionError, match="the target's disk is full"):
                worker.run(np.ones((1, 2_500_000), np.float32))
        parts = ["find", f"{server.folder}/small", "-name", "*.part"]
        assert target.connection.run(parts).stdout == ""  # type: ignore[attr-defined]


def test_a_target_that_vanishes_is_a_clear_error(tmp_path: Path, server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="sshd-", dir="/tmp") as name, sshd(Path(name)) as other:
        monkeypatch.setenv("EDGEKIT_SSH_CONFIG", str(other.config))
        monkeypatch.setenv("EDGEKIT_TARGET_FOLDER", f"{name}/board")
        hangs = write_fake(tmp_path / "hang.fake", hang="invoke")
        with target_for(f"ssh:{other.place}") as target, target.worker() as worker:
            worker.open(hangs, RUNTIME, Options())
            worker._send_input(X)
            other.vanish()
            with pytest.raises((WorkerCrashError, TargetError), match="connection") as caught:
                worker.run(X)
            assert caught.value.remedy
        assert "connection to ssh:" in check(f"ssh:{other.place}").problem


def test_what_is_missing_is_told_with_what_to_do(server: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = f"ssh:{server.place}"
    found = check(name)
    assert found.problem == ""
    assert found.runtimes["onnxruntime"]["usable"]
    assert "torch" not in found.runtimes
    monkeypatch.setenv("EDGEKIT_TARGET_PYTHON", "no-such-python")
    found = check(name)
    assert "no Python" in found.problem
    assert "pip install numpy" in found.remedy
    (strict := tmp_path / "config").write_text(f"IdentityFile {server.folder}/user\nUserKnownHostsFile /dev/null\n")
    monkeypatch.setenv("EDGEKIT_SSH_CONFIG", str(strict))
    found = check(name)
    assert "Host key verification failed" in found.problem
    assert "Connect once by hand" in found.remedy
    strict.write_text(f"UserKnownHostsFile {server.folder}/known\nIdentityFile /dev/null\nIdentitiesOnly yes\n")
    found = check(name)
    assert "Permission denied" in found.problem
    assert "ssh-copy-id" in found.remedy
    assert "refused" in check("ssh:127.0.0.1:1").problem
    for place in ("", "-oProxyCommand=x", "a b", "host:port", "user@"):
        with pytest.raises(UsageError, match="no address"):
            target_for(f"ssh:{place}")


@pytest.mark.usefixtures("emulated_root")
def test_a_board_whose_python_is_the_emulated_arm_one(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = emulated_root.root()
    words = " ".join(f"'{word}'" for word in root.command("cortex-a72", []))
    variables = "\n".join(f"export {key}='{value}'" for key, value in root.environment().items())
    (python := server.folder / "python3").write_text(f'#!/bin/sh\n{variables}\nexec {words} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("EDGEKIT_TARGET_PYTHON", str(python))
    with target_for(f"ssh:{server.place}") as target:
        facts = target.describe()
        assert (facts["machine"], facts["cpu"]) == ("aarch64", "Cortex-A72")
        with target.worker() as worker:
            worker.open(write_fake(tmp_path / "a.fake", crash="invoke"), RUNTIME, Options())
            with pytest.raises(WorkerCrashError, match="killed by SIGSEGV"):
                worker.run(X)
    assert os.environ["EDGEKIT_TARGET_FOLDER"]
