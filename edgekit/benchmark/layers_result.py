"""What profiling layers found: tables of layers, and the document that is written of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.benchmark.roofline import Roofline
from edgekit.runtimes.profile import Profile

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class LayerCell:
    """One layer in one runtime.

    Attributes:
        ms: Median over the runs of the time of all its operators.
        low_ms: Lower end of the median's 95 % interval.
        high_ms: Upper end.
        below_noise: It is shorter than the profiler's clock can tell, or than asking for it takes.
        operators: The runtime's operators that compute it.
        within: Other layers that these operators compute, too, such as all of an attention.
        attainable_ms: What it would take at the roofline, with what is within it; None where that is not known.
        share: Of the roofline that it reaches, attainable over measured time; None where one of them is not known. It is
            above 1 where data stays in caches, which are faster than the memory, and where a convolution takes fewer
            multiplications than it has MACs (Winograd's takes 2.25 to 4 times fewer, for 3 × 3 kernels).
    """

    ms: float
    low_ms: float
    high_ms: float
    below_noise: bool
    operators: tuple[str, ...]
    within: tuple[str, ...]
    attainable_ms: float | None
    share: float | None


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer of the program, with the batch norm and activation that runtimes merge into it.

    Attributes:
        path: Its name in the user's modules; in brackets what belongs to no layer: ``(layout)``, ``(quantize)``, ``(other)``.
        node: Its node in the program; empty for what belongs to none.
        op: The ATen operator.
        macs: For one input.
        fused: Nodes of the program that are counted with it.
        bytes: What it reads and writes for one input, weights included, by the precision of the file.
        cells: For each column; None where no operator of its own computes it: it is part of another, or of none.
    """

    path: str
    node: str = ""
    op: str = ""
    macs: int = 0
    fused: tuple[str, ...] = ()
    bytes: dict[str, float] = field(default_factory=dict)
    cells: tuple[LayerCell | None, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LayerColumn:
    """One file in one runtime.

    Attributes:
        label: What to call the file.
        file: Its path.
        runtime: With its settings.
        threads: Of the runtime.
        precision: As the file says; empty for a stranger's file.
        input: What it was run on.
        whole_ms: Median of the whole inference, without profiling, in the same process.
        whole_interval_ms: The median's 95 % interval.
        sum_ms: Median over the runs of all operators' time together.
        profiled_ms: Median of the profiled inference, seen from outside.
        overhead_ms: Taken off each operator's time: what asking for it takes, measured.
        method: How the operators were timed.
        rows: For each operator in the order of execution the node or bracket of its row.
        profile: The operators with their raw samples; None if there are none.
        error: Why; empty when there are.
    """

    label: str
    file: str
    runtime: str
    threads: int
    precision: str = ""
    input: str = ""
    whole_ms: float = 0.0
    whole_interval_ms: tuple[float, float] = (0.0, 0.0)
    sum_ms: float = 0.0
    profiled_ms: float = 0.0
    overhead_ms: float = 0.0
    method: str = ""
    rows: tuple[str, ...] = ()
    profile: Profile | None = None
    error: str = ""

    @property
    def unaccounted(self) -> float | None:
        """Share of the whole that is in no operator; negative where profiling made the operators longer."""
        return 1 - self.sum_ms / self.whole_ms if self.whole_ms else None

    def to_dict(self, *, raw: bool = True) -> dict[str, Any]:
        """JSON values, with every operator and its raw samples unless told otherwise."""
        value = {
            name: getattr(self, name)
            for name in (
                "label", "file", "runtime", "threads", "precision", "input", "whole_ms", "whole_interval_ms", "sum_ms",
                "profiled_ms", "overhead_ms", "unaccounted", "method", "error",
            )
        }  # fmt: skip
        if raw and self.profile is not None:
            value["operators"] = [
                {**asdict(operator), "row": row}
                for operator, row in zip(self.profile.operators, self.rows, strict=True)
            ]
            value["raw_whole_ms"] = list(self.profile.whole_ms)
        return value


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """A bundle's layers in every runtime; of a stranger's file its operators.

    Attributes:
        name: Of the bundle or file.
        rows: In the order of the program; what belongs to no layer at the end.
        columns: One for each file and runtime.
    """

    name: str
    rows: tuple[LayerRow, ...]
    columns: tuple[LayerColumn, ...]


@dataclass(frozen=True, kw_only=True)
class LayersResult:
    """What profiling layers found.

    Attributes:
        tables: One for each bundle, and for each file that belongs to none.
        roofline: Of the machine.
        target: The machine.
        runs: Profiled runs of each file.
        warnings: What may have spoilt the figures.
    """

    tables: tuple[LayerTable, ...]
    roofline: Roofline
    target: dict[str, Any]
    runs: int
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[LayerColumn, ...]:
        """The files that could not be profiled."""
        return tuple(column for table in self.tables for column in table.columns if column.error)

    def to_dict(self, *, raw: bool = True) -> dict[str, Any]:
        """JSON values, with raw samples unless told otherwise."""
        return {
            "schema": SCHEMA,
            "target": self.target,
            "runs": self.runs,
            "roofline": self.roofline.to_dict(),
            "warnings": list(self.warnings),
            "tables": [
                {
                    "name": table.name,
                    "columns": [column.to_dict(raw=raw) for column in table.columns],
                    "rows": [row.to_dict() for row in table.rows],
                }
                for table in self.tables
            ],
        }
