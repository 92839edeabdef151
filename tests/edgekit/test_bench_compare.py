"""Two written results against each other: matched, judged, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.benchmark.compare import Limits, compare_results, read_result
from edgekit.errors import DataError, UsageError


def _row(label: str, factor: float, seed: int, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    rounds = [list(factor * np.exp(rng.normal(0, 0.01)) * np.exp(rng.normal(0, 0.02, 50))) for _ in range(8)]
    return {
        "label": label, "runtime": "onnxruntime", "settings": {}, "threads": 1, "batch": 1, "size_bytes": 1000, "error": "",
        "sha256": f"{seed}", "p50_ms": float(np.median(np.concatenate(rounds))), "accuracy": {"top1": 90.0},
        "raw": {"rounds_ms": rounds}, **changes,
    }  # fmt: skip


def _write(path: Path, *rows: dict[str, Any], **changes: Any) -> Path:
    target = {"target": "local", "cpu": "a CPU"}
    value = {"schema": 1, "kind": "edgekit bench", "edgekit": "0", "target": target, "data": "d", "warnings": []}
    path.write_text(json.dumps({**value, "rows": rows, **changes}))
    return path


def test_slower_files_fail_and_others_do_not(tmp_path: Path) -> None:
    a = _write(tmp_path / "a.json", _row("old/model.onnx", 1.0, 0), _row("old/model.tflite", 1.0, 1))
    b = _write(
        tmp_path / "b.json",
        _row("new/model.onnx", 1.1, 2, size_bytes=1100, accuracy={"top1": 89.0}),
        _row("new/model.tflite", 1.02, 3),
        _row("new/model.int8.onnx", 1.0, 4),
    )
    found = compare_results(a, b, Limits(slower=0.05, larger=0.05, less_accurate=0.5))
    slower, same = found.pairs
    assert slower.label == "model.onnx", "the bundles' names may differ"
    assert slower.ratio == pytest.approx(1.1, rel=0.02)
    assert slower.low < 1.1 < slower.high
    assert slower.verdict == "slower"
    assert [text.split()[0] for text in slower.failed] == ["takes", "has", "lost"]
    assert slower.accuracy_difference == -1.0
    assert same.failed == ()
    assert len(found.failed) == 3
    assert found.only_after == ("model.int8.onnx in onnxruntime, 1 threads",)
    assert compare_results(a, b).failed == ()
    assert any("two times" in note for note in found.notes)


def test_noise_alone_seldom_fails(tmp_path: Path) -> None:
    fails = 0
    for seed in range(20):
        a = _write(tmp_path / "a.json", _row("m.onnx", 1.0, 100 + seed))
        b = _write(tmp_path / "b.json", _row("m.onnx", 1.0, 200 + seed))
        found = compare_results(a, b, Limits(slower=0.0))
        fails += bool(found.failed)
    # An unpaired 95 % interval lies wholly above 1 once in forty; three of twenty would be 3.6 standard errors.
    assert fails <= 3


def test_the_same_file_tells_how_much_the_machine_changed(tmp_path: Path) -> None:
    a = _write(tmp_path / "a.json", _row("m.onnx", 1.0, 0, sha256="x"))
    b = _write(tmp_path / "b.json", _row("m.onnx", 1.3, 1, sha256="x"))
    found = compare_results(a, b)
    assert found.pairs[0].same_file
    assert any("the machine changed" in note for note in found.notes)


def test_counted_instructions_are_compared_as_counts(tmp_path: Path) -> None:
    def counted(path: str, total: int) -> Path:
        row = _row("m.onnx", 1.0, 0, instructions={"total": total}, instructions_spread=0.0002)
        return _write(tmp_path / path, row)

    found = compare_results(counted("a.json", 1_000_000), counted("b.json", 1_010_000), Limits(slower=0.001))
    assert found.counted
    assert found.pairs[0].verdict == "slower"
    assert found.failed
    assert (
        compare_results(counted("a.json", 1_000_000), counted("c.json", 1_000_100)).pairs[0].verdict == "no difference"
    )


def test_what_can_t_be_compared_is_refused(tmp_path: Path) -> None:
    fine = _write(tmp_path / "a.json", _row("m.onnx", 1.0, 0))
    (tmp_path / "cut.json").write_text(fine.read_text()[:100])
    with pytest.raises(DataError, match="can't be read"):
        read_result(tmp_path / "cut.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="no result of"):
        read_result(tmp_path / "other.json")
    with pytest.raises(DataError, match="schema 99"):
        read_result(_write(tmp_path / "s.json", schema=99))
    with pytest.raises(UsageError, match="does not exist"):
        read_result(tmp_path / "no.json")
    elsewhere = _write(tmp_path / "b.json", _row("m.onnx", 1.0, 0), target={"target": "local", "cpu": "another CPU"})
    with pytest.raises(UsageError, match="cpu a CPU"):
        compare_results(fine, elsewhere)
    with pytest.raises(UsageError, match="no row in common"):
        compare_results(fine, _write(tmp_path / "c.json", _row("n.onnx", 1.0, 0)))
