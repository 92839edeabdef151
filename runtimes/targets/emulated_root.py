"""The ARM machines that ``emulated:`` runs on: Debian's Python, the runtimes' wheels, and qemu's user-space emulator.

``edgekit target setup emulated`` makes the 64-bit one in the folder ``emulated`` of the cache, and what is whole is not made
again:

    qemu        Debian's qemu-user for this machine, unless the PATH has a qemu-aarch64 (qemu-arm) that takes plugins
    root        Debian's Python for arm64 with its libraries
    site        NumPy, ONNX Runtime, LiteRT and ncnn in the versions that are installed here, from aarch64 wheels
    cpus        for each CPU a root of links into that one, with the /proc and /sys that a board would show
    bytecode    Python's compiled modules
    armv7       the same for 32-bit CPUs (``edgekit target setup emulated:cortex-a7``), all but qemu
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.cache import alone
from edgekit.errors import TargetError, UnknownNameError
from edgekit.files import atomic_folder, size_on_disk
from edgekit.runtimes.targets import debian, emulated_site
from edgekit.runtimes.targets.emulated_cpus import ARM64, CORES, CPUS, Architecture
from edgekit.runtimes.targets.emulated_site import base, folder_of, name_of, python_of, without

_TRY_S = 300
TRY = """
import importlib, json, platform, sys
found = {"machine": platform.machine(), "python": platform.python_version()}
for name in ("numpy", *sys.argv[1:]):
    importlib.import_module(name)
    top = name.partition(".")[0]
    version = getattr(sys.modules[top], "__version__", None)
    found |= {top: version} if version else {}
print(json.dumps(found))
"""
"""A program that imports NumPy and the modules it is given, and tells the versions as JSON."""


@dataclass(frozen=True)
class Root:
    """A root that is whole.

    Attributes:
        folder: The cache's ``emulated`` folder, or the architecture's own in it.
        qemu: The words that start the emulator.
        python: The root's Python.
    """

    folder: Path
    qemu: tuple[str, ...]
    python: Path

    def command(self, cpu: str, arguments: Sequence[str], plugin: str = "") -> list[str]:
        """The words that run the root's Python on a CPU."""
        options = ["-cpu", cpu, "-L", str(self.folder / "cpus" / cpu), *(["-plugin", plugin] if plugin else [])]
        return [*self.qemu, *options, str(self.python), *arguments]

    def environment(self, modules: Sequence[Path] = ()) -> dict[str, str]:
        """Variables for that Python: the host's own would lead it to the host's libraries."""
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "PYTHONPATH": ":".join(str(path) for path in (*modules, self.folder / "site")),
            "PYTHONNOUSERSITE": "1",
            # Beside the modules they would be written through the emulator to the host's own /usr.
            "PYTHONPYCACHEPREFIX": str(self.folder / "bytecode"),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }


