"""Goals in latency and grids by the clock: the search with a clock that is known, then a real one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.prune import channels, stopwatch
from edgekit.compress.prune.stopwatch import (
    Cut,
    Stopwatch,
    Trial,
    UnreachedError,
    align,
    doubts,
    finer_from,
    meet,
    meet_on,
    parse_goal,
)
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.errors import StepError, UsageError
from edgekit.runtimes.comparison import Comparison
from edgekit.runtimes.measure import Plan, measure
from edgekit.testing.clocks import Fours, time_in_fours


class Known(Stopwatch):
    """A fixed part of the time, and one that goes with the MACs by a factor for each grid."""

    def __init__(self, fixed: float, factors: dict[int, float]) -> None:
        self.place = "known"
        self.fixed, self.factors = fixed, factors
        self.asked = 0

    def trials(self, asked: Sequence[tuple[float, int]], cut: Cut) -> list[Trial]:
        self.asked += len(asked)
        possible = [(macs, multiple) for macs, multiple in asked if cut(macs, multiple) is not None]
        ratios = [self.fixed + (1 - self.fixed) * macs * self.factors.get(multiple, 1.0) for macs, multiple in possible]
        return [Trial(m, k, r, r, r) for (m, k), r in zip(possible, ratios, strict=True)]


def _can(least: float = 0.0, most: int = 64) -> Cut:
    return lambda macs, multiple: Known if macs >= least and multiple <= most else None  # type: ignore[return-value]


def test_the_finest_of_the_fastest_grids_is_taken() -> None:
    watch = Known(0.0, {1: 1.3, 2: 1.2, 4: 1.005, 8: 1.0, 16: 1.1, 32: 1.0})
    multiple, trials = align(watch, 0.5, _can(most=16))
    assert multiple == 4
    assert [t.multiple for t in trials] == [1, 2, 4, 8, 16]
    with pytest.raises(StepError, match="no grid"):
        align(watch, 0.5, _can(least=0.9))


@pytest.mark.parametrize("fixed", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("goal", [0.5, 0.7])
def test_a_latency_goal_is_met_from_below_and_closely(fixed: float, goal: float) -> None:
    watch = Known(fixed, {})
    macs, trials = meet(watch, goal, 8, _can(least=0.05))
    ratio = fixed + (1 - fixed) * macs
    assert goal - 0.03 <= ratio <= goal
    assert watch.asked <= 4
    assert trials[-1].ratio == pytest.approx(ratio)


def test_a_goal_below_the_fixed_part_is_refused_with_what_was_tried() -> None:
    with pytest.raises(StepError, match=r"0\.30 of the original's was not reached in known"):
        meet(Known(0.5, {}), 0.3, 8, _can(least=0.1))


def test_a_grid_that_does_not_go_so_far_down_gives_way_to_a_finer_one() -> None:
    def cut(macs: float, multiple: int) -> Any:
        return Known if macs >= {16: 0.6, 8: 0.4}.get(multiple, 0.1) else None

    watch = Known(0.0, {16: 0.8})
    assert finer_from(16) == (16, 8, 4, 2, 1)
    multiple, macs, trials, given_up = meet_on(finer_from(16), watch, 0.45, cut)
    assert multiple == 8
    assert list(given_up) == [16]
    assert "was not reached" in given_up[16]
    assert 0.42 <= macs <= 0.45
    assert {trial.multiple for trial in trials} == {8}
    multiple, *_, given_up = meet_on(finer_from(16), watch, 0.5, cut)
    assert (multiple, given_up) == (16, {})
    with pytest.raises(StepError, match=r"0\.05 of the original's was not reached"):
        meet_on(finer_from(16), watch, 0.05, cut)


@pytest.mark.parametrize(
    "text",
    [
        "0.5",
        "0.5@",
        "@onnx",
        "2@onnx",
        "fast@onnx",
        "0.5@nothing",
        "0.5@onnx@nowhere",
        "0.5@onnx@local:here",
        "0.5@onnx@ssh",
    ],
)
def test_goals_that_make_no_sense_are_refused(text: str, before: Bundle) -> None:
    with pytest.raises(UsageError):
        compress(before, f"prune-channels:latency={text},epochs=0")
    assert parse_goal("0.5x@tflite") == (0.5, "tflite")


def test_an_emulator_is_no_clock(before: Bundle) -> None:
    for step in (
        "prune-channels:latency=0.5@onnx@emulated:cortex-a72",
        "prune-channels:macs=0.5,align=onnx@emulated:cortex-a72",
        "factorize:latency=0.5@onnx@emulated:cortex-a72",
        "student:latency=0.5@onnx@emulated:cortex-a72",
        "rewrite:pays=onnx@emulated:cortex-a72",
    ):
        with pytest.raises(UsageError, match=r"emulated:cortex-a72 is an emulator, whose time is no latency"):
            compress(before, step)
    assert parse_goal("0.5@tflite@ssh:pi@board:22") == (0.5, "tflite@ssh:pi@board:22")
    assert Stopwatch(before, "tflite@ssh:pi@board:22").place == "tflite on ssh:pi@board:22"


def test_the_real_clock_decides_and_the_report_tells(before: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "MULTIPLES", (1, 4))
    small = compress(before, "prune-channels:macs=0.5,align=onnx,epochs=0")
    found = small.steps[-1]["report"]["stopwatch"]
    assert found["settled"]["multiple"] in (1, 4)
    assert [grid["multiple"] for grid in found["grids"]] == [1, 4]
    assert all(grid["low"] <= grid["ratio"] <= grid["high"] for grid in found["grids"])
    assert cost_of(small.module()).macs <= 0.5 * cost_of(before.module()).macs


@pytest.mark.parametrize("ranked", ["l2", "energy,rounds=5,between=0", "fisher,images=64,rounds=3,between=0"])
def test_a_goal_in_latency_is_cut_to_on_the_grid_that_was_chosen(
    ranked: str, before: Bundle, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed is what comes out, in rounds too."""
    monkeypatch.setattr(channels, "Stopwatch", Fours)
    step = f"prune-channels:latency=0.6@onnx,align=onnx,reconstruct=0,epochs=0,importance={ranked}"
    small = compress(before, step, data)
    found = small.steps[-1]["report"]["stopwatch"]
    assert found["settled"]["multiple"] % 4 == 0
    reached = time_in_fours(small) / time_in_fours(before)
    assert reached <= 0.6
    assert max(trial["ratio"] for trial in found["trials"] if trial["ratio"] <= 0.6) == reached


