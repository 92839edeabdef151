"""Where things are kept that can be made again: a folder of the user's own."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from edgekit.files import disk_errors

VARIABLE = "EDGEKIT_CACHE"


def cache_folder() -> Path:
    """``EDGEKIT_CACHE``, else ``edgekit`` in ``XDG_CACHE_HOME``, else ``~/.cache/edgekit``; it may not exist yet."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "edgekit"


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Holds the lock of a part of the cache: another process that makes the same part waits here until it is there."""
    path = cache_folder() / f".{name}.lock"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
