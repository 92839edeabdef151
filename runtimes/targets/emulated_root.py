"""The aarch64 machine that ``emulated:`` runs on: Debian's Python, the runtimes' wheels, and qemu's user-space emulator.

``edgekit target setup emulated`` makes it in the folder ``emulated`` of the cache, and what is whole is not made again:

    qemu        Debian's qemu-user for this machine, unless the PATH has a qemu-aarch64 that takes plugins
    root        Debian's Python for arm64 with its libraries
    site        NumPy, ONNX Runtime, LiteRT and ncnn in the versions that are installed here, from aarch64 wheels
    cpus        for each CPU a root of links into that one, with the /proc and /sys that a board would show
    bytecode    Python's compiled modules
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.cache import alone, cache_folder
from edgekit.errors import PackagesError, TargetError, UnknownNameError
from edgekit.files import atomic_folder, size_on_disk, write_json
from edgekit.runtimes.targets import debian

_ARM_8_0 = ("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid")
_ARM_8_2 = (*_ARM_8_0, "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "dcpop", "asimddp")
_CORES = 4
_PIP_S, _TRY_S = 3600, 300
# What the runtimes import; their wheels name more, for tools of theirs.
_WHEELS = ("numpy", "onnxruntime", "ai-edge-litert", "ncnn", "flatbuffers", "protobuf", "packaging")
_GLIBC = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
_TRY = """
import json, platform, numpy, onnxruntime, ncnn, ai_edge_litert.interpreter
print(json.dumps({"machine": platform.machine(), "python": platform.python_version(), "numpy": numpy.__version__,
                  "onnxruntime": onnxruntime.__version__, "ncnn": ncnn.__version__}))
