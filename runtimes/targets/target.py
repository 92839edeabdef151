"""Where a file is executed: what a target is, and the registry of targets."""

from __future__ import annotations

import abc
import contextlib
import importlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from edgekit.errors import (
    UnknownNameError,
    UsageError,
)
from edgekit.runtimes.targets.link import Link, Transfer

TARGETS: Mapping[str, str] = {
    "local": "edgekit.runtimes.targets.local:LocalTarget",
    "ssh": "edgekit.runtimes.targets.ssh:SshTarget",
    "adb": "edgekit.runtimes.targets.adb:AdbTarget",
    "emulated": "edgekit.runtimes.targets.emulated:EmulatedTarget",
}
"""Every kind of target by its name, with the place of its class: imported only when it is used."""


class Target(abc.ABC):
    """A machine that can run workers.

    An implementation guarantees: every :meth:`worker` is a fresh process; leaving its block ends that process, also
    when the block raised; a worker that dies or hangs is a :class:`WorkerCrashError` or :class:`WorkerTimeoutError`,
    never the end of the command; command lines are argument lists.
    """

    name: str
    times_are_real: ClassVar[bool] = True
    """Whether its milliseconds are latencies; an emulator's are not."""
    counts_instructions: ClassVar[bool] = False
    """Whether :meth:`Link.count` works there."""
    has_edgekit: ClassVar[bool] = False
    """Whether the whole of edgekit is there, torch with it."""
    batch_size: ClassVar[int] = 128
    """Inputs that are sent at a time when a data set is run."""
    repair: str = ""
    """The command that brings it what files are run with; empty where there is none."""
    summary: ClassVar[str]
    """What it is, in a line."""
    example: ClassVar[str]
    """A name of such a target."""
    families: ClassVar[Mapping[str, str]] = {}
    """Targets of the kind that are set up by themselves: one place for each family, with what they are in a line."""

    @classmethod
    def lacking(cls, place: str = "") -> tuple[str, str]:
        """What this machine lacks for such targets, and what to do; both empty when nothing is.

        Args:
            place: Of one target, for what its family lacks; empty for the kind.
        """
        return "", ""

    @classmethod
    def setup(cls, progress: Callable[[int, int, str], None], place: str = "") -> dict[str, Any]:
        """Makes what such targets need, on this machine or there: ``folder``, ``size_bytes``, ``versions``.

        Args:
            progress: Told how far it has come.
            place: Of one target, for what its family needs; empty for the kind.

        Raises:
            UsageError: If they need nothing.
            TargetError: If it can't be made.
        """
        raise UsageError(f"{cls.name} needs no set-up", f"Look at it: edgekit target check {cls.example}")

    @classmethod
    def at(cls, place: str) -> Target:
        """The target of what follows ``KIND:`` in a name; raises UsageError if that can't be."""
        if place:
            raise UsageError(f"{cls.name} takes nothing after its name, not {place!r}", f"Say --target {cls.name}.")
        return cls()

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """The machine: system, CPU model and flags, cores, memory, governor and clocks."""

    @abc.abstractmethod
    def start(self, folder: Path, log: Path, *, counting: bool = False) -> tuple[subprocess.Popen[bytes], Transfer]:
        """Starts a worker.

        Args:
            folder: For exchanged files.
            log: Takes its stderr.
            counting: Its instructions are to be counted; asked only of a target that counts.
        """

    @contextlib.contextmanager
    def worker(self, *, counting: bool = False) -> Iterator[Link]:
        """A fresh worker for one file."""
        with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
            folder = Path(name)
            log = folder / "stderr.txt"
            link = Link(*self.start(folder, log, counting=counting), folder, log)
            try:
                yield link
            finally:
                link.close()

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets go of the machine."""


def target_kind(kind: str) -> type[Target]:
    """The class of a kind of target.

    Raises:
        UnknownNameError: If there is none.
    """
    if kind not in TARGETS:
        raise UnknownNameError("target", kind, TARGETS)
    module, _, attribute = TARGETS[kind].partition(":")
    found: type[Target] = getattr(importlib.import_module(module), attribute)
    return found


def target_for(name: str) -> Target:
    """The target of a name: ``local``, or ``KIND:PLACE``.

    Raises:
        UnknownNameError: If there is no such kind.
        UsageError: If the place can't be.
    """
    kind, _, place = name.partition(":")
    return target_kind(kind).at(place)
