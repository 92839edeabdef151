"""How this process does long arithmetic, set before torch is loaded. What is measured runs in workers, without any of it.

Two defaults are wrong for whoever trains and calibrates on a machine that does other work too:

- A thread of GNU OpenMP (libgomp, under torch) spins for milliseconds while it waits for the others. Where another process
  has taken a core, they all wait for the one that has none: calibration takes many times as long.
- glibc gives every large tensor back to the kernel when it is freed, and gets the next one zeroed, page by page.

``benches/arithmetic.py`` measures what they cost.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator, Mapping

# Turns of the waiting loop: what libgomp itself takes when there are more threads than processors. Then the thread sleeps.
_SPINS = "1000"
_SPINS_NAME, _POLICY_NAME = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MOST = 2**31 - 1

_ours = False


def prepare() -> None:
    """Lets waiting threads sleep, and keeps freed memory for the next tensor. What the user has set is left as it is.

    Threads follow it only where torch is not loaded yet; a script that imports torch first sets ``GOMP_SPINCOUNT`` itself.
    """
    global _ours
    if _SPINS_NAME not in os.environ and _POLICY_NAME not in os.environ:
        os.environ[_SPINS_NAME] = _SPINS
        _ours = True
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        # Another C library has no mallopt.
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(_M_MMAP_MAX, 0)
            library.mallopt(_M_TRIM_THRESHOLD, _MOST)


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Keeps Python from looking for unreachable cycles, for a while.

    For calls that make a million objects and keep them: imports of torch's own, exported programs. Each thousand new
    objects it looks at what is new, and again and again at all there is: a quarter of the time that such calls take.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def without(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment as it was before :func:`prepare`: what a measured process is started with."""
    return {name: value for name, value in environment.items() if not (_ours and name == _SPINS_NAME)}