"""


@dataclass(frozen=True)
class Cpu:
    """A core that qemu emulates.

    Attributes:
        part: Primary part number of its main ID register (MIDR_EL1; each core's Technical Reference Manual).
        variant: Of the register: the major revision.
        revision: Of the register: the minor revision.
        features: As Linux names them. qemu's ``max`` is left out: with its SVE, LiteRT gave wrong int8 results.
    """

    part: int
    variant: int
    revision: int
    features: tuple[str, ...]

    def cpuinfo(self) -> str:
        """``/proc/cpuinfo`` of a board with these cores."""
        lines = (
            f"Features\t: {' '.join(self.features)}", "CPU implementer\t: 0x41", "CPU architecture: 8",
            f"CPU variant\t: {self.variant:#x}", f"CPU part\t: {self.part:#05x}", f"CPU revision\t: {self.revision}",
        )  # fmt: skip
        return "".join("\n".join((f"processor\t: {core}", *lines, "", "")) for core in range(_CORES))


CPUS = {
    "cortex-a53": Cpu(0xD03, 0, 4, _ARM_8_0),
    "cortex-a57": Cpu(0xD07, 1, 0, _ARM_8_0),
    "cortex-a72": Cpu(0xD08, 0, 3, _ARM_8_0),
    "cortex-a76": Cpu(0xD0B, 4, 1, _ARM_8_2),
    "neoverse-n1": Cpu(0xD0C, 4, 1, _ARM_8_2),
}
"""Every CPU that can be named, with the registers qemu shows for it."""


@dataclass(frozen=True)
class Root:
    """A root that is whole.

    Attributes:
        folder: The cache's ``emulated`` folder.
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


def missing() -> list[str]:
    """What set-up has still to make, in words; empty when the root is whole."""
    folder = cache_folder() / "emulated"
    found = [] if _qemu(folder) else ["qemu-user"]
    if _python(folder) is None:
        found.append("an aarch64 root with Python")
    if not _site_fits(folder):
        found.append("the runtimes' aarch64 wheels in the versions installed here")
    if not _cpus_fit(folder):
        found.append("the CPUs' roots")
    return found


def root() -> Root:
    """The root.

    Raises:
        TargetError: If it is not set up.
    """
    folder = cache_folder() / "emulated"
    lacking = missing()
    if lacking:
        raise TargetError(
            f"the emulated target is not set up: {folder} lacks {', '.join(lacking)}",
            "Run: edgekit target setup emulated  (apt-get, dpkg-deb, pip and the network; 400 MB; no root rights)",
        )
    python, qemu = _python(folder), _qemu(folder)
    assert python is not None
    assert qemu is not None
    return Root(folder, qemu, python)


def setup(progress: debian.Progress) -> dict[str, Any]:
    """Makes what is missing, and tries it.

    Killed, the next call goes on. Two at once wait for each other.

    Returns:
        ``folder``, ``size_bytes``, and the ``versions`` that the root's Python told.

    Raises:
        TargetError: If something is missing on this machine or can't be fetched, or the root does not run.
    """
    with alone("emulated"):
        folder = cache_folder() / "emulated"
        if _qemu(folder) is None:
            debian.unpack(("qemu-user",), debian.host_architecture(), folder / "qemu", progress)
        if _python(folder) is None:
            debian.unpack(("python3", "libstdc++6", "libgomp1"), "arm64", folder / "root", progress)
        if not _site_fits(folder):
            _fill_site(folder, progress)
        if not _cpus_fit(folder):
            _make_cpus(folder)
        progress(0, 1, "trying the runtimes under emulation")
        versions = _tried(root())
        progress(1, 1, "trying the runtimes under emulation")
    return {"folder": str(folder), "size_bytes": size_on_disk(folder), "versions": versions}


def _qemu(folder: Path) -> tuple[str, ...] | None:
    found = shutil.which("qemu-aarch64")
    # A static build has no plugins, and so no instruction counts.
    if found and _takes_plugins(found):
        return (found,)
    own = folder / "qemu"
    return tuple(debian.host_program(own, "usr/bin/qemu-aarch64")) if own.is_dir() else None


@functools.cache
def _takes_plugins(program: str) -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        told = subprocess.run([program, "-h"], capture_output=True, text=True, timeout=20, check=False)
        return "-plugin" in told.stdout
    return False


def _python(folder: Path) -> Path | None:
    return next(iter((folder / "root" / "usr" / "bin").glob("python3.[0-9]*[0-9]")), None)


def _requirements() -> list[str]:
    """The wheels in the versions that are installed here, so that host and target compute with the same code."""
    named = []
    for name in _WHEELS:
        try:
            named.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            named.append(name)
    return named


def _site_fits(folder: Path) -> bool:
    record = folder / "site" / "edgekit.json"
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["wheels"] == _requirements()


def _fill_site(folder: Path, progress: debian.Progress) -> None:
    python = _python(folder)
    assert python is not None
    wheels = _requirements()
    title = "fetching the runtimes' aarch64 wheels"
    progress(0, 1, title)
    with atomic_folder(folder / "site") as partial:
        words = [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--no-input",
            "--disable-pip-version-check", "--only-binary=:all:", "--implementation", "cp",
            "--python-version", python.name.removeprefix("python"), "--target", str(partial),
            *(f"--platform={name}_aarch64" for name in _GLIBC), *wheels,
        ]  # fmt: skip
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=_PIP_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise PackagesError(
                f"pip did not finish in {_PIP_S} s", "Is the network up? The command goes on."
            ) from error
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
            raise PackagesError(
                f"pip could not fetch the aarch64 wheels: {said[-1][:300]}",
                "It needs pip in this environment, and a package index that has wheels for manylinux aarch64.",
            )
        write_json(partial / "edgekit.json", {"wheels": wheels})
    progress(1, 1, title)


def _cpus_digest(folder: Path) -> str:
    described = json.dumps([(name, cpu.cpuinfo()) for name, cpu in CPUS.items()])
    return hashlib.sha256((described + str(sorted(os.listdir(folder / "root")))).encode()).hexdigest()


def _cpus_fit(folder: Path) -> bool:
    record = folder / "cpus" / "made"
    return record.is_file() and (folder / "root").is_dir() and record.read_text() == _cpus_digest(folder)


def _make_cpus(folder: Path) -> None:
    with atomic_folder(folder / "cpus") as partial:
        for name, cpu in CPUS.items():
            place = partial / name
            # Libraries choose kernels by these; without them they would read the host's, and crash on it.
            system = place / "sys" / "devices" / "system" / "cpu"
            system.mkdir(parents=True)
            (place / "proc").mkdir()
            (place / "proc" / "cpuinfo").write_text(cpu.cpuinfo(), encoding="utf-8")
            for file in ("possible", "present", "online"):
                (system / file).write_text(f"0-{_CORES - 1}\n", encoding="utf-8")
            (system / "kernel_max").write_text("255\n", encoding="utf-8")
            for entry in sorted(os.listdir(folder / "root")):
                if entry not in ("proc", "sys"):
                    (place / entry).symlink_to(Path("..", "..", "root", entry))
        (partial / "made").write_text(_cpus_digest(folder))


def _tried(made: Root) -> dict[str, str]:
    words = made.command("cortex-a72", ["-c", _TRY])
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
