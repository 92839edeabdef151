"""What every target must pass; the fake runtime has the accidents."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import (
    ExecutionError,
    RuntimeUnavailableError,
    WorkerCrashError,
    WorkerMemoryError,
    WorkerTimeoutError,
)
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets.link import Link
from edgekit.runtimes.targets.target import Target
from edgekit.testing.fakes import MISSING, RUNTIME, write_fake

X = np.arange(8, dtype=np.float32).reshape(2, 4)


class TargetConformance:
    """Subclass it and give a fixture ``target``."""

    def test_describes_the_machine(self, target: Target) -> None:
        described = target.describe()
        for key in (
            "target",
            "system",
            "machine",
            "cpu",
            "cpu_flags",
            "cores",
            "governor",
            "clock_khz",
            "load_average",
        ):
            assert key in described
        assert described["target"] == target.name

    def test_runs_a_file(self, target: Target, tmp_path: Path) -> None:
        path = write_fake(tmp_path / "a.fake", scale=2.0, metadata={"labels": ["β"]})
        with target.worker() as worker:
            assert worker.open(path, RUNTIME, Options(threads=3))["facts"]["threads"] == 3
            assert worker.opened["metadata"] == {"labels": ["β"]}
            np.testing.assert_array_equal(worker.run(X)[0], 2 * X.sum(1, keepdims=True))
            assert set(worker.run(X)[1]) == set()

    def test_profiles_a_file(self, target: Target, tmp_path: Path) -> None:
        operators = [
            {"name": "a", "type": "Conv", "inputs": ["x"], "outputs": ["y"], "ms": 0.25},
            {"name": "b", "type": "Relu", "inputs": ["y"], "outputs": ["z"], "ms": 0.5},
        ]
        with target.worker() as worker:
            worker.open(write_fake(tmp_path / "a.fake", operators=operators), RUNTIME, Options())
            facts, profile = worker.profile(X, 3)
        assert facts["library"] == "fake"
        assert [(op.name, op.outputs, op.samples_ms) for op in profile.operators] == [
            ("a", ("y",), (0.25,) * 3),
            ("b", ("z",), (0.5,) * 3),
        ]
        assert profile.whole_ms == (1.5,) * 3

    def test_a_runtime_without_times_of_layers_says_so(self, target: Target, tmp_path: Path) -> None:
        with target.worker() as worker:
            worker.open(write_fake(tmp_path / "a.fake"), RUNTIME, Options())
            with pytest.raises(ExecutionError, match="can't tell the times of its layers"):
                worker.profile(X, 3)

    def test_measures_how_fast_memory_is_copied(self, target: Target) -> None:
        with target.worker() as worker:
            found = worker.bandwidth(1)
        assert found["bytes_per_second"] > 1e7
        assert found["array_bytes"] >= min(4 * found["cache_bytes"], 1 << 20)

    def test_every_worker_is_a_fresh_process(self, target: Target, tmp_path: Path) -> None:
        large = write_fake(tmp_path / "large.fake", allocate_bytes=200 << 20)
        small = write_fake(tmp_path / "small.fake")
        grown = []
        for path in (large, small):
            with target.worker() as worker:
                worker.open(path, RUNTIME, Options())
                worker.run(X)
                memory = worker.memory()
                grown.append(memory["peak_bytes"] - memory["before_bytes"])
        assert grown[0] > 190 << 20
        assert grown[1] < 50 << 20

    def test_a_memory_limit_is_kept_or_refused_and_never_overlooked(self, target: Target, tmp_path: Path) -> None:
        large = write_fake(tmp_path / "large.fake", allocate_bytes=200 << 20)
        with target.worker() as worker, pytest.raises(ExecutionError) as caught:
            worker.open(large, RUNTIME, Options(memory_limit_bytes=100 << 20))
        kept = isinstance(caught.value, WorkerMemoryError)
        assert kept or "memory can't be limited here" in caught.value.what

    def test_tells_its_sensors(self, target: Target) -> None:
        with target.worker() as worker:
            assert {"clock_khz", "temperature_c", "load_average"} <= set(worker.sensors())

    @pytest.mark.parametrize("moment", ["open", "invoke"])
    def test_a_crash_is_an_error_that_names_the_signal(self, target: Target, moment: str, tmp_path: Path) -> None:
        path = write_fake(tmp_path / "crash.fake", crash=moment)

        def open_and_run(worker: Link) -> None:
            worker.open(path, RUNTIME, Options())
            worker.run(X)

        with target.worker() as worker, pytest.raises(WorkerCrashError, match=r"crash\.fake was killed by SIGSEGV"):
            open_and_run(worker)

    def test_an_exit_is_an_error_with_its_code_and_last_words(self, target: Target, tmp_path: Path) -> None:
        path = write_fake(tmp_path / "exit.fake", exit="open")
        words = r"exit\.fake ended with exit code 3; its last words: the board is on fire"
        with target.worker() as worker, pytest.raises(WorkerCrashError, match=words):
            worker.open(path, RUNTIME, Options())

    def test_a_killed_worker_is_an_error_and_the_next_one_works(self, target: Target, tmp_path: Path) -> None:
        killed, fine = (
            write_fake(tmp_path / "killed.fake", killed="invoke"),
            write_fake(tmp_path / "fine.fake"),
        )
        with target.worker() as worker:
            worker.open(killed, RUNTIME, Options())
            with pytest.raises(WorkerCrashError, match=r"killed\.fake was killed by SIGKILL") as caught:
                worker.run(X)
        assert "memory" in caught.value.remedy
        with target.worker() as worker:
            worker.open(fine, RUNTIME, Options())
            np.testing.assert_array_equal(worker.run(X)[0], X.sum(1, keepdims=True))

    def test_100_mb_go_there_and_come_back_whole(self, target: Target, tmp_path: Path) -> None:
        binary = np.random.default_rng(0).bytes(100_000_000)
        (tmp_path / "large.bin").write_bytes(binary)
        path = write_fake(
            tmp_path / "large.fake", shape=[25_000_000], echo=True, binary_sha256=hashlib.sha256(binary).hexdigest()
        )
        x = np.frombuffer(binary, np.uint32).astype(np.float32)[None]
        with target.worker() as worker:
            worker.open(path, RUNTIME, Options())
            assert np.array_equal(worker.run(x)[0], x)

    def test_a_hang_is_an_error_in_time(self, target: Target, tmp_path: Path) -> None:
        path = write_fake(tmp_path / "hang.fake", hang="invoke")
        with target.worker() as worker:
            worker.open(path, RUNTIME, Options())
            with pytest.raises(WorkerTimeoutError, match=r"gave no answer in 0\.5 s"):
                worker.run(X, timeout_s=0.5)

    def test_what_native_code_prints_does_not_disturb(self, target: Target, tmp_path: Path) -> None:
        path = write_fake(tmp_path / "chatty.fake", prints='{"error": "failed"}')
        with target.worker() as worker:
            worker.open(path, RUNTIME, Options())
            assert worker.run(X)[0].shape == (2, 1)

    def test_an_unknown_runtime_is_an_error(self, target: Target, tmp_path: Path) -> None:
        path = write_fake(tmp_path / "a.fake")
        with target.worker() as worker, pytest.raises(ExecutionError, match="no runtime is called 'nope'"):
            worker.open(path, "nope", Options())

    def test_a_missing_library_is_told_with_its_remedy(self, target: Target, tmp_path: Path) -> None:
        path = write_fake(tmp_path / "a.fake")
        with target.worker() as worker, pytest.raises(RuntimeUnavailableError, match="no_such_library") as caught:
            worker.open(path, MISSING, Options())
        assert caught.value.remedy == "pip install no-such-library"
