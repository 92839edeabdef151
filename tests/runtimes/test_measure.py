"""Measuring and comparing, on the fake runtime and on simulated samples."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.runtimes import comparison
from edgekit.runtimes import measure as measuring
from edgekit.runtimes.comparison import _expanded_tail, compare, half_width, interval
from edgekit.runtimes.measure import Cell, Measurement, Plan, measure
from edgekit.runtimes.targets.link import Link
from edgekit.runtimes.targets.local import LocalTarget
from edgekit.testing.fakes import RUNTIME, write_fake

X = np.zeros((1, 4), np.float32)
QUICK = Plan(rounds=3, runs=20, seconds=0.0, warmup_runs=1, warmup_seconds=0.0)


def _cell(path: Path) -> Cell:
    return Cell(label=path.stem, path=path, runtime=RUNTIME)


def test_latency_ratio_and_verdict_of_known_latencies(tmp_path: Path) -> None:
    # Far shorter than the slices of the scheduler, so that other work interrupts few of the runs; and as it can only add to the
    # times, of three measurements the least disturbed is held to what is known.
    cells = [_cell(write_fake(tmp_path / f"{ms}.fake", latency_ms=ms)) for ms in (0.8, 0.4)]
    attempts = [measure(cells, [X, X], LocalTarget(), QUICK) for _ in range(3)]
    assert all(slow.percentile(50) > 0.79 and fast.percentile(50) > 0.39 for slow, fast in attempts)
    slow, fast = min(attempts, key=lambda pair: sum(one.percentile(50) for one in pair))
    assert slow.percentile(50) == pytest.approx(0.8, rel=0.2)
    assert fast.percentile(50) == pytest.approx(0.4, rel=0.2)
    assert len(fast.samples_ms) == 3 * 20
    found = compare(fast, slow)
    assert found.verdict == "faster"
    assert found.low <= found.ratio <= found.high < 1
    assert found.ratio == pytest.approx(0.5, rel=0.2)
    assert compare(slow, fast).verdict == "slower"


def test_a_cell_that_fails_is_a_result_and_the_others_are_measured(tmp_path: Path) -> None:
    crash = write_fake(tmp_path / "crash.fake", crash="invoke")
    good = write_fake(tmp_path / "good.fake", latency_ms=0.1)
    broken, fine = measure([_cell(crash), _cell(good)], [X, X], LocalTarget(), QUICK)
    assert "SIGSEGV" in broken.error
    assert broken.rounds_ms == ()
    assert not fine.error
    assert len(fine.rounds_ms) == 3


def test_load_first_run_and_memory_stand_apart(tmp_path: Path) -> None:
    (found,) = measure([_cell(write_fake(tmp_path / "a.fake", allocate_bytes=64 << 20))], [X], LocalTarget(), QUICK)
    assert len(found.load_ms) == len(found.first_run_ms) == 3
    assert found.peak_memory_bytes is not None
    assert 60 << 20 < found.peak_memory_bytes < 100 << 20
    assert found.size_bytes == (tmp_path / "a.fake").stat().st_size
    raw = found.to_dict()["raw"]["rounds_ms"]
    assert [len(one) for one in raw] == [20, 20, 20]


def _rounds(rng: np.random.Generator, machine: np.ndarray, factor: float) -> list[list[float]]:
    """Samples with the machine's state shared in a round, a state of each process, and jitter of each run."""
    return [list(factor * m * np.exp(rng.normal(0, 0.03)) * np.exp(rng.normal(0, 0.05, 40))) for m in machine]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(40):
        machine = np.exp(rng.normal(0, 0.1, 8))
        low, high = interval(_rounds(rng, machine, 0.9), _rounds(rng, machine, 1.0), seed)
        hits += low <= 0.9 <= high
    # 95 % of 40 is 38; 34 would be 2.9 standard errors below.
    assert hits >= 35


def test_few_rounds_are_given_their_wider_interval() -> None:
    # Tables of Student's t: 2.365 for 7 degrees, 4.303 for 2; of the normal distribution: Φ(−2.528) and Φ(−5.270).
    assert _expanded_tail(8) == pytest.approx(0.00574, abs=5e-5)
    assert _expanded_tail(3) == pytest.approx(6.8e-8, rel=0.02)
    assert _expanded_tail(10_000) == pytest.approx(0.025, rel=1e-3)


def test_the_same_file_twice_is_no_difference() -> None:
    rng = np.random.default_rng(1)
    machine = np.exp(rng.normal(0, 0.1, 8))
    cell = Cell(label="a", path=Path("a"), runtime="x")
    a, b = (
        Measurement(cell=cell, size_bytes=1, sha256="", rounds_ms=tuple(map(tuple, _rounds(rng, machine, 1.0))))
        for _ in range(2)
    )
    assert compare(a, b).verdict == "no difference"


def test_too_few_rounds_give_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        Plan(rounds=2)
    with pytest.raises(ValueError, match="at least 3"):
        interval([[1.0]] * 2, [[1.0]] * 2)


def _simulated(monkeypatch: pytest.MonkeyPatch, spread: dict[str, float]) -> list[str]:
    """Rounds that differ from process to process by so much, for each cell; the cells in the order in which they were run."""
    rng, run = np.random.default_rng(0), []

    def once(cells: list[Cell], *rest: object) -> list[measuring.Round]:
        run.extend(cell.label for cell in cells)
        machines = [np.exp(rng.normal(0, spread[cell.label], 1)) for cell in cells]
        return [measuring.Round(samples_ms=tuple(_rounds(rng, machine, 1.0)[0])) for machine in machines]

    monkeypatch.setattr(measuring, "_round", once)
    return run


