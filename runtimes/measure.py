"""Measuring files and comparing them.

Every measurement runs in a fresh process: load, first run, warm-up, then at least so many runs and at least so long.
What is to be compared is measured in turn, round after round in shuffled order, so that a slow minute of the machine
falls on all alike. All raw samples are kept. Two cells are compared by the ratio of their medians with a bootstrap
interval over rounds (a round's runs share the machine's state, so rounds are what is independent) and, within them,
over runs; "no difference" and "slower" are answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ExecutionError, RuntimeUnavailableError
from edgekit.files import sha256_file, size_on_disk
from edgekit.runtimes.choice import named
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets import instructions
from edgekit.runtimes.targets.target import Target

PERCENTILES = (50, 90, 99)
LEAST_ROUNDS = 3
# More samples of a round than these add nothing to the interval but time.
_RESAMPLES, _SAMPLES_PER_ROUND = 2000, 200
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: Fresh processes for each cell.
        runs: Least timed runs in each round.
        seconds: Least time of the timed runs in each round.
        warmup_runs: Least runs before them, after the first.
        warmup_seconds: Least time of those.
        batch: Inputs at a time.
        seed: Of the order within the rounds, and of the bootstrap.
    """

    rounds: int = 8
    runs: int = 10
    seconds: float = 0.4
    warmup_runs: int = 3
    warmup_seconds: float = 0.1
    batch: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < LEAST_ROUNDS:
            raise ValueError(f"an interval needs at least {LEAST_ROUNDS} rounds, not {self.rounds}")
        if self.runs < 1 or self.batch < 1 or self.seconds < 0:
            raise ValueError(
                f"runs, batch and seconds must be positive, not {self.runs}, {self.batch}, {self.seconds:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to measure: a file in a runtime with so many threads.

    Attributes:
        label: What to call it in tables.
        path: The file, or a bundle folder for torch.
        runtime: Its name.
        threads: Of the runtime.
        extra: Settings of the runtime that differ from its defaults.
    """

    label: str
    path: Path
    runtime: str
    threads: int = 1
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def choice(self) -> str:
        """The runtime with its settings, as it is chosen."""
        return named(self.runtime, self.extra)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one cell gave.

    Attributes:
        cell: What was measured.
        size_bytes: Of all its files on disk.
        sha256: Of the main file; empty for a folder.
        load_ms: Loading the file, for each round.
        first_run_ms: The first inference, for each round.
        rounds_ms: Raw steady samples, a list for each round, in milliseconds for one inference of ``batch`` inputs.
        peak_memory_bytes: Largest growth of resident memory by loading and running the file, over the rounds.
        process_memory_bytes: Largest resident memory of the whole process, its libraries included.
        instructions: Of one inference by class, for each inference that was counted; where the target counts them, there
            are no times.
        facts: What the runtime really used; ``not_honoured`` lists what was asked for and not done.
        error: Why there is no measurement; empty when there is one.
    """

    cell: Cell
    size_bytes: int
    sha256: str
    load_ms: tuple[float, ...] = ()
    first_run_ms: tuple[float, ...] = ()
    rounds_ms: tuple[tuple[float, ...], ...] = ()
    peak_memory_bytes: int | None = None
    process_memory_bytes: int | None = None
    instructions: tuple[dict[str, int], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def samples_ms(self) -> np.ndarray:
        """All steady samples."""
        return np.concatenate([np.asarray(r) for r in self.rounds_ms]) if self.rounds_ms else np.zeros(0)

    @property
    def total_instructions(self) -> int:
        """Of one inference, all classes; 0 where none were counted."""
        return instructions.total(instructions.mean(self.instructions)) if self.instructions else 0

    def percentile(self, q: float) -> float:
        """A percentile of the steady samples in ms; every round weighs alike."""
        return float(np.percentile(_balanced(self.rounds_ms), q))

    def to_dict(self, *, raw: bool = True) -> dict[str, Any]:
        """JSON values, with the raw samples unless told otherwise."""
        value: dict[str, Any] = {
            "label": self.cell.label,
            "file": str(self.cell.path),
            "runtime": self.cell.runtime,
            "settings": dict(self.cell.extra),
            "threads": self.cell.threads,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "error": self.error,
        }
        if self.rounds_ms:
            value |= {f"p{q}_ms": self.percentile(q) for q in PERCENTILES}
            value |= {
                "load_ms": float(np.median(self.load_ms)),
                "first_run_ms": float(np.median(self.first_run_ms)),
                "runs": len(self.samples_ms),
                "peak_memory_bytes": self.peak_memory_bytes,
                "process_memory_bytes": self.process_memory_bytes,
                "facts": self.facts,
            }
        if self.instructions:
            value |= {
                "instructions": {"total": self.total_instructions, **instructions.mean(self.instructions)},
                "instructions_spread": instructions.spread(self.instructions),
                "facts": self.facts,
            }
            if raw:
                value["raw"] = {"instructions": list(self.instructions)}
        if raw and self.rounds_ms:
            value["raw"] = {
                "rounds_ms": [[round(ms, 5) for ms in one] for one in self.rounds_ms],
                "load_ms": list(self.load_ms),
                "first_run_ms": list(self.first_run_ms),
            }
        return value


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How long one cell takes against another.

    Attributes:
        label: The cell.
        baseline: What it is compared with.
        ratio: Median latency over the baseline's; below 1 is faster.
        low: Lower end of the interval.
        high: Upper end.
        verdict: ``faster``, ``slower`` or ``no difference``.
    """

    label: str
    baseline: str
    ratio: float
    low: float
    high: float
    verdict: str


def measure(
    cells: Sequence[Cell],
    inputs: Sequence[np.ndarray],
    target: Target,
    plan: Plan,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> list[Measurement]:
    """Measures cells, interleaved.

    Args:
        cells: What to measure.
        inputs: For each cell a real input, float32, shape (batch, …) in the bundle's layout.
        target: Where. One that counts instructions does that instead, in one process for each cell.
        plan: How long.
        progress: Told how far it has come.

    Returns:
        A measurement for each cell, in order. A cell that crashes, hangs or can't be loaded is a result too: its
        ``error`` says why, it is not tried again, and the others are measured all the same.
    """
    records = [_Record() for _ in cells]
    order = random.Random(plan.seed)
    rounds = 1 if target.counts_instructions else plan.rounds
    once = _count_once if target.counts_instructions else _measure_once
    done, total = 0, rounds * len(cells)
    for _ in range(rounds):
        for index in order.sample(range(len(cells)), len(cells)):
            cell, record = cells[index], records[index]
            if not record.error:
                once(cell, inputs[index], target, plan, record)
            done += 1
            progress(done, total, f"measuring: {cell.label} in {cell.choice}")
    return [record.finish(cell) for record, cell in zip(records, cells, strict=True)]


@dataclass
class _Record:
    load_ms: list[float] = field(default_factory=list)
    first_run_ms: list[float] = field(default_factory=list)
    rounds_ms: list[tuple[float, ...]] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    process: list[int] = field(default_factory=list)
    instructions: list[dict[str, int]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def finish(self, cell: Cell) -> Measurement:
        exists = cell.path.exists()
        files = files_of(cell.path) if exists else []
        return Measurement(
            cell=cell,
            size_bytes=sum(size_on_disk(path) for path in files),
            sha256=sha256_file(cell.path) if cell.path.is_file() else "",
            load_ms=tuple(self.load_ms),
            first_run_ms=tuple(self.first_run_ms),
            rounds_ms=() if self.error else tuple(self.rounds_ms),
            peak_memory_bytes=max(self.peaks) if self.peaks else None,
            process_memory_bytes=max(self.process) if self.process else None,
            instructions=() if self.error else tuple(self.instructions),
            facts=self.facts,
            error=self.error,
        )


def _measure_once(cell: Cell, x: np.ndarray, target: Target, plan: Plan, record: _Record) -> None:
    try:
        with target.worker() as worker:
            opened = worker.open(cell.path, cell.runtime, Options(threads=cell.threads, extra=cell.extra))
            timed = worker.time(
                x,
                runs=plan.runs,
                seconds=plan.seconds,
                warmup_runs=plan.warmup_runs,
                warmup_seconds=plan.warmup_seconds,
            )
            memory = worker.memory()
    except RuntimeUnavailableError as error:
        record.error = f"{error.what} ({error.remedy})" if error.remedy else error.what
        return
    except ExecutionError as error:
        record.error = error.what
        return
    record.load_ms.append(opened["load_ms"])
    record.first_run_ms.append(timed["first_run_ms"])
    record.rounds_ms.append(tuple(timed["samples_ms"]))
    record.peaks.append(memory["peak_bytes"] - memory["before_bytes"])
    record.process.append(memory["peak_bytes"])
    record.facts = timed["facts"]


def _count_once(cell: Cell, x: np.ndarray, target: Target, plan: Plan, record: _Record) -> None:
    try:
        with target.worker(counting=True) as worker:
            worker.open(cell.path, cell.runtime, Options(threads=cell.threads, extra=cell.extra))
            record.facts, counted = worker.count(x)
    except ExecutionError as error:
        record.error = str(error).replace("\n", " ")
        return
    record.instructions += counted


def files_of(path: Path) -> list[Path]:
    """The files that make up an exported model: the .bin beside an ncnn .param; a bundle folder's program."""
    if path.is_dir():
        return [path / "program.pt2"]
    binary = path.with_suffix(".bin")
    return [path, binary] if path.suffix == ".param" and binary.is_file() else [path]


def compare(measured: Measurement, baseline: Measurement, seed: int = 0) -> Comparison:
    """The ratio of median latencies with its interval.

    Args:
        measured: The cell.
        baseline: What to compare with; measured in the same rounds.
        seed: Of the bootstrap.

    Raises:
        ValueError: If one of them has no samples, or the rounds differ in number.
    """
    low, high = interval(measured.rounds_ms, baseline.rounds_ms, seed)
    verdict = "faster" if high < 1 else "slower" if low > 1 else "no difference"
    return Comparison(
        label=measured.cell.label,
        baseline=baseline.cell.label,
        ratio=measured.percentile(50) / baseline.percentile(50),
        low=low,
        high=high,
        verdict=verdict,
    )


def interval(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """A two-stage bootstrap interval (Davison & Hinkley 1997, section 3.8) on median(a) / median(b).

    Rounds are drawn in pairs, for the two of a round met the same machine; then runs within each.

    Args:
        a: Samples for each round.
        b: Samples for each round, as many rounds.
        seed: Of the draws.

    Returns:
        Lower and upper end, 95 %.
    """
    if len(a) != len(b) or len(a) < LEAST_ROUNDS:
        raise ValueError(
            f"a comparison needs the same rounds on both sides, at least {LEAST_ROUNDS}: {len(a)} and {len(b)}"
        )
    rng = np.random.default_rng(seed)
    left, right = _balanced(a), _balanced(b)
    ratios = np.empty(_RESAMPLES)
    for draw in range(_RESAMPLES):
        rounds = rng.integers(0, len(left), len(left))
        ratios[draw] = np.median(_redrawn(left[rounds], rng)) / np.median(_redrawn(right[rounds], rng))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(low), float(high)


def _balanced(rounds: Sequence[Sequence[float]]) -> np.ndarray:
    """As many samples of every round (its quantiles), so that a fast round with more runs does not outweigh a slow one."""
    points = (np.arange(_SAMPLES_PER_ROUND) + 0.5) / _SAMPLES_PER_ROUND
    return np.stack([np.quantile(np.asarray(one, np.float64), points) for one in rounds])


def _redrawn(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    chosen = rng.integers(0, samples.shape[1], samples.shape)
    return np.take_along_axis(samples, chosen, axis=1)
