"""Counting instructions: the emulator's plugin, made on first use from the C files beside this one."""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgekit.cache import alone, cache_folder
from edgekit.errors import TargetError
from edgekit.files import atomic_file

CLASSES = ("integer", "branch", "memory", "float", "neon_float", "neon_integer", "dot_product")
"""What is counted; they exclude each other. ``memory``: every load and store; ``float``: scalar; ``dot_product``: int8 dot
and matrix products; ``neon_integer``: the other vector instructions, moves and permutations included; ``branch``: with
calls, hints, barriers and system registers."""
UNKNOWN = "unknown"
"""What the emulator's disassembler does not know, in a count that is therefore none."""

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("instructions.c", "instructions_a32.c"))
_HEADER = Path(__file__).with_name("instructions.h")


def plugin() -> Path:
    """The plugin as a shared library.

    Raises:
        TargetError: If there is no C compiler, or it fails.
    """
    source = b"".join(path.read_bytes() for path in (_HEADER, *_SOURCES))
    path = cache_folder() / "emulated" / f"instructions-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if path.is_file():
        return path
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise TargetError(
            "instructions can't be counted: there is no C compiler to make the emulator's plugin with",
            "Install gcc, or name a compiler with CC.",
        )
    with alone("plugin"), atomic_file(path) as partial:
        options = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-xc"]
        words = [compiler, *options, *map(str, _SOURCES), "-o", str(partial)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise TargetError(f"{compiler} could not make the emulator's plugin: {done.stderr.strip()[:300]}")
    return path


def mean(runs: Sequence[dict[str, int]]) -> dict[str, int]:
    """The mean of several counts, class by class, without the smallest and the largest fifth of them.

    An allocator that takes turns gives two values, one run each, so the median would be one or the other; housekeeping that
    falls into a run now and then would move the plain mean.
    """
    ordered = sorted(runs, key=total)
    cut = len(ordered) // 5
    middle = ordered[cut : len(ordered) - cut]
    return {name: round(statistics.fmean(one[name] for one in middle)) for name in CLASSES}


def total(counts: dict[str, int]) -> int:
    """All instructions."""
    return sum(counts[name] for name in CLASSES)


def spread(runs: Sequence[dict[str, int]]) -> float:
    """How far several counts of all instructions lie apart: (largest - smallest) / mean."""
    totals = [total(one) for one in runs]
    return (max(totals) - min(totals)) / statistics.fmean(totals)
