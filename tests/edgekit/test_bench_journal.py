"""A bench that was cut off goes on, and only the same one does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgekit.benchmark.run as run_module
from edgekit.benchmark.journal import FolderJournal
from edgekit.benchmark.run import bench
from edgekit.errors import UsageError
from edgekit.export.run import export
from edgekit.runtimes import measure as measure_module
from edgekit.runtimes.accuracy import evaluate_file
from edgekit.runtimes.measure import Cell, Plan, Round
from edgekit.runtimes.targets.link import Link
from edgekit.runtimes.targets.local import LocalTarget
from edgekit.sources.load import load

QUICK = Plan(rounds=3, runs=3, seconds=0.0, warmup_runs=1, warmup_seconds=0.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    return [one.path for one in export(load("zoo:digits-cnn"), ["onnx", "ncnn"], output=folder, data="digits")]


def test_a_matrix_that_was_cut_off_goes_on(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "bench.json"
    real = measure_module._round
    measured: list[str] = []

    def cut_off_after_two(*arguments: object) -> list[Round]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append("")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(measure_module, "_round", cut_off_after_two)
    with pytest.raises(KeyboardInterrupt):
        bench(files, plan=QUICK, output=output)
    assert not output.exists()
    partial = tmp_path / "bench.json.partial"
    kept = [json.loads(line) for line in (partial / "rounds.jsonl").read_text().splitlines() if line]
    assert len(kept) == 4
    # A kill in the midst of a line loses that line alone.
    with (partial / "rounds.jsonl").open("a") as stream:
        stream.write('\n{"cell": 0, "numb')

    again: list[str] = []

    def counted(cells: list[Cell], *arguments: object) -> list[Round]:
        again.extend(cell.label for cell in cells)
        return real(cells, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(measure_module, "_round", counted)
    found = bench(files, plan=QUICK, output=output)
    assert len(again) == 2 * 3 - 4
    assert not partial.exists()
    written = json.loads(output.read_text())
    assert written["schema"] == 1
    for index, row in enumerate(found.rows):
        assert row.measurement.rounds_ms
        # Three rounds of five turns.
        assert written["rows"][index]["runs"] == 15
        # What was measured before stands in the result to the bit.
        before = {tuple(one["round"]["samples_ms"]) for one in kept if one["cell"] == index}
        assert before <= set(row.measurement.rounds_ms)


def test_another_measurement_does_not_go_on(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "measure", cut_off)
    with pytest.raises(KeyboardInterrupt):
        bench(files, plan=QUICK, output=tmp_path / "bench.json")
    with pytest.raises(UsageError, match="another one: plan differ"):
        bench(files, plan=Plan(rounds=4), output=tmp_path / "bench.json")
    with pytest.raises(UsageError, match="files differ"):
        bench(files[:1], plan=QUICK, output=tmp_path / "bench.json")


def test_a_lost_target_is_tried_again_and_a_crash_is_not(tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path / "j", {"a": 1})
    journal.keep(0, 0, Round(error="boom", failure="crash"))
    journal.keep(1, 2, Round(samples_ms=(1.0, 2.0), facts={"library": "x"}, instructions=({"memory": 3},)))
    again = FolderJournal(tmp_path / "j", {"a": 1})
    assert again.rounds == 2
    assert again.round(0, 0) == Round(error="boom", failure="crash")
    assert again.round(1, 2) == Round(samples_ms=(1.0, 2.0), facts={"library": "x"}, instructions=({"memory": 3},))
    assert again.round(1, 0) is None
    (tmp_path / "j" / "bench.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        FolderJournal(tmp_path / "j", {"a": 1})


def test_a_data_set_goes_on_where_it_was_cut_off(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = edgekit_data()
    whole = evaluate_file(files[0], "onnxruntime", LocalTarget(), data.test, load("zoo:digits-cnn").preprocessing)
    journal = FolderJournal(tmp_path / "j", {})
    real, runs = Link.run, list[int]()

    def twice(self: Link, x: np.ndarray, timeout_s: float = 60.0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(len(x))
        return real(self, x, timeout_s)

    monkeypatch.setattr(Link, "run", twice)
    arguments = (files[0], "onnxruntime", LocalTarget(), data.test, load("zoo:digits-cnn").preprocessing)
    with pytest.raises(KeyboardInterrupt):
        evaluate_file(*arguments, kept=journal.chunks("outputs"))
    runs.clear()
    found = evaluate_file(*arguments, kept=journal.chunks("outputs"))
    assert sum(runs) == len(data.test) - 2 * LocalTarget.batch_size
    np.testing.assert_array_equal(found.logits, whole.logits)


def edgekit_data():  # type: ignore[no-untyped-def]
    from edgekit.data.references import load_data

    return load_data("digits")
