"""An Android device over adb: ``adb``, or ``adb:SERIAL`` (as ``adb devices`` lists it; HOST:PORT for one on the network).

Android's own client does the work. What the device tells of itself comes from its shell; files are run by a Python, which
Android does not bring: ``edgekit target setup adb`` sends one (:mod:`edgekit.runtimes.targets.portable`), or
``EDGEKIT_TARGET_PYTHON`` names one.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from edgekit.errors import TargetError, UsageError
from edgekit.runtimes.facts import cpu_facts
from edgekit.runtimes.targets.connection import Connection, Done
from edgekit.runtimes.targets.remote import RemoteTarget
from edgekit.runtimes.targets.target import Target

_SERIAL = re.compile(r"[\w.\[][\w.:\[\]%-]*")
_COPY_S = 1800.0
_REMEDIES = {
    "unauthorized": "Unlock the device and allow this computer in the dialog it shows.",
    "more than one": "Name one: adb:SERIAL; adb devices lists them.",
    "no devices": "Switch USB debugging on, or connect: adb connect HOST:PORT.",
    "not found": "adb devices lists what is there; adb connect HOST:PORT brings one on the network.",
    "offline": "Take the cable out and in again, or adb reconnect.",
}
# Android 11's android.os.Temperature: how near the device is to slowing itself down.
_THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
_SECTIONS = {
    "cpuinfo": "cat /proc/cpuinfo",
    "uname": "uname -srm",
    "cores": "cat /sys/devices/system/cpu/online",
    "memory": "grep MemTotal /proc/meminfo",
    "load": "cat /proc/loadavg",
    "model": "getprop ro.product.manufacturer; getprop ro.product.model",
    "android": "getprop ro.build.version.release; getprop ro.build.version.sdk",
    "chip": "getprop ro.soc.model; getprop ro.board.platform",
    "governors": "cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    "clocks": "cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq",
    "highest": "cat /sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq",
    "battery": "dumpsys battery",
    "thermal": "dumpsys thermalservice",
}
_MARK = "--edgekit "


class AdbTarget(RemoteTarget):
    """Workers run on an Android device.

    Example:
        >>> AdbTarget.at("emulator-5554").name
        'adb:emulator-5554'
    """

    name = "adb"
    summary: ClassVar[str] = "an Android device that adb reaches, set up by: edgekit target setup adb"
    example: ClassVar[str] = "adb:SERIAL"
    # The one place where Android lets its shell write and execute.
    folders: ClassVar[Sequence[str]] = ("/data/local/tmp/edgekit",)

    @classmethod
    def at(cls, place: str) -> Target:
        if place and not _SERIAL.fullmatch(place):
            raise UsageError(f"adb:{place} is no serial number", "Say adb, or adb:SERIAL as adb devices lists it.")
        return cls(AdbConnection(place))

    @classmethod
    def lacking(cls, place: str = "") -> tuple[str, str]:
        return ("", "") if shutil.which("adb") else ("there is no adb on the PATH", "Install Android's platform tools.")

    def describe(self) -> dict[str, Any]:
        script = "; ".join(f"echo '{_MARK}{name}'; {command}" for name, command in _SECTIONS.items())
        return {**device_facts(self.connection.run(["sh", "-c", script]).stdout), "target": self.name}


class AdbConnection(Connection):
    """Android's client.

    Args:
        serial: Of the device; empty for the only one.
    """

    def __init__(self, serial: str) -> None:
        self.name = f"adb:{serial}" if serial else "adb"
        self._client = ["adb", *(["-s", serial] if serial else [])]

    def command(self, words: Sequence[str], *, alone: bool = False) -> list[str]:
        # adb joins its arguments to one string for the device's shell: each word is quoted for it. -T: no terminal, so
        # that bytes pass as they are; -x would give up exit codes.
        return [*self._client, "shell", "-T", f"exec {shlex.join(words)}"]

    def failure(self, code: int, stderr: str) -> TargetError | None:
        # A lost device and a command that failed end with the same codes: ask whether it is there.
        if code == 0 or self._answers():
            return None
        said = [line.strip() for line in stderr.splitlines() if line.strip()]
        why = next((line for line in reversed(said) if any(part in line for part in _REMEDIES)), "it does not answer")
        remedy = next((text for part, text in _REMEDIES.items() if part in why), "Is the cable in? adb devices tells.")
        return TargetError(f"no connection to {self.name}: {why[:300]}", remedy)

    def _answers(self) -> bool:
        try:
            done = subprocess.run([*self._client, "get-state"], capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.stdout.strip() == b"device"

    def put(self, path: Path, there: str) -> None:
        self._copied(self.local([*self._client, "push", str(path), f"{there}.part"], _COPY_S), path, there)
        moved = self.run(["mv", "-f", f"{there}.part", there])
        self.copied(moved, path.name)

    def _copied(self, done: Done, path: Path, there: str) -> None:
        if done.code:
            self.run(["rm", "-f", f"{there}.part"])
            # adb tells some failures on stdout, after its progress.
            self.copied(Done(done.code, "", done.stdout + done.stderr), path.name, path.stat().st_size)

    def get(self, there: str, path: Path) -> None:
        done = self.local([*self._client, "pull", there, str(path)], _COPY_S)
        self.copied(Done(done.code, "", done.stdout + done.stderr), there)


def device_facts(text: str) -> dict[str, Any]:
    """What an Android device's shell told, read; what it did not tell is None.

    Args:
        text: The answers of :data:`_SECTIONS`, each after a line with its name.

    Returns:
        As other targets' facts, with ``device``, ``android``, ``chip``, ``clusters`` (cores by their highest clock, the
        big ones last), ``battery_percent``, ``battery_temperature_c``, ``charging`` and ``thermal_status``.
    """
    told: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith(_MARK):
            name = line.removeprefix(_MARK).strip()
        else:
            told.setdefault(name, []).append(line.strip())
    system = " ".join(told.get("uname", [])).split()
    governors = told.get("governors", [])
    highest = _numbers(told.get("highest", []))
    battery = dict(line.split(": ", 1) for line in told.get("battery", []) if ": " in line)
    memory = _numbers(word for line in told.get("memory", []) for word in line.split())
    return {
        "system": " ".join(system[:2]) or None,
        "machine": system[2] if len(system) > 2 else None,
        "device": " ".join(told.get("model", [])) or None,
        "android": " / API ".join(told.get("android", [])) or None,
        "chip": next((line for line in told.get("chip", []) if line), None),
        **cpu_facts("\n".join(told.get("cpuinfo", []))),
        "cores": _cores(told.get("cores", [""])[0]),
        "clusters": {f"{khz} kHz": highest.count(khz) for khz in sorted(set(highest))} or None,
        "memory_bytes": memory[0] * 1024 if memory else None,
        "governor": ", ".join(dict.fromkeys(governors)) or None,
        "clock_khz": _numbers(told.get("clocks", [])) or None,
        "load_average": float(told["load"][0].split()[0]) if told.get("load") else 0.0,
        "battery_percent": _number(battery.get("level")),
        "battery_temperature_c": _tenths(battery.get("temperature")),
        "charging": any(value == "true" for key, value in battery.items() if key.endswith("powered"))
        if battery
        else None,
        "thermal_status": _thermal(told.get("thermal", [])),
    }


def _thermal(lines: Sequence[str]) -> str | None:
    for line in lines:
        found = re.fullmatch(r"Thermal Status: (\d+)", line)
        if found and int(found[1]) < len(_THERMAL):
            return _THERMAL[int(found[1])]
    return None


def _cores(text: str) -> int | None:
    """How many a list such as ``0-3,6`` names."""
    found = re.findall(r"(\d+)(?:-(\d+))?", text)
    return sum(int(last or first) - int(first) + 1 for first, last in found) or None


def _numbers(words: Any) -> list[int]:
    return [int(word) for word in words if word.isdigit()]


def _number(text: str | None) -> int | None:
    return int(text) if text and text.lstrip("-").isdigit() else None


def _tenths(text: str | None) -> float | None:
    number = _number(text)
    return number / 10 if number is not None else None
