"""What ends a command from outside: it clears up, says what happened, and tells the shell by which signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# The command's own main, around work that holds a folder and takes its time.
WORK = """
import tempfile, time
from edgekit.cli import main

def app():
    with tempfile.TemporaryDirectory(prefix="edgekit-"):
        try:
            print("at work", flush=True)
            time.sleep(60)
        finally:
            {at_the_end}

main.app = app
main.main()
"""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _started(folder: Path, at_the_end: str = "pass", ignored: signal.Signals | None = None) -> subprocess.Popen[str]:
    def dispositions() -> None:
        # A shell's background job and nohup hand down signals that are ignored: these tests may run in both.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", WORK.format(at_the_end=at_the_end)],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=dispositions,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    return process


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM"), (signal.SIGHUP, "ended by SIGHUP")],
)
def test_a_signal_is_told_and_nothing_is_left_behind(number: signal.Signals, said: str, tmp_path: Path) -> None:
    process = _started(tmp_path)
    assert list(tmp_path.glob("edgekit-*"))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"error: {said}" in errors
    assert "goes on where this one stopped" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("edgekit-*"))


def test_asked_twice_it_ends_at_once(tmp_path: Path) -> None:
    process = _started(tmp_path, at_the_end='print("clearing up", flush=True); time.sleep(60)')
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "clearing up\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    process = _started(tmp_path, ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
