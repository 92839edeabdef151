"""What a bench found: rows, and the document that is written of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from edgekit.evaluation import Evaluation
from edgekit.runtimes.comparison import Comparison
from edgekit.runtimes.measure import Measurement, Plan

KIND = "edgekit bench"
SCHEMA = 1
"""Of the written document; it grows when a field changes its meaning or goes, not when one is added."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file in one runtime with so many threads.

    Attributes:
        measurement: Its times, memory and size.
        precision: As the file says; empty for a stranger's file.
        macs: For one input; None when unknown.
        input: What it was timed on: a real sample, or random numbers.
        accuracy: On the test split; None without data.
        comparison: With the baseline; None for the baseline itself, or without one.
        macs_ratio: MACs over the baseline's; no speed-up by itself.
        instructions_ratio: Instructions over the baseline's, where the target counts them.
        accuracy_difference: Points of top-1 over the baseline, and their standard error (paired).
        agreement: Percentage of the images that are given the same class as by the baseline, or, without one, by the
            bundle's own program.
        notes: What should be known of it, the options that were not honoured first.
    """

    measurement: Measurement
    precision: str = ""
    macs: int | None = None
    input: str = ""
    accuracy: Evaluation | None = None
    comparison: Comparison | None = None
    macs_ratio: float | None = None
    instructions_ratio: float | None = None
    accuracy_difference: tuple[float, float] | None = None
    agreement: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self, *, raw: bool = True) -> dict[str, Any]:
        """JSON values."""
        return {
            **self.measurement.to_dict(raw=raw),
            "precision": self.precision,
            "macs": self.macs,
            "input": self.input,
            "accuracy": self.accuracy.to_dict() if self.accuracy else None,
            "comparison": asdict(self.comparison) if self.comparison else None,
            "macs_ratio": self.macs_ratio,
            "instructions_ratio": self.instructions_ratio,
            "accuracy_difference": self.accuracy_difference,
            "agreement": self.agreement,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What a bench found.

    Attributes:
        rows: In the order of what was given.
        target: The machine, before.
        target_after: What it told otherwise when the last cell had been measured: clocks, temperatures, a phone's thermal
            status and battery.
        plan: How long was measured.
        data: The data reference; empty for none.
        warnings: What may have spoilt the figures.
    """

    rows: tuple[Row, ...]
    target: dict[str, Any]
    plan: Plan
    data: str = ""
    warnings: tuple[str, ...] = ()
    target_after: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows that could not be measured."""
        return tuple(row for row in self.rows if row.measurement.error)

    @property
    def not_honoured(self) -> tuple[str, ...]:
        """Every delegate or option that was asked for and not done."""
        return tuple(
            f"{row.measurement.cell.label}: {text}"
            for row in self.rows
            for text in row.measurement.facts.get("not_honoured", ())
        )

    def to_dict(self, *, raw: bool = True) -> dict[str, Any]:
        """JSON values, with raw samples unless told otherwise; :data:`SCHEMA` is their version."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "edgekit": version("edgekit"),
            "target": self.target,
            "target_after": self.target_after,
            "plan": asdict(self.plan),
            "data": self.data,
            "warnings": list(self.warnings),
            "not_honoured": list(self.not_honoured),
            "rows": [row.to_dict(raw=raw) for row in self.rows],
        }
