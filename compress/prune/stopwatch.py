"""Cutting by the stopwatch: widths that the runtime likes, and a goal in measured latency.

Runtimes have fast kernels for widths on a grid, and which grid is theirs to know: what is cut is exported, run in the
real runtime beside the original, on this machine or on the target itself, and the ratio decides. Weights don't matter for
time, so nothing is refitted or trained for a trial.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import StepError, UsageError
from edgekit.export.exporter import Exporter, exporter_for
from edgekit.runtimes.comparison import Comparison, compare, half_width
from edgekit.runtimes.measure import Cell, Plan, measure
from edgekit.runtimes.targets.target import target_for, target_kind

MULTIPLES = (1, 2, 4, 8, 16, 32)
"""The grids of channels that are tried."""

# A grid is as good as the fastest if it is slower by no more than this share: the finer one then loses less accuracy.
_AS_GOOD = 0.01
# A latency goal is met from below, this close; after so many trials the best is taken.
_CLOSE, _TRIALS = 0.03, 7
# Rounds go on until each ratio is known so well, on a quiet machine soon; on a busy one there is an end to it.
_WITHIN = 0.04
_PLAN = Plan(rounds=5, seconds=0.3, within=_WITHIN, most_rounds=16)


class UnreachedError(StepError):
    """No cut on a grid meets a goal in latency."""


@dataclass(frozen=True)
class Trial:
    """One way to cut, measured.

    Attributes:
        macs: The share of MACs that was aimed at.
        multiple: The grid of channels.
        ratio: Median latency over the original's.
        low: Lower end of its interval.
        high: Upper end.
    """

    macs: float
    multiple: int
    ratio: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


Cut = Callable[[float, int], Bundle | None]
"""From a share of MACs and a grid to the network cut so; None where that can't be done."""


def parse_goal(text: str) -> tuple[float, str]:
    """``0.5@tflite`` or ``0.5@tflite@ssh:pi@board`` as the share and where it is measured, for :func:`clock_of`.

    Raises:
        ValueError: If it is something else.
    """
    share, at, where = text.partition("@")
    try:
        value = float(share.rstrip("x"))
    except ValueError:
        value = 0.0
    if not at or not where or not 0 < value < 1:
        raise ValueError(f"a latency goal is a share and a format, such as latency=0.5@tflite, not {text!r}")
    return value, where


def clock_of(where: str) -> tuple[Exporter, str]:
    """Whose runtime is timed, and on which target: ``tflite`` here, ``tflite@ssh:pi@board`` there.

    Raises:
        UsageError: If there is no such format or target, or the target's time is no latency.
    """
    format, _, name = where.partition("@")
    exporter, target = exporter_for(format), name or "local"
    if not target_kind(target.partition(":")[0]).times_are_real:
        raise UsageError(
            f"{target} is an emulator, whose time is no latency",
            "Name a machine that has a clock (ssh:USER@HOST, adb:SERIAL), or leave the target out to measure here.",
        )
    target_for(target)
    return exporter, target


class Stopwatch:
    """Measures networks against an original in the runtime of a format.

    Args:
        original: What to compare with.
        where: The format, whose runtime is the one that is timed, with one thread; and the target (:func:`clock_of`).
        plan: How long to measure.
        progress: Told what is going on.
    """

    def __init__(
        self,
        original: Bundle,
        where: str,
        *,
        plan: Plan | None = None,
        progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    ) -> None:
        self.exporter, self.target = clock_of(where)
        self.place = _told(self.exporter, self.target)
        self._original = original
        self._plan = plan or _PLAN
        self._progress = progress

    def trials(self, asked: Sequence[tuple[float, int]], cut: Cut) -> list[Trial]:
        """Measures ways to cut, interleaved with the original, and returns those that could be."""
        done: list[tuple[float, int]] = []

        def made() -> Iterator[Bundle]:
            for macs, multiple in asked:
                if (bundle := cut(macs, multiple)) is not None:
                    done.append((macs, multiple))
                    yield bundle

        compared = self.ratios(made())
        return [Trial(m, k, c.ratio, c.low, c.high) for (m, k), c in zip(done, compared, strict=True)]

    def ratios(self, bundles: Iterable[Bundle]) -> list[Comparison]:
        """Measures networks, interleaved with the original; one at a time is in memory."""
        x = np.random.default_rng(0).standard_normal((1, *self._original.input_shape), dtype=np.float32)
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder, target_for(self.target) as target:
            cells = [self._written(self._original, Path(folder) / "original")]
            for number, bundle in enumerate(bundles):
                self._progress(0, 1, f"writing a trial for {self.place}: {number + 1}")
                cells.append(self._written(bundle, Path(folder) / f"trial-{number}"))
            pairs = [(number, 0) for number in range(1, len(cells))]
            found = measure(cells, [x] * len(cells), target, self._plan, self._progress, pairs=pairs)
        for measurement in found:
            if measurement.error:
                raise StepError(f"{self.place} could not be timed: {measurement.error}")
        return [compare(measurement, found[0]) for measurement in found[1:]]

    def _written(self, bundle: Bundle, folder: Path) -> Cell:
        folder.mkdir()
        path = folder / f"model{self.exporter.suffix}"
        lowered = self.exporter.lower(bundle, bundle.precision)
        metadata = {"input_layout": self.exporter.input_layout, "input_shape": list(bundle.input_shape)}
        self.exporter.write(lowered, path, metadata)
        return Cell(label=folder.name, path=path, runtime=self.exporter.runtime)


