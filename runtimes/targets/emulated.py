"""An ARM CPU, emulated on this machine: ``emulated:cortex-a76``.

The real aarch64 (or armv7) builds of the runtimes run under qemu's user-space emulator, so outputs and accuracy are those of
the ARM code paths, and instructions can be counted by class. Its milliseconds mean nothing and are not shown.
"""

from __future__ import annotations

import platform
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgekit.runtimes.targets import emulated_root, instructions, kit
from edgekit.runtimes.targets.emulated_cpus import ARM64, CPUS, Architecture
from edgekit.runtimes.targets.link import COUNTS, MARK, SameDisk, Transfer
from edgekit.runtimes.targets.target import Target


class EmulatedTarget(Target):
    """Workers run under the emulator, as child processes; they see this machine's files.

    Args:
        cpu: One of :data:`edgekit.runtimes.targets.emulated_cpus.CPUS`.

    Example:
        >>> EmulatedTarget("cortex-a76").name
        'emulated:cortex-a76'
    """

    name = "emulated"
    times_are_real: ClassVar[bool] = False
    counts_instructions: ClassVar[bool] = True
    batch_size: ClassVar[int] = 16
    summary: ClassVar[str] = "an ARM CPU under qemu: accuracy of the aarch64 runtimes, and counted instructions"
    example: ClassVar[str] = "emulated:cortex-a76"
    families: ClassVar[Mapping[str, str]] = {
        "cortex-a7": "a 32-bit ARM CPU under qemu: ncnn and tflite-runtime (ONNX Runtime has no wheel for armv7)"
    }

    def __init__(self, cpu: str) -> None:
        self._cpu = emulated_root.checked_cpu(cpu)
        self.name = f"emulated:{cpu}"
        self._architecture = CPUS[cpu].architecture
        self._facts: dict[str, Any] = {}

    @classmethod
    def at(cls, place: str) -> Target:
        return cls(place)

    @classmethod
    def lacking(cls, place: str = "") -> tuple[str, str]:
        architecture = _architecture(place)
        missing = emulated_root.missing(architecture)
        told = ("not set up: " + ", ".join(missing), f"edgekit target setup {architecture.setup}")
        return told if missing else ("", "")

    @classmethod
    def setup(cls, progress: Callable[[int, int, str], None], place: str = "") -> dict[str, Any]:
        return emulated_root.setup(progress, _architecture(place))

    def describe(self) -> dict[str, Any]:
        if not self._facts:
            with self.worker() as worker:
                self._facts = worker.facts()
        return {
            **self._facts, "target": self.name, "emulated_on": platform.machine(),
            # What the board would tell is not the host's.
            "cores": 1, "memory_bytes": None, "governor": None, "clock_khz": None, "temperature_c": None, "load_average": 0.0,
        }  # fmt: skip

    def start(self, folder: Path, log: Path, *, counting: bool = False) -> tuple[subprocess.Popen[bytes], Transfer]:
        root = emulated_root.root(self._architecture)
        added = folder / "modules"
        added.mkdir()
        modules = (kit.kept(kit.worker_files(), root.folder / "kits"), added)
        environment = {**root.environment(modules), "TMPDIR": tempfile.gettempdir()}
        if counting:
            # The counters are the process's: a pool that spins while it waits would be counted, more of it under load.
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        watch = f"{instructions.plugin()},output={folder / COUNTS},mark={MARK}" if counting else ""
        words = root.command(self._cpu, ["-P", "-m", "edgekit.runtimes.worker"], watch)
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment, cwd=folder
            )
        return process, _SeenThere(added)


def _architecture(place: str) -> Architecture:
    return CPUS[emulated_root.checked_cpu(place)].architecture if place else ARM64


class _SeenThere(SameDisk):
    """The guest sees the host's files; modules are added to its search path."""

    def __init__(self, modules: Path) -> None:
        self._modules = modules

    def provide(self, runtime: str) -> None:
        kit.write(kit.module_files(runtime), self._modules)
