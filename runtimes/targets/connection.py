"""A shell on another machine, through a client program of this one: what is run, copied, and how that fails."""

from __future__ import annotations

import abc
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import TargetError

FOLDER = "EDGEKIT_TARGET_FOLDER"
_ASK_S = 60.0


@dataclass(frozen=True)
class Done:
    """How a command on the target ended.

    Attributes:
        code: Its exit code.
        stdout: What it said.
        stderr: What it complained of.
    """

    code: int
    stdout: str
    stderr: str


class Connection(abc.ABC):
    """A shell on the target, reached through a client program of this machine.

    An implementation guarantees: exit codes are those of the command on the target; ``words`` are an argument list, and
    arrive as one; a connection that can't be made or was lost is a TargetError.
    """

    name: str

    @abc.abstractmethod
    def command(self, words: Sequence[str], *, alone: bool = False) -> list[str]:
        """The local words that run these words there; ``alone``: over a connection of their own, which ends with them."""

    @abc.abstractmethod
    def failure(self, code: int, stderr: str) -> TargetError | None:
        """The error that a client's exit stands for, if it was the connection's and not the command's."""

    @abc.abstractmethod
    def put(self, path: Path, there: str) -> None:
        """Copies a file there, where it takes its name when it is whole."""

    @abc.abstractmethod
    def get(self, there: str, path: Path) -> None:
        """Copies a file here."""

    def close(self) -> None:
        """Lets go of the connection."""

    def run(self, words: Sequence[str], *, timeout_s: float = _ASK_S, stdin: Any = subprocess.DEVNULL) -> Done:
        """Runs a command there and waits for it.

        Raises:
            TargetError: If the connection fails, or the command takes too long.
        """
        return self.local(self.command(words), timeout_s, stdin=stdin)

    def local(
        self, words: Sequence[str], timeout_s: float, *, stdin: Any = subprocess.DEVNULL, stdout: Any = None
    ) -> Done:
        """Runs the client program itself."""
        try:
            done = subprocess.run(
                words,
                stdin=stdin,
                stdout=stdout or subprocess.PIPE,
                stderr=subprocess.PIPE,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TargetError(f"{self.name} gave no answer in {timeout_s:g} s", "Is it still there?") from error
        except FileNotFoundError as error:
            raise TargetError(
                f"there is no {words[0]} on the PATH", f"Install its package to reach {self.name}."
            ) from error
        found = Done(
            done.returncode, (done.stdout or b"").decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        failed = self.failure(found.code, found.stderr)
        if failed is not None:
            raise failed
        return found

    def copied(self, done: Done, what: str, size: int | None = None) -> None:
        """Turns a copy that failed on the target into an error of ours."""
        if done.code == 0:
            return
        if "No space left" in done.stderr or "Disk quota" in done.stderr:
            much = f" ({size} bytes)" if size is not None else ""
            raise self.full(f"{what}{much} could not be sent")
        raise TargetError(f"{what} could not be copied: {_last(done.stderr) or f'exit code {done.code}'}")

    def full(self, what: str) -> TargetError:
        """The error of a disk without room."""
        return TargetError(
            f"the disk of {self.name} is full: {what}",
            f"Free some space there, or name another folder with {FOLDER}; nothing was left half-written.",
        )


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""
