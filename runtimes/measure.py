"""Measuring files.

Every measurement runs in a fresh process: load, first run, warm-up, then at least so many runs and at least so long.
Cells are measured in turn, round after round in shuffled order, so that a slow minute of the machine falls on all alike.
In a round the processes of what is compared are alive together and take turns of a fraction of a second, so that a slow
second does too. All raw samples are kept.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgekit.errors import ExecutionError, TargetError
from edgekit.files import sha256_file, size_on_disk
from edgekit.runtimes.choice import named
from edgekit.runtimes.comparison import LEAST_ROUNDS, balanced, half_width, interval
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets import instructions
from edgekit.runtimes.targets.link import RUN_TIMEOUT_S, Link
from edgekit.runtimes.targets.target import Target

PERCENTILES = (50, 90, 99)
# More turns are shorter ones, and the first run of each, which finds the caches full of another's data, is not counted.
_TURNS = 5
# So many processes of a round are alive together: boards have little memory.
_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: Fresh processes for each cell.
        within: More rounds follow until the interval of every ratio that is asked for reaches no further than this share
            from it, such as 0.03; None for no more.
        most_rounds: Of these, in all.
        runs: Least timed runs in each round.
        seconds: Least time of the timed runs in each round.
        warmup_runs: Least runs before them, after the first.
        warmup_seconds: Least time of those.
        seed: Of the order within the rounds, and of the bootstrap.
        cpus: Keep the processes on these CPUs; on any if empty.
        memory_limit_bytes: What loading and running one file may take; None for no limit.
        timeout_s: How long loading, or running beyond the planned time, may take.
    """

    rounds: int = 8
    within: float | None = None
    most_rounds: int = 64
    runs: int = 10
    seconds: float = 0.4
    warmup_runs: int = 3
    warmup_seconds: float = 0.1
    seed: int = 0
    cpus: tuple[int, ...] = ()
    memory_limit_bytes: int | None = None
    timeout_s: float = RUN_TIMEOUT_S

    def __post_init__(self) -> None:
        if self.rounds < LEAST_ROUNDS:
            raise ValueError(f"an interval needs at least {LEAST_ROUNDS} rounds, not {self.rounds}")
        if self.within is not None and self.within <= 0:
            raise ValueError(f"ratios can't be known within {self.within:g}: give a positive share, such as 0.03")
        if self.within is not None and self.most_rounds < self.rounds:
            raise ValueError(f"at most {self.most_rounds} rounds are less than the first {self.rounds}")
        if self.runs < 1 or self.seconds < 0 or self.timeout_s <= 0:
            raise ValueError(
                f"runs, seconds and timeout must be positive, not {self.runs}, {self.seconds:g}, {self.timeout_s:g}"
            )
        if self.memory_limit_bytes is not None and self.memory_limit_bytes <= 0:
            raise ValueError(f"a memory limit must be positive, not {self.memory_limit_bytes}")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to measure: a file in a runtime with so many threads, so many inputs at a time.

    Attributes:
        label: What to call it in tables.
        path: The file, or a bundle folder for torch.
        runtime: Its name.
        threads: Of the runtime.
        extra: Settings of the runtime that differ from its defaults.
        batch: Inputs at a time.
    """

    label: str
    path: Path
    runtime: str
    threads: int = 1
    extra: dict[str, Any] = field(default_factory=dict)
    batch: int = 1

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
        energy_mj: For one inference, for each round; empty where the machine does not tell. Idle power is in it.
        energy: What told it, or why nothing did.
        instructions: Of one inference by class, for each inference that was counted; where the target counts them, there
            are no times.
        facts: What the runtime really used; ``not_honoured`` lists what was asked for and not done.
        error: Why there is no measurement; empty when there is one.
        failure: What kind of end that was: ``crash``, ``timeout``, ``memory``, ``refused``, ``unavailable``, ``target``.
    """

    cell: Cell
    size_bytes: int
    sha256: str
    load_ms: tuple[float, ...] = ()
    first_run_ms: tuple[float, ...] = ()
    rounds_ms: tuple[tuple[float, ...], ...] = ()
    peak_memory_bytes: int | None = None
    process_memory_bytes: int | None = None
    energy_mj: tuple[float, ...] = ()
    energy: str = ""
    instructions: tuple[dict[str, int], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    failure: str = ""

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
        return float(np.percentile(balanced(self.rounds_ms), q))

    @property
    def inputs_per_second(self) -> float:
        """Throughput of the steady state: inputs over time spent, every round weighing alike."""
        return 1000 * self.cell.batch / float(balanced(self.rounds_ms).mean())

    def to_dict(self, *, raw: bool = True) -> dict[str, Any]:
        """JSON values, with the raw samples unless told otherwise."""
        value: dict[str, Any] = {
            "label": self.cell.label,
            "file": str(self.cell.path),
            "runtime": self.cell.runtime,
            "settings": dict(self.cell.extra),
            "threads": self.cell.threads,
            "batch": self.cell.batch,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "error": self.error,
            "failure": self.failure,
        }
        if self.rounds_ms:
            value |= {f"p{q}_ms": self.percentile(q) for q in PERCENTILES}
            value |= {
                "load_ms": float(np.median(self.load_ms)),
                "first_run_ms": float(np.median(self.first_run_ms)),
                "runs": len(self.samples_ms),
                "inputs_per_second": self.inputs_per_second,
                "energy_mj": float(np.median(self.energy_mj)) if self.energy_mj else None,
                "energy": self.energy,
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


def measure(
    cells: Sequence[Cell],
    inputs: Sequence[np.ndarray],
    target: Target,
    plan: Plan,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    journal: Journal | None = None,
    pairs: Sequence[tuple[int, int]] = (),
) -> list[Measurement]:
    """Measures cells, interleaved.

    Args:
        cells: What to measure.
        inputs: For each cell a real input, float32, shape (batch, …) in the bundle's layout.
        target: Where. One that counts instructions does that instead, in one process for each cell.
        plan: How long.
        progress: Told how far it has come.
        journal: Keeps what is done, and knows what was done before.
        pairs: Cells and their baselines, by their places: they take turns, and ``plan.within`` is about their ratios.

    Returns:
        A measurement for each cell, in order. A cell that crashes, hangs, finds no memory or can't be loaded is a result
        too: its ``error`` says why, it is not tried again, and the others are measured all the same.
    """
    found: list[list[Round]] = [[] for _ in cells]
    order = random.Random(plan.seed)
    done = 0

    def go_on(which: Sequence[int], first: int, last: int) -> None:
        """Rounds of some cells."""
        nonlocal done
        total = done + (last - first) * len(which)
        for number in range(first, last):
            for group in _groups(which, pairs, order):
                lacking = []
                for index in group:
                    known = journal.round(index, number) if journal is not None else None
                    if known is not None:
                        found[index].append(known)
                    elif not any(one.error for one in found[index]):
                        lacking.append(index)
                measured = _round([cells[i] for i in lacking], [inputs[i] for i in lacking], target, plan, order)
                for index, one in zip(lacking, measured, strict=True):
                    found[index].append(one)
                    # A board that was lost may be there again when the work goes on.
                    if journal is not None and one.failure != TargetError.failure:
                        journal.keep(index, number, one)
                done += len(group)
                leader = cells[min(group)]
                others = f" and {len(group) - 1} more, in turn" if len(group) > 1 else ""
                progress(done, total, f"measuring: {leader.label} in {leader.choice}{others}")

    rounds = 1 if target.counts_instructions else plan.rounds
    go_on(range(len(cells)), 0, rounds)
    while plan.within is not None and rounds < plan.most_rounds:
        unsure = {index for pair in pairs if _unsure(pair, found, plan) for index in pair}
        if not unsure:
            break
        # Looked at seldom: a rule that looks after every round stops at the first that is narrow by chance.
        first, rounds = rounds, min(plan.most_rounds, rounds + max(2, rounds // 4))
        go_on(sorted(unsure), first, rounds)
    return [_measurement(cell, one) for cell, one in zip(cells, found, strict=True)]


def _groups(which: Sequence[int], pairs: Sequence[tuple[int, int]], order: random.Random) -> list[list[int]]:
    """What is measured at once, shuffled: cells that are compared with one another, and the others each alone."""
    group_of = {index: {index} for index in which}
    for a, b in pairs:
        if a in group_of and b in group_of:
            joined = group_of[a] | group_of[b]
            group_of |= dict.fromkeys(joined, joined)
    # In the order of the cells, so that the same seed gives the same shuffle.
    groups = list({min(group): sorted(group) for group in group_of.values()}.values())
    parts = []
    for group in order.sample(groups, len(groups)):
        shuffled = order.sample(group, len(group))
        parts += [shuffled[start : start + _AT_ONCE] for start in range(0, len(group), _AT_ONCE)]
    return parts


def _unsure(pair: tuple[int, int], found: Sequence[Sequence[Round]], plan: Plan) -> bool:
    """Whether a ratio that can be known is not known as well as was asked for."""
    a, b = (found[index] for index in pair)
    if any(one.error for one in (*a, *b)):
        return False
    both = min(len(a), len(b))
    low, high = interval([one.samples_ms for one in a[:both]], [one.samples_ms for one in b[:both]], plan.seed)
    assert plan.within is not None
    return half_width(low, high) > plan.within


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one process told of one cell; JSON values.

    Attributes:
        load_ms: Loading the file.
        first_run_ms: The first inference.
        samples_ms: The timed ones.
        peak_memory_bytes: Growth of resident memory by loading and running the file.
        process_memory_bytes: Resident memory of the whole process, its libraries included.
        energy_mj: For one inference; None where the machine does not tell.
        energy: What told it, or why nothing did.
        instructions: Of each counted inference, by class.
        facts: What the runtime really used.
        error: Why there is nothing.
        failure: What kind of end that was, as :attr:`edgekit.errors.ExecutionError.failure` names it.
    """

    load_ms: float = 0.0
    first_run_ms: float = 0.0
    samples_ms: tuple[float, ...] = ()
    peak_memory_bytes: int = 0
    process_memory_bytes: int = 0
    energy_mj: float | None = None
    energy: str = ""
    instructions: tuple[dict[str, int], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    failure: str = ""


class Journal(Protocol):
    """What is kept of a long measurement, so that it can go on after it was cut off."""

    def round(self, cell: int, number: int) -> Round | None:
        """What was kept of a round of a cell."""

    def keep(self, cell: int, number: int, found: Round) -> None:
        """Keeps a round."""


def _measurement(cell: Cell, rounds: Sequence[Round]) -> Measurement:
    whole = [one for one in rounds if not one.error]
    failed = next((one for one in rounds if one.error), None)
    timed = [one for one in whole if one.samples_ms]
    files = files_of(cell.path) if cell.path.exists() else []
    return Measurement(
        cell=cell,
        size_bytes=sum(size_on_disk(path) for path in files),
        sha256=sha256_file(cell.path) if cell.path.is_file() else "",
        load_ms=tuple(one.load_ms for one in timed),
        first_run_ms=tuple(one.first_run_ms for one in timed),
        rounds_ms=() if failed else tuple(one.samples_ms for one in timed),
        peak_memory_bytes=max((one.peak_memory_bytes for one in timed), default=None),
        process_memory_bytes=max((one.process_memory_bytes for one in timed), default=None),
        energy_mj=tuple(one.energy_mj for one in timed if one.energy_mj is not None),
        energy=timed[-1].energy if timed else "",
        instructions=() if failed else tuple(counted for one in whole for counted in one.instructions),
        facts=whole[-1].facts if whole else {},
        error=failed.error if failed else "",
        failure=failed.failure if failed else "",
    )


def options_of(cell: Cell, plan: Plan) -> Options:
    """How a cell's file is opened."""
    return Options(threads=cell.threads, extra=cell.extra, cpus=plan.cpus, memory_limit_bytes=plan.memory_limit_bytes)


def _round(
    cells: Sequence[Cell], inputs: Sequence[np.ndarray], target: Target, plan: Plan, order: random.Random
) -> list[Round]:
    """A round of each cell; their processes are alive together and take turns."""
    if target.counts_instructions:
        return [_count_once(cell, x, target, plan) for cell, x in zip(cells, inputs, strict=True)]
    turns = _TURNS if len(cells) > 1 else 1
    processes = [_Process(cell, x, plan, turns) for cell, x in zip(cells, inputs, strict=True)]
    with contextlib.ExitStack() as alive:
        for process in processes:
            process.start(target, alive)
        for _ in range(turns):
            for process in order.sample(processes, len(processes)):
                process.take_turn()
        return [process.end() for process in processes]


class _Process:
    """The process of a cell in a round; an error ends it, and is its result."""

    def __init__(self, cell: Cell, x: np.ndarray, plan: Plan, turns: int) -> None:
        self._cell, self._x, self._plan, self._turns = cell, x, plan, turns
        self._failed: Round | None = None
        self._worker: Link
        self._load_ms = self._first_run_ms = 0.0
        self._timed: list[dict[str, Any]] = []

    def start(self, target: Target, alive: contextlib.ExitStack) -> None:
        """Load, first run, warm-up."""
        plan = self._plan
        with self._kept():
            self._worker = alive.enter_context(target.worker())
            cell = self._cell
            opened = self._worker.open(cell.path, cell.runtime, options_of(cell, plan), plan.timeout_s)
            warm = self._time(1, 0.0, plan.warmup_runs, plan.warmup_seconds)
            self._load_ms, self._first_run_ms = opened["load_ms"], warm["first_run_ms"]

    def take_turn(self) -> None:
        """Its share of the timed runs, after one that brings its data back into the caches."""
        if self._failed is None:
            with self._kept():
                runs = math.ceil(self._plan.runs / self._turns)
                self._timed.append(self._time(runs, self._plan.seconds / self._turns, 0, 0.0))

    def end(self) -> Round:
        """What it gave."""
        memory = {"peak_bytes": 0, "before_bytes": 0}
        if self._failed is None:
            with self._kept():
                memory = self._worker.memory()
        if self._failed is not None:
            return self._failed
        samples = tuple(ms for turn in self._timed for ms in turn["samples_ms"])
        joules = [turn["energy_j"] for turn in self._timed if turn["energy_j"] is not None]
        return Round(
            load_ms=self._load_ms,
            first_run_ms=self._first_run_ms,
            samples_ms=samples,
            peak_memory_bytes=memory["peak_bytes"] - memory["before_bytes"],
            process_memory_bytes=memory["peak_bytes"],
            # Counters with large units stand still in most turns, and are right on the whole.
            energy_mj=1000 * sum(joules) / len(samples) if joules else None,
            energy=self._timed[-1]["energy"],
            facts=self._timed[-1]["facts"],
        )

    def _time(self, runs: int, seconds: float, warmup_runs: int, warmup_seconds: float) -> dict[str, Any]:
        return self._worker.time(
            self._x, runs=runs, seconds=seconds, warmup_runs=warmup_runs, warmup_seconds=warmup_seconds,
            timeout_s=self._plan.timeout_s,
        )  # fmt: skip

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except ExecutionError as error:
            self._failed = failed_round(error)


def _count_once(cell: Cell, x: np.ndarray, target: Target, plan: Plan) -> Round:
    try:
        with target.worker(counting=True) as worker:
            worker.open(cell.path, cell.runtime, options_of(cell, plan), plan.timeout_s)
            facts, counted = worker.count(x, timeout_s=plan.timeout_s)
    except ExecutionError as error:
        return failed_round(error)
    return Round(facts=facts, instructions=tuple(counted))


def failed_round(error: ExecutionError) -> Round:
    """A round that ended with an error."""
    return Round(error=f"{error.what} ({error.remedy})" if error.remedy else error.what, failure=error.failure)


def files_of(path: Path) -> list[Path]:
    """The files that make up an exported model: the .bin beside an ncnn .param; a bundle folder's program."""
    if path.is_dir():
        return [path / "program.pt2"]
    binary = path.with_suffix(".bin")
    return [path, binary] if path.suffix == ".param" and binary.is_file() else [path]
