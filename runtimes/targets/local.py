"""This machine."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from edgekit.runtimes.targets.target import Target, Transfer

# What decides which kernels a runtime takes; the whole list has a hundred names.
_FLAGS_THAT_MATTER = (
    "sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "avx512_fp16", "amx_int8", "amx_bf16", "avx512_vpopcntdq", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_SYS = Path("/sys/devices/system/cpu")


class LocalTarget(Target):
    """Workers are child processes of this one."""

    name: ClassVar[str] = "local"

    def describe(self) -> dict[str, Any]:
        return {
            "target": self.name,
            "system": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "python": platform.python_version(),
            **_cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_bytes": _memory(),
            "governor": _read(_SYS / "cpu0/cpufreq/scaling_governor"),
            "clock_khz": _clocks(),
            "load_average": os.getloadavg()[0],
        }

    def start(self, folder: Path, log: Path) -> tuple[subprocess.Popen[bytes], Transfer]:
        environment = dict(os.environ)
        # Runtimes are told their threads by option; libraries below them read these.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment.pop(name, None)
        environment["TF_CPP_MIN_LOG_LEVEL"] = "2"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgekit.runtimes.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
            )
        return process, _SameDisk()


class _SameDisk(Transfer):
    """Files need no transport here."""

    def push(self, path: Path) -> str:
        return os.path.abspath(path)

    def name(self, path: Path) -> str:
        return os.path.abspath(path)

    def pull(self, path: Path) -> None:
        """Nothing to do."""

    def send(self, path: Path) -> None:
        """Nothing to do."""


def _cpu() -> dict[str, Any]:
    model, flags = platform.processor(), set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    return {"cpu": model, "cpu_flags": [flag for flag in _FLAGS_THAT_MATTER if flag in flags]}


def _memory() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _clocks() -> list[int] | None:
    found = [_read(path) for path in sorted(_SYS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    return [int(value) for value in found if value] or None


def _read(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return None
