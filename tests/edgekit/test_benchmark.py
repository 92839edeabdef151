"""``bench`` on real exports: baselines, accuracy, failures and what was not honoured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.benchmark import available, bench
from edgekit.compress.pipeline import compress
from edgekit.errors import UnknownNameError, UsageError
from edgekit.export.run import export
from edgekit.runtimes.measure import Plan
from edgekit.runtimes.runtime import RUNTIMES
from edgekit.runtimes.targets.target import TARGETS
from edgekit.sources.load import load
from edgekit.testing.fakes import FakeTarget

QUICK = Plan(rounds=3, runs=5, seconds=0.0, warmup_runs=1, warmup_seconds=0.0)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    whole = load("zoo:digits-cnn")
    compress(whole, "prune-channels:macs=0.5,epochs=1", "digits", output=folder / "pruned")
    compress(whole, "quantize:images=64", "digits", output=folder / "int8")
    for name in ("pruned", "int8"):
        export(load(folder / name), ["onnx", "ncnn"])
    return {name: folder / name for name in ("pruned", "int8")}


def test_a_bundle_is_its_program_and_all_its_exports(bundles: dict[str, Path]) -> None:
    found = bench(bundles["int8"], plan=QUICK, data="digits", images=100)
    assert [(row.measurement.cell.label, row.measurement.cell.runtime) for row in found.rows] == [
        ("int8", "torch"),
        ("int8/model.int8.ncnn.param", "ncnn"),
        ("int8/model.int8.onnx", "onnxruntime"),
    ]
    for row in found.rows:
        assert row.measurement.error == ""
        assert row.precision == "int8"
        assert row.input == "a real sample"
        assert row.macs == 2_097_280
        assert row.accuracy is not None
        assert row.accuracy.top1 > 95
        assert len(row.accuracy.labels) == 100
        assert row.comparison is None, "there is no baseline"
        assert row.measurement.size_bytes > 10_000
    described = found.to_dict()
    assert described["target"]["cpu_flags"] is not None
    assert len(described["rows"][0]["raw"]["rounds_ms"]) == 3


def test_like_is_compared_with_like(bundles: dict[str, Path]) -> None:
    found = bench([bundles["pruned"], bundles["int8"]], runtimes=["onnxruntime", "ncnn"], threads=(1, 2), plan=QUICK)
    for row in found.rows:
        cell = row.measurement.cell
        if cell.label.startswith("pruned"):
            assert row.comparison is None
            continue
        assert row.comparison is not None
        assert row.comparison.baseline == cell.label.replace("int8/model.int8", "pruned/model")
        assert row.macs_ratio == pytest.approx(2.0, rel=0.1)
        assert row.comparison.low <= row.comparison.ratio <= row.comparison.high
        assert row.comparison.verdict in ("faster", "slower", "no difference")
    assert len(found.rows) == 8


def test_a_named_file_is_the_baseline_for_every_runtime(bundles: dict[str, Path]) -> None:
    onnx = bundles["int8"] / "exports" / "model.int8.onnx"
    param = bundles["int8"] / "exports" / "model.int8.ncnn.param"
    found = bench([onnx, param], baseline=onnx, plan=QUICK)
    assert found.rows[0].comparison is None
    assert found.rows[1].comparison is not None
    assert found.rows[1].comparison.baseline == "model.int8.onnx"


def test_a_broken_file_is_a_row_and_the_others_are_measured(bundles: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    found = bench([broken, bundles["int8"] / "exports" / "model.int8.onnx"], plan=QUICK)
    assert [row.measurement.cell.label for row in found.failed] == ["broken.onnx"]
    assert "broken.onnx" in found.failed[0].measurement.error
    assert found.rows[1].measurement.percentile(50) > 0
    assert found.rows[1].comparison is None


def test_a_file_without_preprocessing_has_no_accuracy_and_says_so(tmp_path: Path) -> None:
    from edgekit.testing.exporters import bundle_of

    (file,) = export(bundle_of("plain"), "onnx", output=tmp_path)
    (row,) = bench(file.path, plan=QUICK, data="digits").rows
    assert row.accuracy is None
    assert any("how images become inputs" in note for note in row.notes)
    assert row.input == "random numbers"


def test_what_an_emulator_times_is_labelled(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "fake", "edgekit.testing.fakes:FakeTarget")  # type: ignore[arg-type]
    found = bench(bundles["int8"] / "exports" / "model.int8.onnx", plan=QUICK, target="fake")
    assert any("no latencies" in warning for warning in found.warnings)


def test_a_result_keeps_what_the_device_told_before_and_after(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TARGETS, "fake", "edgekit.testing.fakes:FakeTarget")  # type: ignore[arg-type]
    cool, warm = ({"thermal_status": status, "battery_percent": 87} for status in ("none", "severe"))
    moments, describe = iter((cool, warm)), FakeTarget.describe
    monkeypatch.setattr(FakeTarget, "describe", lambda self: {**describe(self), "temperature_c": None, **next(moments)})
    found = bench(bundles["int8"] / "exports" / "model.int8.onnx", plan=QUICK, target="fake")
    told = found.to_dict()
    assert (told["target"]["thermal_status"], told["target"]["battery_percent"]) == ("none", 87)
    assert told["target_after"] == {"thermal_status": "severe"}
    assert any("thermal status is severe" in warning for warning in found.warnings)


def test_usage(bundles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        bench(tmp_path / "no.onnx")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match="no runtime runs"):
        bench(tmp_path / "a.txt")
    with pytest.raises(UsageError, match=r"without bundle\.json"):
        bench(tmp_path)
    with pytest.raises(UnknownNameError, match="onnxrt"):
        bench(bundles["int8"], runtimes=["onnxrt"])
    with pytest.raises(UsageError, match="runs in tflite"):
        bench(bundles["int8"], runtimes=["tflite"])
    with pytest.raises(UsageError, match="baseline"):
        bench(bundles["int8"], baseline=tmp_path / "x")
    with pytest.raises(UsageError, match="no baseline"):
        bench(bundles["pruned"] / "exports" / "model.onnx", plan=replace(QUICK, within=0.05))
    assert set(available()) == set(RUNTIMES)


def test_a_ratio_that_stays_wide_is_told(bundles: dict[str, Path]) -> None:
    files = [bundles[name] / "exports" / f"model{suffix}.onnx" for name, suffix in (("pruned", ""), ("int8", ".int8"))]
    base, other = (found := bench(files, plan=replace(QUICK, within=1e-9, most_rounds=5))).rows
    assert len(base.measurement.rounds_ms) == len(other.measurement.rounds_ms) == 5
    assert any("after 5 rounds, not within 1e-07 %" in warning for warning in found.warnings)


def test_every_image_counts_alike_in_torch_and_in_the_file(bundles: dict[str, Path]) -> None:
    found = bench(bundles["pruned"], plan=QUICK, data="digits")
    logits = [row.accuracy.logits for row in found.rows if row.accuracy is not None]
    assert len(logits) == 3
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], rtol=1e-3, atol=1e-3)
