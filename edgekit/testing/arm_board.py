"""An ARM machine without Python or glibc, for tests: Debian's static busybox under qemu, in a root of its own. It is no phone.

The root holds busybox, empty folders, the /proc and /sys that a board would show, and the emulator's own libraries, which are
this machine's and no use to an ARM program. Programs of the ARM machine are started by the kernel, through a binfmt_misc of
the test's own (a user namespace's, Linux 6.7); nothing of this machine is changed.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.cache import alone, cache_folder
from edgekit.errors import PackagesError
from edgekit.runtimes.targets import debian, emulated_root
from edgekit.runtimes.targets.emulated_cpus import CPUS
from edgekit.runtimes.targets.emulated_site import base

_SMALL_DISK = "60m"
_LIBRARIES = ("lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
# The first bytes of a program: ELF of 64 (32) bits, little endian, executable or shared, for AArch64 (ARM).
_MAGIC = {
    "aarch64": r"\x7f\x45\x4c\x46\x02\x01\x01" + r"\x00" * 9 + r"\x02\x00\xb7\x00",
    "armv7l": r"\x7f\x45\x4c\x46\x01\x01\x01" + r"\x00" * 9 + r"\x02\x00\x28\x00",
}
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"


@dataclass(frozen=True)
class ArmBoard:
    """A machine that runs.

    Attributes:
        pid: Of the process that holds its root.
        programs: The folder of its programs: ``/system/bin`` as Android has it, or ``/bin``.
        cpu: What is emulated.
    """

    pid: int
    programs: str
    cpu: str

    @property
    def shell(self) -> str:
        """Its path."""
        return f"{self.programs}/sh"

    def command(self, words: Sequence[str]) -> list[str]:
        """This machine's words that run words there."""
        variables = [f"PATH={self.programs}", f"QEMU_CPU={self.cpu}"]
        enter = ["nsenter", "--target", str(self.pid), "--user", "--preserve-credentials", "--mount", "--root", "--wd"]
        return [*enter, f"{self.programs}/env", "-i", *variables, *words]

    def path(self, name: str) -> Path:
        """Where a file of it is on this machine."""
        return Path(f"/proc/{self.pid}/root{name}")


@contextlib.contextmanager
def arm_board(folder: Path, programs: str = "/system/bin", cpu: str = "cortex-a72") -> Iterator[ArmBoard]:
    """Runs one; ``/small`` is a small disk there.

    Args:
        folder: For its root.
        programs: Where its programs lie.
        cpu: To emulate; it must be set up.

    Raises:
        PackagesError: If busybox can't be fetched, or this machine lets no user have namespaces with binfmt_misc.
    """
    _look_for_namespaces()
    made = emulated_root.root(CPUS[cpu].architecture)
    root = folder / "root"
    for name in ("proc", "sys", "dev", "small", "data/local/tmp", programs[1:], *_LIBRARIES):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(_busybox(CPUS[cpu].architecture.debian), root / programs[1:] / "busybox")
    script = _script(root, made, cpu, programs)
    process = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        if process.stdout.readline() != b"ready\n":
            said = process.stderr.read().decode(errors="replace").strip()
            raise AssertionError(f"the ARM machine did not start: {said[-300:]}")
        yield ArmBoard(process.pid, programs, cpu)
    finally:
        # Its end is that of its mounts.
        process.kill()
        process.communicate()


def _look_for_namespaces() -> None:
    """Asks for what a machine may refuse, and nothing more: whatever fails afterwards is a failure."""
    mount = "mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc"
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackagesError(f"this machine lets no user mount binfmt_misc in namespaces: {done.stderr.strip()[-300:]}")


def _busybox(architecture: str) -> Path:
    unpacked = cache_folder() / "tests" / f"busybox-{architecture}"
    with alone(f"busybox-{architecture}"):
        if not unpacked.is_dir():
            debian.unpack(("busybox-static",), architecture, unpacked, lambda done, total, text: None)
    return unpacked / "bin" / "busybox"


def _script(root: Path, made: emulated_root.Root, cpu: str, programs: str) -> str:
    """What makes the root inside of the namespaces, and then waits there."""
    qemu, board = Path(made.qemu[-1]), made.folder / "cpus" / cpu
    top = base() / "qemu" if qemu.is_relative_to(base()) else Path("/")
    registry = "/proc/sys/fs/binfmt_misc"
    # P: the program is told the name that it was called by. F: the emulator is opened now, outside of the root.
    rule = f":arm:M::{_MAGIC[CPUS[cpu].architecture.name]}:{_MASK}:{qemu}:PF"
    busybox = f"{programs}/busybox"
    inside = f"{busybox} --install -s {programs}; echo ready; exec {programs}/cat"
    steps = [
        *(["mount", "--bind", str(top / name), str(root / name)] for name in _LIBRARIES if (top / name).is_dir()),
        ["mount", "--rbind", "/proc", str(root / "proc")],
        ["mount", "--rbind", "/dev", str(root / "dev")],
        ["mount", "--bind", str(board / "proc" / "cpuinfo"), str(root / "proc" / "cpuinfo")],
        ["mount", "--bind", str(board / "sys"), str(root / "sys")],
        ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "small", str(root / "small")],
        ["mount", "-t", "binfmt_misc", "binfmt_misc", registry],
    ]
    last = ["exec", "env", "-i", f"PATH={programs}", f"QEMU_CPU={cpu}", shutil.which("chroot") or "/usr/sbin/chroot"]
    return " && ".join(
        [
            *(shlex.join(step) for step in steps),
            f"printf %s {shlex.quote(rule)} >{registry}/register",
            shlex.join([*last, str(root), busybox, "sh", "-c", inside]),
        ]
    )
