"""What the compression is for: a share of the original's size, MACs or measured latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from edgekit.compress.prune.stopwatch import clock_of
from edgekit.errors import UnknownNameError, UsageError

Measure = Literal["size", "macs", "latency"]
MEASURES = {"size": "size=0.25", "macs": "macs=0.5", "latency": "latency=0.5@tflite"}
"""What can be limited, each with an example."""


@dataclass(frozen=True)
class Goal:
    """A share of the original that may be left.

    Attributes:
        measure: ``size`` is the bytes of the weights as the bundle stores them, ``macs`` the multiply-accumulates,
            ``latency`` the median time of one thread.
        share: Between 0 and 1.
        clock: In whose runtime latency is measured, and on which target if not here: ``tflite``, ``tflite@ssh:pi@board``;
            None for the others.
    """

    measure: Measure
    share: float
    clock: str | None = None

    def __str__(self) -> str:
        return f"{self.measure}={self.share:g}" + (f"@{self.clock}" if self.clock else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"measure": self.measure, "share": self.share, "clock": self.clock}


def parse_goal(text: str) -> Goal:
    """A goal as typed.

    Args:
        text: ``size=0.25``, ``macs=0.5``, ``latency=0.5@tflite`` or ``latency=0.5@tflite@ssh:pi@board``.

    Raises:
        UsageError: If it is something else, with an example.

    Example:
        >>> parse_goal("latency=0.5@onnx").clock
        'onnx'
    """
    measure, equals, rest = (part.strip() for part in text.partition("="))
    if not equals:
        raise UsageError(f"{text!r} is no goal", f"Write one of {', '.join(MEASURES.values())}.")
    if measure not in MEASURES:
        raise UnknownNameError("goal", measure, MEASURES)
    number, at, clock = (part.strip() for part in rest.partition("@"))
    try:
        share = float(number.removesuffix("x"))
    except ValueError:
        share = float("nan")
    if not 0 < share < 1:
        raise UsageError(
            f"the goal {text!r} is no share of the original between 0 and 1", f"For example {MEASURES[measure]}."
        )
    if (measure == "latency") != bool(at and clock):
        what = "needs a format to measure in" if measure == "latency" else "takes no format"
        raise UsageError(f"the goal {text!r} {what}", f"For example {MEASURES[measure]}.")
    if clock:
        clock_of(clock)
    return Goal(cast(Measure, measure), share, clock or None)
