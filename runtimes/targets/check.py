"""Looking at targets: which kinds there are, what one tells of itself, and what is missing on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.errors import ExecutionError
from edgekit.runtimes.targets.target import TARGETS, target_for, target_kind


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found at a target.

    Attributes:
        target: Its name.
        facts: What the machine tells of itself; empty if it can't be reached.
        runtimes: Each runtime with whether it can be used there, its version, or why not and the line that installs it.
        problem: Why nothing can run there; empty when something can.
        remedy: What to do about it.
    """

    target: str
    facts: dict[str, Any] = field(default_factory=dict)
    runtimes: dict[str, dict[str, Any]] = field(default_factory=dict)
    problem: str = ""
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def check(name: str) -> Check:
    """Starts a worker on a target and asks it.

    Args:
        name: ``local``, or ``KIND:PLACE``.

    Raises:
        UsageError: If the name can't be one.

    Example:
        >>> check("local").problem
        ''
    """
    try:
        with target_for(name) as target:
            described = target.describe()
            with target.worker() as worker:
                runtimes = worker.facts()["runtimes"]
    except ExecutionError as error:
        return Check(target=name, problem=error.what, remedy=error.remedy)
    if not target.has_edgekit:
        # A bundle's own program needs the whole of edgekit; what is for targets is its exports.
        runtimes.pop("torch", None)
    described = {key: value for key, value in described.items() if key != "runtimes"}
    usable = [runtime for runtime, found in runtimes.items() if found["usable"]]
    lines = [found["install"] for found in runtimes.values() if not found["usable"]]
    first = (
        f"Run: {target.repair}  (it sends a Python that has them). Or install one there"
        if target.repair
        else "Install one there"
    )
    return Check(
        target=name,
        facts=described,
        runtimes=runtimes,
        problem="" if usable else "no runtime can be used there",
        remedy="" if usable else f"{first}: {' or '.join(lines)}",
    )


def kinds() -> list[dict[str, str]]:
    """Every kind of target, and its families: ``kind`` (as set-up takes it), ``summary``, ``example``, and ``problem`` and
    ``remedy`` where it can't be used yet."""
    found = []
    for name in TARGETS:
        kind = target_kind(name)
        found.append(_entry(name, kind.summary, kind.example, kind.lacking()))
        for place, summary in kind.families.items():
            found.append(_entry(f"{name}:{place}", summary, f"{name}:{place}", kind.lacking(place)))
    return found


def _entry(kind: str, summary: str, example: str, lacking: tuple[str, str]) -> dict[str, str]:
    return {"kind": kind, "summary": summary, "example": example, "problem": lacking[0], "remedy": lacking[1]}
