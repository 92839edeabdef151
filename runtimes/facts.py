"""What a machine tells of itself; runs on the target, with Python alone."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What decides which kernels a runtime takes; the whole list has a hundred names.
_FLAGS_THAT_MATTER = (
    "sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "avx512_fp16", "amx_int8", "amx_bf16", "avx512_vpopcntdq", "neon", "vfpv4",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
# Implementer 0x41 is Arm; the numbers are in each core's Technical Reference Manual (MIDR_EL1).
_ARM_PARTS = {
    0xC07: "Cortex-A7", 0xC08: "Cortex-A8", 0xC09: "Cortex-A9", 0xC0F: "Cortex-A15", 0xD03: "Cortex-A53", 0xD04: "Cortex-A35",
    0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78",
    0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse-N2",
    0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4",
}  # fmt: skip
_SYS = Path("/sys/devices/system/cpu")


def machine_facts() -> dict[str, Any]:
    """System, CPU and its flags, cores, memory, governor, clocks, load; what is not told is None."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        **cpu_facts(_read(Path("/proc/cpuinfo")) or "", platform.processor()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory(),
        "governor": _read(_SYS / "cpu0/cpufreq/scaling_governor"),
        **sensors(),
    }


def sensors() -> dict[str, Any]:
    """What changes while something runs: ``clock_khz``, ``load_average``, ``temperature_c``; what is not told is None."""
    return {"clock_khz": _clocks(), "load_average": os.getloadavg()[0], "temperature_c": _temperatures()}


def cpu_facts(cpuinfo: str, otherwise: str = "") -> dict[str, Any]:
    """``cpu`` (its name; cores of different kinds with their numbers, ``4 × Cortex-A76, 4 × Cortex-A55``) and ``cpu_flags``.

    Args:
        cpuinfo: The text of ``/proc/cpuinfo``.
        otherwise: The name where the text tells none.

    Example:
        >>> cpu_facts("CPU implementer : 0x41\\nCPU part : 0xd0b\\nFeatures : asimd asimddp\\n")
        {'cpu': 'Cortex-A76', 'cpu_flags': ['asimd', 'asimddp']}
    """
    model, flags = otherwise, set[str]()
    implementer, cores = 0, dict[str, int]()
    for line in cpuinfo.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            model = value
        elif key in ("flags", "Features"):
            flags |= set(value.split())
        elif key == "CPU implementer":
            implementer = _number(value)
        elif key == "CPU part":
            number = _number(value)
            name = _ARM_PARTS.get(number, "") if implementer == 0x41 else ""
            name = name or f"ARM implementer {implementer:#x} part {number:#x}"
            cores[name] = cores.get(name, 0) + 1
    if cores:
        model = ", ".join(f"{count} × {name}" for name, count in cores.items()) if len(cores) > 1 else next(iter(cores))
    return {"cpu": model, "cpu_flags": [flag for flag in _FLAGS_THAT_MATTER if flag in flags]}


def usable_runtimes(names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Each runtime with whether it can be loaded here, its version, or why not and the line that installs it."""
    from dataclasses import asdict

    from .runtime import runtime_for

    return {name: asdict(runtime_for(name).availability()) for name in names}


def _number(text: str) -> int:
    with contextlib.suppress(ValueError):
        return int(text, 0)
    return 0


def _memory() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _clocks() -> list[int] | None:
    found = [_read(path) for path in sorted(_SYS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    return [int(value) for value in found if value] or None


def _temperatures() -> dict[str, float] | None:
    found = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        value, name = _read(zone / "temp"), _read(zone / "type")
        if value and name and value.lstrip("-").isdigit():
            found[name] = int(value) / 1000
    return found or None


def _read(path: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return None
