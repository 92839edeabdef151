"""What a worker does to its own process: CPUs, a memory limit, the order in which the kernel kills."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ExecutionError, WorkerMemoryError
from edgekit.runtimes.measure import Cell, Plan, measure
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets.local import LocalTarget
from edgekit.testing.fakes import RUNTIME, write_fake

X = np.zeros((1, 4), np.float32)
MIB = 1 << 20


def test_a_process_stays_on_its_cpus(tmp_path: Path) -> None:
    path = write_fake(tmp_path / "a.fake")
    last = max(os.sched_getaffinity(0))
    with LocalTarget().worker() as worker:
        worker.open(path, RUNTIME, Options(cpus=(last,)))
        assert os.sched_getaffinity(worker._process.pid) == {last}
    with LocalTarget().worker() as worker, pytest.raises(ExecutionError, match=r"may use the CPUs .*, not 4095"):
        worker.open(path, RUNTIME, Options(cpus=(4095,)))


def test_a_memory_limit_is_met_by_what_needs_more_and_by_nothing_else(tmp_path: Path) -> None:
    path = write_fake(tmp_path / "a.fake", allocate_bytes=64 * MIB)
    with LocalTarget().worker() as worker:
        worker.open(path, RUNTIME, Options(memory_limit_bytes=80 * MIB))
        assert worker.run(X)[0].shape == (1, 1)
    with (
        LocalTarget().worker() as worker,
        pytest.raises(WorkerMemoryError, match=r"a\.fake found no memory under a memory limit of 48 MiB") as caught,
    ):
        worker.open(path, RUNTIME, Options(memory_limit_bytes=48 * MIB))
    assert "Raise the limit" in caught.value.remedy


def test_the_kernel_shall_end_a_worker_first() -> None:
    with LocalTarget().worker() as worker:
        worker.sensors()
        assert Path(f"/proc/{worker._process.pid}/oom_score_adj").read_text().strip() == "1000"


def test_a_crash_a_hang_and_a_lack_of_memory_are_cells_and_the_matrix_goes_on(tmp_path: Path) -> None:
    files = {
        "crash": write_fake(tmp_path / "crash.fake", crash="invoke"),
        "timeout": write_fake(tmp_path / "hang.fake", hang="invoke"),
        "memory": write_fake(tmp_path / "large.fake", allocate_bytes=400 * MIB),
        "refused": tmp_path / "broken.fake",
        "": write_fake(tmp_path / "fine.fake"),
    }
    files["refused"].write_text("nothing")
    cells = [Cell(label=path.stem, path=path, runtime=RUNTIME) for path in files.values()]
    plan = Plan(
        rounds=3, runs=3, seconds=0.0, warmup_runs=1, warmup_seconds=0.0, timeout_s=1.0, memory_limit_bytes=100 * MIB
    )
    found = measure(cells, [X] * len(cells), LocalTarget(), plan)
    assert [one.failure for one in found] == list(files)
    assert all(one.error for one in found[:-1])
    assert len(found[-1].rounds_ms) == 3
    assert found[0].to_dict()["failure"] == "crash"
