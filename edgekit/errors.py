"""Every error that edgekit raises on purpose.

    EdgekitError                    exit code 1: a check or a run failed
    ├── UsageError                  exit code 2: what was typed can't be right
    │   ├── UnknownNameError        a name that is in no registry; lists the near ones
    │   └── MissingDependencyError  an extra that is not installed; gives the pip line
    ├── SourceError                 a model that can't be loaded or exported
    ├── BundleError                 a bundle folder that is damaged, or of another schema
    ├── DataError                   a data set that is missing, damaged, or overlaps itself
    ├── StepError                   a compression step that failed; names it and those before it
    ├── ExportError                 a file that could not be written
    │   ├── UnsupportedOperatorError    a format lacks an operator: node, reason, remedy
    │   └── ParityError             the exported file does not compute what the model does
    └── ExecutionError              a file that could not be run
        ├── RuntimeUnavailableError     the runtime is not usable here, with the reason
        ├── WorkerCrashError        the native library died; the command lives on
        ├── WorkerTimeoutError      the worker gave no answer in time
        ├── WorkerMemoryError       the worker got no memory, or met its limit
        └── TargetError             the machine to run on is not set up or can't be reached
            └── PackagesError           what it needs can't be fetched from here

A message says what happened, with values and limits; ``remedy`` says what to do next. The command
line prints both and no traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgekitError(Exception):
    """Base of the tree.

    Args:
        what: What happened, with values and limits.
        remedy: What the user can do about it; empty when there is nothing to add.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n{self.remedy}" if self.remedy else self.what


class UsageError(EdgekitError):
    """What was typed can't be right."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is in no registry.

    Args:
        kind: What the name stands for, for example ``"step"``.
        name: The name as typed.
        known: The names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3)
        remedy = f"Did you mean {' or '.join(near)}? " if near else ""
        super().__init__(f"no {kind} is called {name!r}", f"{remedy}Known: {', '.join(known) or 'none'}.")


class MissingDependencyError(UsageError):
    """A library that comes with an extra is not installed.

    Args:
        library: The library's name.
        extra: The extra of edgekit that brings it.
        purpose: What it is needed for.
    """

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {library}, which is not installed", f"pip install 'edgekit[{extra}]'")


class SourceError(EdgekitError):
    """A model that can't be loaded or exported."""


class BundleError(EdgekitError):
    """A bundle folder that is damaged or was written by another schema."""


class DataError(EdgekitError):
    """A data set that is missing, damaged, or whose splits overlap."""


class StepError(EdgekitError):
    """A compression step that failed."""


class ExportError(EdgekitError):
    """A file that could not be written."""


class UnsupportedOperatorError(ExportError):
    """A format lacks an operator that the program needs."""


class ParityError(ExportError):
    """An exported file does not compute what the model does."""


class ExecutionError(EdgekitError):
    """A file that could not be run."""

    failure = "refused"
    """What kind of end it was, in a word, for results that keep it."""


class RuntimeUnavailableError(ExecutionError):
    """A runtime is not usable on this machine."""

    failure = "unavailable"


class WorkerCrashError(ExecutionError):
    """The worker process died, most often inside a native library."""

    failure = "crash"


class WorkerTimeoutError(ExecutionError):
    """The worker process gave no answer in time."""

    failure = "timeout"


class WorkerMemoryError(ExecutionError):
    """The worker process got no memory, or met the limit that it was given."""

    failure = "memory"


class TargetError(ExecutionError):
    """The machine to run on is not set up, can't be reached, or was lost."""

    failure = "target"


class PackagesError(TargetError):
    """Packages or wheels that a target needs can't be fetched from here: no apt, no network, no mirror."""
