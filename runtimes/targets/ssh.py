"""A board or server over ssh: ``ssh:[user@]host[:port]``.

OpenSSH's own client does the work: keys, known hosts, jump hosts and names are those of its configuration
(``EDGEKIT_SSH_CONFIG`` names another file). It asks for no password.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from edgekit.errors import TargetError, UsageError
from edgekit.runtimes.targets.connection import Connection
from edgekit.runtimes.targets.remote import RemoteTarget
from edgekit.runtimes.targets.target import Target

CONFIG = "EDGEKIT_SSH_CONFIG"
_PLACE = re.compile(
    r"(?:(?P<user>[\w.+-]+)@)?(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.%\w]+\])(?::(?P<port>\d{1,5}))?"
)
_FAILED = 255  # ssh(1): its own failures; a command's code otherwise
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
}
_COPY_S = 1800.0
_RECEIVE = 'cat > "$1" && mv -f "$1" "$2" || { rm -f "$1"; exit 1; }'
_REMEDIES = {
    "Host key verification failed": "Connect once by hand and look at its key: ssh {place}",
    "Permission denied": "A key must open it without a password: ssh-copy-id {place}, or an IdentityFile in ~/.ssh/config.",
    "Could not resolve": "Is the name right? ~/.ssh/config and DNS don't know it.",
    "refused": "Is an ssh server running there, on that port?",
    "timed out": "Is it switched on and on this network?",
}


class SshTarget(RemoteTarget):
    """Workers run on a machine that ssh reaches.

    Example:
        >>> SshTarget.at("pi@raspberry.local:2222").name
        'ssh:pi@raspberry.local:2222'
    """

    name = "ssh"
    summary: ClassVar[str] = (
        "a board or server that OpenSSH reaches with a key, with Python and a runtime on it or sent there"
    )
    example: ClassVar[str] = "ssh:pi@raspberrypi.local"

    @classmethod
    def at(cls, place: str) -> Target:
        if not _PLACE.fullmatch(place):
            raise UsageError(f"ssh:{place} is no address", "Say ssh:HOST, ssh:USER@HOST or ssh:USER@HOST:PORT.")
        return cls(SshConnection(place))

    @classmethod
    def lacking(cls, place: str = "") -> tuple[str, str]:
        return ("", "") if shutil.which("ssh") else ("there is no ssh on the PATH", "Install openssh-client.")


class SshConnection(Connection):
    """OpenSSH's client; short commands share one connection.

    Args:
        place: ``[user@]host[:port]``.
    """

    def __init__(self, place: str) -> None:
        found = _PLACE.fullmatch(place)
        assert found is not None
        host = found["host"].strip("[]")
        self.name = f"ssh:{place}"
        self._address = [f"{found['user']}@{host}" if found["user"] else host]
        self._port = ["-p", found["port"]] if found["port"] else []
        self._place = " ".join([*self._port, *self._address])
        # Of sockets, whose paths may have 104 characters: not below a long TMPDIR.
        self._sockets = tempfile.TemporaryDirectory(prefix="ek-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)

    def command(self, words: Sequence[str], *, alone: bool = False) -> list[str]:
        # sshd hands the login shell one string: each word is quoted for it. No shell stays between sshd and the command,
        # so that its end is the command's.
        return [*self._client(alone), *self._address, f"exec {shlex.join(words)}"]

    def _client(self, alone: bool) -> list[str]:
        # A worker's own connection: when its client is killed the server ends the session, and the worker with it.
        shared = {"ControlMaster": "no", "ControlPath": "none"}
        if not alone:
            shared = {"ControlMaster": "auto", "ControlPath": f"{self._sockets.name}/%C", "ControlPersist": "60"}
        config = ["-F", os.environ[CONFIG]] if os.environ.get(CONFIG) else []
        options = [word for name, value in {**_OPTIONS, **shared}.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", *config, "-T", *options, *self._port]

    def failure(self, code: int, stderr: str) -> TargetError | None:
        if code != _FAILED:
            return None
        said = [line for line in stderr.strip().splitlines() if line.strip()]
        # Of several words of ssh the known ones say most.
        known = next((line for line in reversed(said) if any(part in line for part in _REMEDIES)), "")
        remedy = next((text for part, text in _REMEDIES.items() if part in known), "Is it still there? ssh {place}")
        why = known or (said[-1] if said else "it was closed")
        return TargetError(f"no connection to {self.name}: {why.strip()[:300]}", remedy.format(place=self._place))

    def put(self, path: Path, there: str) -> None:
        with path.open("rb") as stream:
            done = self.run(["sh", "-c", _RECEIVE, "sh", f"{there}.part", there], timeout_s=_COPY_S, stdin=stream)
        self.copied(done, path.name, path.stat().st_size)

    def get(self, there: str, path: Path) -> None:
        with path.open("wb") as stream:
            done = self.local(self.command(["cat", there]), _COPY_S, stdout=stream)
        self.copied(done, there)

    def close(self) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [*self._client(False), "-O", "exit", *self._address], capture_output=True, timeout=20, check=False
            )
