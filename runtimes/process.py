"""What a worker does to its own process: its CPUs, its memory, its end. Runs on the target, with Python alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Sequence

from .runtime import RunError

_PR_SET_PDEATHSIG = 1
# Of -1000 to 1000 (proc(5)): when memory runs out, the kernel ends the worker and not the command.
_FIRST_TO_GO = "1000"


def status(key: str) -> int:
    """A size of this process in bytes, from the kernel (``VmHWM``, ``VmRSS``, ``VmData``); 0 where it does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as stream:
        for line in stream:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Sets the peak resident size back to the present one."""
    # Writing 5 does it (Linux, proc(5)).
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="utf-8") as stream:
        stream.write("5")


def die_with_parent() -> None:
    """A killed command must not leave a worker behind that keeps the processor busy."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def go_first() -> None:
    """When the machine's memory runs out, the kernel shall end this process before any other."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="utf-8") as stream:
        stream.write(_FIRST_TO_GO)


def pin(cpus: Sequence[int]) -> None:
    """Keeps this process, with the threads that it will start, on some CPUs.

    Args:
        cpus: Their numbers; nothing is done for none.

    Raises:
        RunError: If they can't be had.
    """
    if not cpus:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise RunError("this system can't keep a process on some CPUs")
    allowed = os.sched_getaffinity(0)
    if not allowed.issuperset(cpus):
        raise RunError(f"this process may use the CPUs {_list(allowed)}, not {_list(set(cpus) - allowed)}")
    os.sched_setaffinity(0, cpus)
    if os.sched_getaffinity(0) != set(cpus):
        raise RunError(f"the system did not keep this process on the CPUs {_list(cpus)}")


def limit_memory(more: int | None) -> None:
    """Lets this process take so many more bytes of memory for data (heap, buffers, stacks of threads).

    The kernel counts what is reserved for writing (RLIMIT_DATA, getrlimit(2)), so the limit is met a little before the
    memory is touched. What is mapped from files does not count.

    Args:
        more: Bytes over the present ones; nothing is done for None.

    Raises:
        RunError: If the system does not take it: an emulator's does not.
    """
    if more is None:
        return
    limit = status("VmData") + more
    try:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    except (OSError, ValueError) as error:
        raise RunError(f"memory can't be limited here: {error}") from error
    if resource.getrlimit(resource.RLIMIT_DATA)[0] != limit:
        raise RunError("memory can't be limited here: the system does not take RLIMIT_DATA")


def _list(numbers: Sequence[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