def test_a_grid_that_was_given_up_is_told(before: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(watch: Stopwatch, goal: float, multiple: int, cut: Cut) -> tuple[float, list[Trial]]:
        if multiple == 4:
            raise UnreachedError("a latency of 0.60 of the original's was not reached")
        return 0.5, []

    monkeypatch.setattr(channels, "Stopwatch", Fours)
    monkeypatch.setattr(stopwatch, "meet", narrow)
    report = compress(before, "prune-channels:latency=0.6@onnx,align=onnx,epochs=0").steps[-1]["report"]
    assert report["stopwatch"]["settled"]["multiple"] == 2
    assert [note for note in report["notes"] if "grid of 4 was given up" in note]


def test_a_runtime_that_can_not_be_timed_is_no_reason_for_a_finer_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise StepError("known could not be timed: it crashed")

    watch = Known(0.0, {})
    monkeypatch.setattr(watch, "trials", broken)
    with pytest.raises(StepError, match="could not be timed"):
        meet_on((16, 8), watch, 0.5, _can())


class Disturbed(Fours):
    """Tells its ratios as a busy machine would: within 20 %."""

    def ratios(self, bundles: Iterable[Bundle]) -> list[Comparison]:
        return [replace(one, low=0.8 * one.ratio, high=1.2 * one.ratio) for one in super().ratios(bundles)]


def test_what_is_compared_takes_turns_until_it_is_known(before: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def watched(cells: Sequence[Any], inputs: Sequence[Any], target: Any, plan: Plan, *rest: Any, **more: Any) -> Any:
        asked.update(more, plan=plan, cells=len(cells))
        return measure(cells, inputs, target, replace(plan, within=None), *rest, **more)

    monkeypatch.setattr(stopwatch, "measure", watched)
    found = Stopwatch(before, "onnx").ratios([before, before])
    assert asked["pairs"] == [(1, 0), (2, 0)]
    assert asked["plan"].within == 0.04
    assert asked["plan"].most_rounds > asked["plan"].rounds
    assert all(0.5 < one.ratio < 2 for one in found)


def test_a_choice_that_the_clock_leaves_uncertain_is_told(before: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doubts("onnx", []) == doubts("onnx", [{"low": 0.97, "high": 1.03}]) == []
    (said,) = doubts("tflite", [{"low": 0.97, "high": 1.03}, {"low": 0.3, "high": 0.5}])
    assert "clock in tflite" in said
    assert "known within 25%" in said
    step = "prune-channels:latency=0.6@onnx,epochs=0"
    for clock, told in ((Fours, False), (Disturbed, True)):
        monkeypatch.setattr(channels, "Stopwatch", clock)
        report = compress(before, step).steps[-1]["report"]
        assert any("prune-channels: the clock in onnxruntime" in note for note in report.get("notes", ())) == told
