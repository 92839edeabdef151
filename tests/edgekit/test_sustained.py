"""Sustained runs: the curve, the verdict, the failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit.benchmark.sustained as sustained_module
from edgekit.benchmark.candidates import Candidate
from edgekit.benchmark.sustained import sustain
from edgekit.errors import UsageError
from edgekit.export.run import export
from edgekit.runtimes.measure import Cell
from edgekit.runtimes.targets.link import Link
from edgekit.sources.load import load
from edgekit.testing.fakes import RUNTIME, write_fake


def test_a_real_file_gives_a_curve(tmp_path: Path) -> None:
    (file,) = export(load("zoo:digits-cnn"), "onnx", output=tmp_path, data="digits")
    told: list[int] = []
    found = sustain(
        file.path, 5 / 60, output=tmp_path / "s.json", progress=lambda done, total, text: told.append(total)
    )
    (curve,) = found.curves
    assert curve.error == ""
    assert len(curve.windows) == 5 == told[-1]
    assert all(window.p50_ms > 0 and window.runs > 100 for window in curve.windows)
    assert [window.seconds for window in curve.windows] == sorted(window.seconds for window in curve.windows)
    assert curve.verdict == "too short to tell", "a fifth is one window"
    assert curve.energy
    assert (tmp_path / "s.json").is_file()


def test_a_machine_that_throttles_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    slowing = iter(np.concatenate([np.full(8, 1.0), np.linspace(1, 1.2, 4), np.full(8, 1.2)]))

    def time(self: Link, x: np.ndarray, *, runs: int, seconds: float, **_: Any) -> dict[str, Any]:
        if not seconds:
            return {}
        samples = list(next(slowing) * np.exp(rng.normal(0, 0.02, 30)))
        return {"samples_ms": samples, "energy_j": 0.06, "energy": "RAPL package-0", "facts": {}}

    monkeypatch.setattr(Link, "time", time)
    path = write_fake(tmp_path / "a.fake")
    cell = Cell(label="a", path=path, runtime=RUNTIME)
    candidate = Candidate(cell, 0, None, x=np.zeros((1, 4), np.float32))
    monkeypatch.setattr(sustained_module, "list_candidates", lambda *_: [candidate])
    monkeypatch.setattr(sustained_module, "probe", lambda *_: None)
    monkeypatch.setattr(sustained_module, "_LEAST_WINDOW_S", 3.0)
    (curve,) = sustain(path, 1.0).curves
    assert len(curve.windows) == 20
    assert curve.ratio == pytest.approx(1.2, rel=0.03)
    assert 1.1 < curve.low < curve.high < 1.3
    assert curve.verdict == "slowed down"
    assert curve.windows[0].energy_mj == pytest.approx(2.0)
    assert curve.to_dict()["windows"][0]["p50_ms"] > 0.9


def test_a_file_that_fails_is_a_curve_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    (curve,) = sustain(tmp_path / "broken.onnx", 0.1).curves
    assert curve.failure == "refused"
    assert "broken.onnx" in curve.error


def test_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="minutes"):
        sustain(tmp_path, 0)
    with pytest.raises(UsageError, match="no latency"):
        sustain(tmp_path, 1, target="emulated:cortex-a76")