def _told(exporter: Exporter, target: str) -> str:
    return exporter.runtime + ("" if target == "local" else f" on {target}")


def doubts(where: str, measured: Iterable[Mapping[str, Any]]) -> list[str]:
    """What to say of a choice by the clock whose ratios the machine's other work has left uncertain.

    Args:
        where: Where it was measured (:func:`clock_of`).
        measured: Each with the ends ``low`` and ``high`` of a ratio's interval.

    Returns:
        One sentence, or nothing where all are known as well as they should be.
    """
    widest = max((half_width(one["low"], one["high"]) for one in measured), default=0.0)
    if widest <= _WITHIN:
        return []
    return [
        f"the clock in {_told(*clock_of(where))} was disturbed: after {_PLAN.most_rounds} rounds a ratio is known within "
        f"{widest:.0%}, not within {_WITHIN:.0%}; on a quieter machine the choice may be another"
    ]


def align(stopwatch: Stopwatch, macs: float, cut: Cut) -> tuple[int, list[Trial]]:
    """The grid of channels on which the runtime is fastest at a share of MACs; the finest of those as good.

    Raises:
        StepError: If no grid meets the goal.
    """
    trials = stopwatch.trials([(macs, multiple) for multiple in MULTIPLES], cut)
    if not trials:
        raise StepError(f"no grid of channels meets the goal of {macs:.1%}", "Ask for less.")
    fastest = min(trial.ratio for trial in trials)
    return next(t.multiple for t in trials if t.ratio <= fastest * (1 + _AS_GOOD)), trials


class Aim:
    """The search for the largest share of MACs whose measured latency meets a goal, one trial after the other.

    Args:
        goal: The share of the original's latency to meet.
        most: How many trials there may be.

    Attributes:
        share: The share of MACs to try next.
        trials: What was tried.
        done: Whether that is enough.
    """

    def __init__(self, goal: float, most: int = _TRIALS) -> None:
        self.share = goal
        self.trials: list[Trial] = []
        self.done = False
        self._goal, self._left = goal, most
        self._low, self._high = 0.0, 1.0

    def told(self, trial: Trial | None) -> None:
        """Takes what the share gave; None where it can't be cut so far."""
        goal = self._goal
        self._left -= 1
        if trial is None:
            self._low = max(self._low, self.share)
            self.share = (self._low + self._high) / 2
        else:
            self.trials.append(trial)
            if trial.ratio <= goal:
                self._low = max(self._low, self.share)
            else:
                self._high = min(self._high, self.share)
            # Latency is a fixed part and one that goes with the MACs: aim between, by the line through this trial and the
            # original.
            slope = (1 - trial.ratio) / max(1 - self.share, 1e-6)
            aimed = 1 - (1 - goal + _CLOSE / 2) / slope if slope > 0 else 0.0
            self.share = aimed if self._low < aimed < self._high else (self._low + self._high) / 2
        close = trial is not None and goal - _CLOSE <= trial.ratio <= goal
        self.done = close or not self._left

    def best(self) -> Trial | None:
        """The trial that meets the goal with the most MACs; None if none does."""
        met = [trial for trial in self.trials if trial.ratio <= self._goal]
        return max(met, key=lambda trial: trial.macs) if met else None


def meet(stopwatch: Stopwatch, goal: float, multiple: int, cut: Cut) -> tuple[float, list[Trial]]:
    """The largest share of MACs, as far as a few trials tell, whose measured latency meets the goal.

    Raises:
        UnreachedError: If no trial meets it.
        StepError: If the runtime could not be timed.
    """
    aim = Aim(goal)
    while not aim.done:
        found = stopwatch.trials([(aim.share, multiple)], cut)
        aim.told(found[0] if found else None)
    trials = aim.trials
    best = aim.best()
    if best is None:
        tried = ", ".join(f"{t.macs:.0%} of the MACs: {t.ratio:.2f}" for t in trials)
        raise UnreachedError(
            f"a latency of {goal:.2f} of the original's was not reached in {stopwatch.place} ({tried or 'no cut'})",
            "Ask for less, lower the floor, or another runtime.",
        )
    return best.macs, trials


def finer_from(multiple: int) -> tuple[int, ...]:
    """A grid and those that are finer, one after the other."""
    return (multiple, *(finer for finer in reversed(MULTIPLES) if finer < multiple))


def meet_on(
    multiples: Sequence[int], stopwatch: Stopwatch, goal: float, cut: Cut
) -> tuple[int, float, list[Trial], dict[int, str]]:
    """The first of several grids on which a latency is met, what :func:`meet` found there, and why those before were not it.

    A coarse grid may not go so far down: narrow layers can't be cut at all on it.

    Raises:
        UnreachedError: If it is met on none.
        StepError: If the runtime could not be timed.
    """
    given_up: dict[int, str] = {}
    *others, last = multiples
    for multiple in others:
        try:
            return multiple, *meet(stopwatch, goal, multiple, cut), given_up
        except UnreachedError as error:
            given_up[multiple] = error.what
    return last, *meet(stopwatch, goal, last, cut), given_up


def refuse_unknown_clock(where: str) -> None:
    """Refuses what is no format or no target with a clock, at the time that settings are read.

    Raises:
        ValueError: If :func:`clock_of` finds none.
    """
    try:
        clock_of(where)
    except UsageError as error:
        raise ValueError(f"{error.what}. {error.remedy}") from error