def test_rounds_go_on_until_the_ratios_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _simulated(monkeypatch, {"base": 0.0, "steady": 0.0, "noisy": 0.1})
    cells = [_cell(write_fake(tmp_path / f"{name}.fake")) for name in ("base", "steady", "noisy")]
    plan = Plan(rounds=5, within=0.06, most_rounds=100)
    base, steady, noisy = measure(cells, [X] * 3, LocalTarget(), plan, pairs=[(1, 0), (2, 0)])
    # What is known already takes no more time.
    assert len(steady.rounds_ms) == run.count("steady") < len(noisy.rounds_ms) == len(base.rounds_ms) < 100
    for found in (steady, noisy):
        judged = compare(found, base)
        assert half_width(judged.low, judged.high) <= 0.06
    # And the fewest rounds that serve: a quarter less do not.
    some = len(noisy.rounds_ms) * 3 // 4
    assert half_width(*interval(noisy.rounds_ms[:some], base.rounds_ms[:some])) > 0.06


class _Watched(LocalTarget):
    """Notes how many workers are alive when one starts."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.seen = 0, []

    @contextlib.contextmanager
    def worker(self, *, counting: bool = False) -> Iterator[Link]:
        self.alive += 1
        self.seen.append(self.alive)
        with super().worker(counting=counting) as link:
            yield link
        self.alive -= 1


def test_what_is_compared_takes_turns_and_the_rest_is_alone(tmp_path: Path) -> None:
    cells = [_cell(write_fake(tmp_path / f"{name}.fake")) for name in "abc"]
    target = _Watched()
    found = measure(cells, [X] * 3, target, QUICK, pairs=[(2, 0)])
    # In each of three rounds a pair, and one by itself.
    assert sorted(target.seen) == [1] * 6 + [2] * 3
    assert [[len(one) for one in each.rounds_ms] for each in found] == [[20] * 3] * 3
    alone = _Watched()
    measure(cells, [X] * 3, alone, QUICK)
    assert alone.seen == [1] * 9


def test_few_processes_are_alive_at_once(tmp_path: Path) -> None:
    cells = [_cell(write_fake(tmp_path / f"{name}.fake")) for name in "abcdef"]
    target = _Watched()
    found = measure(cells, [X] * 6, target, QUICK, pairs=[(place, 0) for place in range(1, 6)])
    assert max(target.seen) == 4
    assert all(len(one.rounds_ms) == 3 for one in found)


def test_a_crash_between_turns_ends_its_own_cell(tmp_path: Path) -> None:
    good, bad = (
        _cell(write_fake(tmp_path / f"{name}.fake", **settings))
        for name, settings in (("good", {}), ("bad", {"crash": "invoke"}))
    )
    fine, broken = measure([good, bad], [X] * 2, LocalTarget(), QUICK, pairs=[(1, 0)])
    assert [len(one) for one in fine.rounds_ms] == [20] * 3
    assert (broken.failure, broken.rounds_ms) == ("crash", ())


def test_going_on_by_the_width_leaves_the_interval_its_coverage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _simulated(monkeypatch, {"base": 0.03, "same": 0.03})
    monkeypatch.setattr(
        comparison, "_RESAMPLES", 500
    )  # the ends are a little rougher, and it takes a quarter of the time
    cells = [_cell(write_fake(tmp_path / f"{name}.fake")) for name in ("base", "same")]
    plan = Plan(rounds=8, within=0.03)
    held, rounds = 0, []
    for seed in range(30):
        base, same = measure(cells, [X] * 2, LocalTarget(), replace(plan, seed=seed), pairs=[(1, 0)])
        found = compare(same, base, seed)
        held += found.low <= 1 <= found.high
        rounds.append(len(base.rounds_ms))
    assert max(rounds) > 8, "some went on"
    # 95 % of 30 is 28.5; 25 is 2.9 standard errors below.
    assert held >= 25


def test_rounds_end_where_they_were_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _simulated(monkeypatch, {"base": 0.2, "noisy": 0.2})
    cells = [_cell(write_fake(tmp_path / f"{name}.fake")) for name in ("base", "noisy")]
    found = measure(cells, [X] * 2, LocalTarget(), Plan(rounds=3, within=0.001, most_rounds=7), pairs=[(1, 0)])
    assert [len(one.rounds_ms) for one in found] == [7, 7]


def test_a_failed_cell_is_not_waited_for(tmp_path: Path) -> None:
    cells = [_cell(write_fake(tmp_path / "a.fake")), _cell(write_fake(tmp_path / "b.fake", crash="invoke"))]
    plan = Plan(rounds=3, within=1e-6, runs=5, seconds=0.0, warmup_runs=1, warmup_seconds=0.0)
    fine, broken = measure(cells, [X] * 2, LocalTarget(), plan, pairs=[(1, 0)])
    assert len(fine.rounds_ms) == 3
    assert broken.failure == "crash"


def test_a_killed_command_leaves_no_worker_behind(tmp_path: Path) -> None:
    path = write_fake(tmp_path / "hang.fake", hang="invoke")
    program = (
        "import numpy as np, sys\n"
        "from pathlib import Path\n"
        "from edgekit.runtimes.runtime import Options\n"
        "from edgekit.runtimes.targets.local import LocalTarget\n"
        "from edgekit.testing.fakes import RUNTIME\n"
        "with LocalTarget().worker() as worker:\n"
        "    worker.open(Path(sys.argv[1]), RUNTIME, Options())\n"
        "    print(worker._process.pid, flush=True)\n"
        "    worker.run(np.zeros((1, 4), np.float32))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        # Gone, or a zombie that its new parent has not collected yet.
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"the worker {pid} outlived its command")
