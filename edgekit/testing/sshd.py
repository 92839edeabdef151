"""A real ssh server on loopback, for tests: Debian's sshd, unpacked into the cache, with keys made for it.

Run as root it gets mounts of its own, in which the tests' files are hidden and a small disk is there; nothing of the
machine is changed. Run as another user it sees what that user sees.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.cache import alone, cache_folder
from edgekit.errors import TargetError
from edgekit.runtimes.targets import debian
from edgekit.testing.arm_board import ArmBoard

_SMALL_DISK = "16m"


@dataclass
class Sshd:
    """A server that runs.

    Attributes:
        port: On loopback.
        config: For the client's ``-F``: key and known hosts.
        folder: Of the server; ``folder/small`` is the small disk where there is one.
        isolated: Whether it has mounts of its own.
        process: The server.
    """

    port: int
    config: Path
    folder: Path
    isolated: bool
    process: subprocess.Popen[bytes]

    @property
    def place(self) -> str:
        """What follows ``ssh:``."""
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"

    def vanish(self) -> None:
        """Ends the server and every connection at once, as a machine that loses power."""
        for pid in [*_descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def sshd(folder: Path, hidden: Sequence[Path] = (), board: ArmBoard | None = None) -> Iterator[Sshd]:
    """Runs a server.

    Args:
        folder: For its keys and settings; short-lived.
        hidden: Folders that it shall not see, where that can be.
        board: Whose shell it has; this machine's if None.

    Raises:
        TargetError: If its package can't be fetched, or it does not start.
    """
    unpacked = cache_folder() / "tests" / "openssh-server"
    with alone("openssh-server"):
        if not unpacked.is_dir():
            debian.unpack(("openssh-server",), debian.host_architecture(), unpacked, lambda done, total, text: None)
    port, isolated = _free_port(), os.geteuid() == 0
    for name in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make, check=True, timeout=60, stdin=subprocess.DEVNULL)
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    host_key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    client = {"IdentityFile": folder / "user", "UserKnownHostsFile": folder / "known", "IdentitiesOnly": "yes"}
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in client.items()))
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host", "AuthorizedKeysFile": folder / "authorized",
        "StrictModes": "no", "UsePAM": "no", "PidFile": "none", "PasswordAuthentication": "no", "PermitRootLogin": "yes",
        "MaxStartups": "50", "MaxSessions": "50",
    }  # fmt: skip
    if board is not None:
        settings["ForceCommand"] = f'exec {shlex.join(board.command(["sh", "-c"]))} "$SSH_ORIGINAL_COMMAND"'
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    # -r: it must not start itself anew, for that would be with this machine's libraries.
    words = [*debian.host_program(unpacked, "usr/sbin/sshd"), "-D", "-e", "-r", "-f", str(folder / "sshd_config")]
    if isolated:
        words = _with_own_mounts(words, folder, hidden)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    server = Sshd(port, folder / "config", folder, isolated, process)
    try:
        _await(server)
        yield server
    finally:
        server.vanish()


def _with_own_mounts(words: Sequence[str], folder: Path, hidden: Sequence[Path]) -> list[str]:
    (folder / "small").mkdir()
    accounts = Path("/etc/passwd").read_text(encoding="utf-8")
    if not any(line.startswith("sshd:") for line in accounts.splitlines()):
        accounts += "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
    (folder / "passwd").write_text(accounts, encoding="utf-8")
    steps = [
        *(["mount", "-t", "tmpfs", "hidden", str(path)] for path in hidden),
        ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "small", str(folder / "small")],
        ["mount", "--bind", str(folder / "passwd"), "/etc/passwd"],
        ["mount", "-t", "tmpfs", "run", "/run"],
        ["mkdir", "/run/sshd"],
        ["exec", *words],
    ]
    return ["unshare", "--mount", "sh", "-c", " && ".join(shlex.join(step) for step in steps)]


def _await(server: Sshd) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and server.process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            return
        time.sleep(0.05)
    raise TargetError(f"sshd did not start: {(server.folder / 'log').read_text(errors='replace').strip()[-300:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The name, in brackets, may hold anything; the parent is the second field after it.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, frontier = [], [pid]
    while frontier:
        children = parents.get(frontier.pop(), [])
        found += children
        frontier += children
    return found
