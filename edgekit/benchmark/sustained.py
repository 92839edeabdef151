"""Minutes of one file after the other without a pause: whether a machine that grows warm becomes slower."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.benchmark.candidates import Candidate, list_candidates, paths_of, probe
from edgekit.compress.step import no_progress
from edgekit.errors import ExecutionError, UsageError
from edgekit.files import write_json
from edgekit.runtimes.comparison import LEAST_ROUNDS, interval
from edgekit.runtimes.measure import Cell, Plan, failed_round, options_of
from edgekit.runtimes.targets.target import Target, target_for

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.compress.step import Progress

KIND = "edgekit bench sustained"
SCHEMA = 1
# Enough windows for a curve, and long enough that a worker's messages don't count.
_WINDOWS, _LEAST_WINDOW_S = 60, 1.0
# The first and the last part are compared.
_PART = 5


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of the run.

    Attributes:
        seconds: Since the first inference, at its end.
        p50_ms: Median of one inference.
        runs: Inferences in it.
        energy_mj: For one inference; None where the machine does not tell.
        clock_khz: Of each CPU; None where it is not told.
        temperature_c: By sensor; None where it is not told.
    """

    seconds: float
    p50_ms: float
    runs: int
    energy_mj: float | None = None
    clock_khz: list[int] | None = None
    temperature_c: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How one cell went over time.

    Attributes:
        cell: What ran.
        windows: In order.
        ratio: Median latency of the last fifth over the first one's.
        low: Lower end of the 95 % interval on it.
        high: Upper end.
        verdict: ``slowed down``, ``sped up`` or ``steady``.
        energy: What told the energy, or why nothing did.
        facts: What the runtime really used.
        error: Why there is none.
        failure: What kind of end that was.
    """

    cell: Cell
    windows: tuple[Window, ...] = ()
    ratio: float = 0.0
    low: float = 0.0
    high: float = 0.0
    verdict: str = ""
    energy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    failure: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        value = asdict(self)
        value.pop("cell")
        cell = self.cell
        return {"label": cell.label, "runtime": cell.choice, "threads": cell.threads, "batch": cell.batch, **value}


@dataclass(frozen=True, kw_only=True)
class SustainedResult:
    """What a sustained run found.

    Attributes:
        curves: One for each cell, in the order in which they ran.
        target: The machine.
        minutes: For each.
        warnings: What should be known.
    """

    curves: tuple[Curve, ...]
    target: dict[str, Any]
    minutes: float
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "edgekit": version("edgekit"),
            "target": self.target,
            "minutes": self.minutes,
            "warnings": list(self.warnings),
            "curves": [curve.to_dict() for curve in self.curves],
        }


def sustain(
    items: str | Path | Bundle | Iterable[str | Path | Bundle],
    minutes: float,
    *,
    runtimes: Sequence[str] = (),
    threads: Sequence[int] = (1,),
    plan: Plan | None = None,
    target: str = "local",
    output: str | Path | None = None,
    progress: Progress = no_progress,
) -> SustainedResult:
    """Runs files one after the other, each for minutes without a pause.

    Args:
        items: Exported files, and bundles for their program (in torch) with all their exports.
        minutes: For each file, runtime and number of threads.
        runtimes: Only these; all that the files need if empty.
        threads: Each file is run with each.
        plan: CPUs, limits and warm-up.
        target: Where.
        output: Write the result there, as JSON.
        progress: Told how far it has come.

    Raises:
        UsageError: If there is nothing to run, or the target's times are no latencies.

    Example:
        >>> sustain("small/exports/model.onnx", minutes=10).curves[0].verdict  # doctest: +SKIP
        'steady'
    """
    if minutes <= 0:
        raise UsageError(f"a sustained run takes minutes, not {minutes:g}", "For example --sustained 10.")
    plan = plan or Plan()
    opened = target_for(target)
    if not opened.times_are_real:
        raise UsageError(f"what {target} takes is no latency", "Run sustained on a real machine.")
    candidates = list_candidates(paths_of(items), runtimes, threads, opened)
    curves = []
    with opened as place:
        machine = place.describe()
        for number, candidate in enumerate(candidates):
            probe(candidate, place, None, plan)
            if candidate.error:
                curves.append(Curve(cell=candidate.cell, error=candidate.error, failure=candidate.failure))
                continue
            try:
                curves.append(_run(candidate, place, plan, minutes, number, len(candidates), progress))
            except ExecutionError as error:
                failed = failed_round(error)
                curves.append(Curve(cell=candidate.cell, error=failed.error, failure=failed.failure))
    warnings = []
    if len(curves) > 1:
        warnings.append("each began on a machine that was warm from the one before it")
    if machine.get("temperature_c") is None:
        warnings.append("this machine does not tell its temperature")
    result = SustainedResult(curves=tuple(curves), target=machine, minutes=minutes, warnings=tuple(warnings))
    if output is not None:
        write_json(Path(output), result.to_dict())
    return result


def _run(
    candidate: Candidate, target: Target, plan: Plan, minutes: float, number: int, of: int, progress: Progress
) -> Curve:
    cell = candidate.cell
    length = max(60 * minutes / _WINDOWS, _LEAST_WINDOW_S)
    count = max(round(60 * minutes / length), _PART)
    windows: list[Window] = []
    samples: list[list[float]] = []
    timed: dict[str, Any] = {}
    with target.worker() as worker:
        worker.open(cell.path, cell.runtime, options_of(cell, plan), plan.timeout_s)
        # Warm code, and a machine as cold as it is: the curve begins with the first window.
        worker.time(candidate.x, runs=plan.warmup_runs, seconds=0.0, warmup_runs=0, warmup_seconds=0.0)
        start = time.monotonic()
        for position in range(count):
            timed = worker.time(
                candidate.x, runs=1, seconds=length, warmup_runs=0, warmup_seconds=0.0, timeout_s=plan.timeout_s
            )
            sensors = worker.sensors()
            found = timed["samples_ms"]
            joules = timed["energy_j"]
            samples.append(found)
            windows.append(
                Window(
                    seconds=time.monotonic() - start,
                    p50_ms=statistics.median(found),
                    runs=len(found),
                    energy_mj=1000 * joules / len(found) if joules is not None else None,
                    clock_khz=sensors["clock_khz"],
                    temperature_c=sensors["temperature_c"],
                )
            )
            progress(number * count + position + 1, of * count, f"sustained: {cell.label} in {cell.choice}")
    part = max(len(samples) // _PART, 1)
    first, last = samples[:part], samples[-part:]
    ratio = float(np.median(np.concatenate(last)) / np.median(np.concatenate(first)))
    low, high = (0.0, float("inf"))
    if part >= LEAST_ROUNDS:
        low, high = interval(last, first, plan.seed, paired=False)
    verdict = "slowed down" if low > 1 else "sped up" if high < 1 else "steady"
    return Curve(
        cell=cell, windows=tuple(windows), ratio=ratio, low=low, high=high,
        verdict=verdict if part >= LEAST_ROUNDS else "too short to tell", energy=timed["energy"], facts=timed["facts"],
    )  # fmt: skip
