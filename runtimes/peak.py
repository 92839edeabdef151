"""What a machine can do at most: how fast it copies memory, and how fast NumPy multiplies matrices.

Runs on targets: it needs Python and NumPy alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

# STREAM's rule: each array at least four times the size of all last-level caches (McCalpin 1995, and its Run Rules).
CACHE_FACTOR = 4
_LEAST_BYTES = 64 << 20
_MEMORY_SHARE = 8
_REPEATS, _SECONDS = 5, 0.5


def copy_bandwidth(threads: int) -> dict[str, Any]:
    """Copies an array that no cache holds, as often as half a second allows.

    Args:
        threads: That copy, each a part.

    Returns:
        ``bytes_per_second`` of the fastest copy, what is read and what is written counted as STREAM's Copy does;
        ``array_bytes``; ``cache_bytes``, 0 where the machine does not tell.
    """
    cache = cache_bytes()
    size = min(max(CACHE_FACTOR * cache, _LEAST_BYTES), _free_memory() // _MEMORY_SHARE)
    source = np.ones(size // 8, np.float64)
    target = np.zeros_like(source)
    parts = [(s, t) for s, t in zip(np.array_split(source, threads), np.array_split(target, threads), strict=True)]
    with ThreadPoolExecutor(threads) as pool:
        best = _fastest(lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)))
    return {"bytes_per_second": 2 * source.nbytes / best, "array_bytes": source.nbytes, "cache_bytes": cache}


def matrix_product(size: int, threads: int) -> dict[str, Any]:
    """Multiplies two float32 matrices by NumPy's BLAS.

    Args:
        size: Of the square matrices.
        threads: Of the BLAS; what it is built with may not let itself be told.

    Returns:
        ``macs_per_second`` of the fastest product, and ``threads``: of the BLAS, or None where it could not be told.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    told = _set_blas_threads(threads)
    best = _fastest(lambda: np.matmul(a, b, out=out))
    return {"macs_per_second": size**3 / best, "threads": threads if told else None}


def cache_bytes() -> int:
    """The size of the largest cache that the first core sees (Linux); 0 where it is not told."""
    found = [0]
    for path in glob.glob("/sys/devices/system/cpu/cpu0/cache/index*/size"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as stream:
            text = stream.read().strip()
            unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
            found.append(int(text.rstrip("KM")) * unit)
    return max(found)


def _free_memory() -> int:
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="utf-8") as stream:
        for line in stream:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _fastest(call: Any) -> float:
    call()
    taken: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(taken) < _REPEATS or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _set_blas_threads(threads: int) -> bool:
    folder = os.path.join(os.path.dirname(os.path.dirname(np.__file__)), "numpy.libs")
    for path in glob.glob(os.path.join(folder, "*openblas*")):
        for name in ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads"):
            with contextlib.suppress(OSError, AttributeError):
                getattr(ctypes.CDLL(path), name)(threads)
                return True
    return False