def checked_cpu(name: str) -> str:
    """The CPU's name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in CPUS:
        raise UnknownNameError("emulated CPU", name or "(none named)", CPUS)
    return name


def missing(architecture: Architecture = ARM64) -> list[str]:
    """What set-up has still to make, in words; empty when the root is whole."""
    folder = folder_of(architecture)
    found = [] if _qemu(architecture) else ["qemu-user"]
    if python_of(folder) is None:
        found.append(f"an {architecture.name} root with Python")
    if not emulated_site.fits(architecture):
        found.append(f"the runtimes' {architecture.name} wheels in the versions installed here")
    if not _cpus_fit(architecture):
        found.append("the CPUs' roots")
    return found


def root(architecture: Architecture = ARM64) -> Root:
    """The root.

    Raises:
        TargetError: If it is not set up.
    """
    folder = folder_of(architecture)
    lacking = missing(architecture)
    if lacking:
        raise TargetError(
            f"the emulated target is not set up: {folder} lacks {', '.join(lacking)}",
            f"Run: edgekit target setup {architecture.setup}  "
            f"(apt-get, dpkg-deb, pip and the network; {architecture.size}; no root rights)",
        )
    python, qemu = python_of(folder), _qemu(architecture)
    assert python is not None
    assert qemu is not None
    return Root(folder, qemu, python)


def setup(progress: debian.Progress, architecture: Architecture = ARM64) -> dict[str, Any]:
    """Makes what is missing, and tries it.

    Killed, the next call goes on. Two at once wait for each other.

    Returns:
        ``folder``, ``size_bytes``, and the ``versions`` that the root's Python told, with what there is no wheel of.

    Raises:
        TargetError: If something is missing on this machine or can't be fetched, or the root does not run.
    """
    fetch(progress, architecture)
    with alone("emulated"):
        folder = folder_of(architecture)
        if _qemu(architecture) is None:
            debian.unpack(("qemu-user",), debian.host_architecture(), base() / "qemu", progress)
        if not _cpus_fit(architecture):
            _make_cpus(architecture)
        progress(0, 1, "trying the runtimes under emulation")
        versions = _tried(root(architecture), architecture)
        progress(1, 1, "trying the runtimes under emulation")
    return {
        "folder": str(folder), "size_bytes": size_on_disk(folder), "versions": versions | no_wheels(architecture),
    }  # fmt: skip


def fetch(progress: debian.Progress, architecture: Architecture) -> None:
    """Makes the Python and the wheels, where they are missing: what does not need the emulator.

    Raises:
        TargetError: If something can't be fetched.
    """
    with alone("emulated"):
        if python_of(folder_of(architecture)) is None:
            debian.unpack(
                architecture.packages, architecture.debian, folder_of(architecture) / "root", progress,
                suite=architecture.suite, links=architecture.links,
            )  # fmt: skip
        if not emulated_site.fits(architecture):
            emulated_site.fill(architecture, progress)


def modules_of(architecture: Architecture) -> list[str]:
    """What can be imported there."""
    lacking = {name_of(wheel) for wheel in without(architecture)}
    return [module for wheel, module in architecture.modules.items() if name_of(wheel) not in lacking]


def no_wheels(architecture: Architecture) -> dict[str, str]:
    """What is not there, in words, for it is not published."""
    return {name_of(wheel): f"has no wheel for {architecture.name}" for wheel in without(architecture)}


def _qemu(architecture: Architecture) -> tuple[str, ...] | None:
    found = shutil.which(architecture.qemu)
    # A static build has no plugins, and so no instruction counts.
    if found and _takes_plugins(found):
        return (found,)
    own = base() / "qemu"
    return tuple(debian.host_program(own, f"usr/bin/{architecture.qemu}")) if own.is_dir() else None


@functools.cache
def _takes_plugins(program: str) -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        told = subprocess.run([program, "-h"], capture_output=True, text=True, timeout=20, check=False)
        return "-plugin" in told.stdout
    return False


def _cpus_digest(architecture: Architecture) -> str:
    described = json.dumps([(name, cpu.cpuinfo()) for name, cpu in CPUS.items() if cpu.architecture is architecture])
    entries = sorted(os.listdir(folder_of(architecture) / "root"))
    return hashlib.sha256((described + str(entries)).encode()).hexdigest()


def _cpus_fit(architecture: Architecture) -> bool:
    folder = folder_of(architecture)
    record = folder / "cpus" / "made"
    return record.is_file() and (folder / "root").is_dir() and record.read_text() == _cpus_digest(architecture)


def _make_cpus(architecture: Architecture) -> None:
    folder = folder_of(architecture)
    with atomic_folder(folder / "cpus") as partial:
        for name, cpu in CPUS.items():
            if cpu.architecture is not architecture:
                continue
            place = partial / name
            # Libraries choose kernels by these; without them they would read the host's, and crash on it.
            system = place / "sys" / "devices" / "system" / "cpu"
            system.mkdir(parents=True)
            (place / "proc").mkdir()
            (place / "proc" / "cpuinfo").write_text(cpu.cpuinfo(), encoding="utf-8")
            for file in ("possible", "present", "online"):
                (system / file).write_text(f"0-{CORES - 1}\n", encoding="utf-8")
            (system / "kernel_max").write_text("255\n", encoding="utf-8")
            for entry in sorted(os.listdir(folder / "root")):
                if entry not in ("proc", "sys"):
                    (place / entry).symlink_to(Path("..", "..", "root", entry))
        (partial / "made").write_text(_cpus_digest(architecture))


def _tried(made: Root, architecture: Architecture) -> dict[str, str]:
    words = made.command(architecture.example, ["-c", TRY, *modules_of(architecture)])
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, env=made.environment(), timeout=_TRY_S, check=False, cwd=made.folder
        )
        versions: dict[str, str] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        said = (
            done.stderr.strip().splitlines()[-1:] if not isinstance(error, (OSError, subprocess.TimeoutExpired)) else []
        )
        raise TargetError(
            f"the emulated root does not run: {said[0] if said else error}",
            f"Remove {made.folder} and set it up again; tell us if it stays so.",
        ) from error
    return versions
