"""Functions to call in other processes: one that works, and all the ways in which one may not."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

PRELOADED: list[int] = []


def preload() -> None:
    """Tells that it was here, and in which process."""
    PRELOADED.append(os.getpid())


def tell(path: str) -> None:
    """Writes the process that it runs in, and those that were preloaded."""
    print("told")
    Path(path).write_text(f"{os.getpid()} {PRELOADED}", encoding="utf-8")


def complain(text: str) -> None:
    """Prints without an end of line, and raises."""
    print("on the way", end="")
    raise ValueError(text)


def leave(code: int) -> None:
    """Tries to end the process."""
    sys.exit(code)


def die(number: int) -> None:
    """Dies by a signal, as native code does."""
    os.kill(os.getpid(), number)


def hang(path: str) -> None:
    """Writes its process, and does not end; SIGTERM does not help."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(path).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)
