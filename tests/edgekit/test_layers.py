"""Layers timed in every runtime: the table, the mapping, and the roofline against figures by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekit.benchmark.layers import median_interval, profile_layers
from edgekit.benchmark.layers_result import LayersResult
from edgekit.benchmark.mapping import LAYOUT, OTHER, QUANTIZE, kind_of, program_groups
from edgekit.benchmark.roofline import Roofline, best_of, float_product, integer_product, measure_roofline
from edgekit.bundle import Bundle
from edgekit.errors import BundleError, UsageError
from edgekit.export.exporter import EXPORTERS
from edgekit.export.run import export
from edgekit.program import export_program
from edgekit.runtimes.runtime import SUFFIXES, Options
from edgekit.runtimes.targets.target import TARGETS, target_for
from edgekit.runtimes.xnnpack_operators import Event, align
from edgekit.testing.exporters import bundle_of
from edgekit.testing.fakes import RUNTIME, FakeTarget, write_fake

LINE = Roofline(threads=1, bytes_per_second=20e9, float32_macs_per_second=50e9, int8_macs_per_second=200e9)


class Heavy(nn.Module):
    """One convolution holds 97 % of the MACs."""

    shape = (3, 32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.heavy = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 96, 3, padding=1)
        self.mix, self.head = nn.Conv2d(96, 16, 1), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.heavy(F.relu(self.stem(x))))
        x = self.mix(F.max_pool2d(x, 4))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(autouse=True)
def known_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known line in place of the measured one, which takes seconds."""
    monkeypatch.setattr("edgekit.benchmark.layers.measure_roofline", lambda target, threads: LINE)


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network with files of every format."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((4, *Heavy.shape), dtype=np.float32)
    bundle = Bundle(export_program(Heavy(), Heavy.shape), Heavy.shape).with_samples(x, np.zeros(4, np.int64))
    bundle = bundle.save(tmp_path_factory.mktemp("layers") / "heavy")
    export(bundle, list(EXPORTERS))
    assert bundle.path is not None
    return bundle.path


@pytest.fixture(scope="module")
def profiled(heavy: Path) -> LayersResult:
    """All its files, profiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.benchmark.layers.measure_roofline", lambda target, threads: LINE)
        return profile_layers(heavy, runs=15)


def test_the_layer_with_most_macs_is_the_slowest_in_every_runtime(profiled: LayersResult) -> None:
    (table,) = profiled.tables
    heaviest = max(table.rows, key=lambda row: row.macs)
    assert heaviest.path == "heavy"
    assert heaviest.macs > 0.9 * sum(row.macs for row in table.rows)
    assert {column.runtime for column in table.columns} >= {"torch", "onnxruntime", "tflite", "ncnn"}
    for position, column in enumerate(table.columns):
        assert not column.error
        times = {row.path: row.cells[position].ms for row in table.rows if row.cells[position] is not None}
        assert max(times, key=lambda path: times[path]) == "heavy", column.runtime
        # Of the medians' sum: whole runs are interrupted now and then by the programs that share the machine.
        assert times["heavy"] > 0.5 * sum(times.values())


def test_the_layers_sum_to_the_whole(profiled: LayersResult) -> None:
    (table,) = profiled.tables
    for position, column in enumerate(table.columns):
        cells = [row.cells[position] for row in table.rows if row.cells[position] is not None]
        assert column.profile is not None
        samples = np.array([operator.samples_ms for operator in column.profile.operators]) - column.overhead_ms
        assert column.sum_ms == pytest.approx(np.median(samples.sum(0)))
        assert column.unaccounted == pytest.approx(1 - column.sum_ms / column.whole_ms)
        # Both are measured in turn in one process; the fastest runs are those that no other program interrupted.
        assert 0.5 < samples.sum(0).min() / min(column.profile.whole_ms) < 1.7, column.runtime
        listed = [name for cell in cells for name in cell.operators]
        assert sorted(listed) == sorted(operator.name for operator in column.profile.operators), (
            "each is somewhere, once"
        )
        for cell in cells:
            assert cell.low_ms <= cell.ms <= cell.high_ms


def test_rows_are_layers_with_what_runtimes_merge_into_them(profiled: LayersResult) -> None:
    (table,) = profiled.tables
    rows = {row.path: row for row in table.rows}
    assert rows["heavy"].op == "conv2d.default"
    assert rows["heavy"].macs == 96 * 32 * 9 * 32 * 32
    assert rows["heavy"].fused == ("relu_1",)
    # 32 and 96 channels of 32 × 32 in float32, and the weights with their bias.
    assert rows["heavy"].bytes == {"float32": 4.0 * ((32 + 96) * 32 * 32 + 96 * 32 * 9 + 96)}
    for position, column in enumerate(table.columns):
        cell = rows["heavy"].cells[position]
        assert cell is not None
        assert cell.attainable_ms == pytest.approx(1000 * rows["heavy"].macs / 50e9)
        assert cell.share == pytest.approx(cell.attainable_ms / cell.ms), column.runtime


def test_the_document_holds_every_operator_with_its_samples(profiled: LayersResult) -> None:
    value = json.loads(json.dumps(profiled.to_dict()))
    assert value["schema"] == 1
    (table,) = value["tables"]
    for column in table["columns"]:
        assert all(len(operator["samples_ms"]) == 15 for operator in column["operators"])
        known = {row["node"] or row["path"] for row in table["rows"]}
        assert {operator["row"] for operator in column["operators"]} <= known
    assert "operators" not in profiled.to_dict(raw=False)["tables"][0]["columns"][0]


def test_known_times_of_known_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUFFIXES, ".fake", RUNTIME)  # type: ignore[arg-type]
    bundle = bundle_of("residual").save(tmp_path / "b")
    assert bundle.path is not None
    (bundle.path / "exports").mkdir()
    operators = [
        ("quantize", "QuantizeLinear", ["input"], ["q"], 0.125),
        ("first", "Conv", ["q", "stem.weight"], ["s"], 1.0),
        ("first_relu", "Relu", ["s"], ["r"], 0.5),
        ("second", "Conv", ["r", "w1"], ["c1"], 2.0),
        ("sum", "Add", ["c1", "r"], ["a1"], 0.25),
        ("sum_relu", "Clip", ["a1"], ["a2"], 0.25),
        ("turn", "Transpose", ["a2"], ["t"], 4.0),
        ("third", "Conv", ["t", "w2"], ["c2"], 8.0),
        ("cut", "StridedSlice", ["a2"], ["c"], 0.0),
        ("fill", "Pad", ["c"], ["p"], 0.0625),
        ("sum2", "Add", ["c2", "p"], ["a3"], 0.5),
        ("mean", "GlobalAveragePool", ["a3"], ["m"], 0.75),
        ("odd", "Einsum", ["m"], ["o"], 0.375),
        ("last", "Gemm", ["o", "w3"], ["output"], 0.0625),
    ]
    described = [{"name": n, "type": t, "inputs": i, "outputs": o, "ms": ms + 0.03125} for n, t, i, o, ms in operators]
    shape = list(bundle.input_shape)
    metadata = {"precision": "float32", "input_shape": shape}
    file = write_fake(
        bundle.path / "exports" / "m.fake", operators=described, shape=shape, metadata=metadata, overhead_ms=0.03125
    )
    layers = [
        {"layer": path, "tensor": t} for path, t in (("stem", "s"), ("conv1", "c1"), ("conv2", "c2"), ("head", "no"))
    ]
    (bundle.path / "exports" / "m.fake.parity.json").write_text(json.dumps({"layers": layers}))
    (table,) = profile_layers(file, runs=3).tables
    (column,) = table.columns
    times = {row.path: row.cells[0].ms for row in table.rows if row.cells[0] is not None}
    assert times == {
        "stem": 1.5, "conv1": 2.0, "add": 0.5, "conv2": 8.0, "slice_2": 0.0, "pad": 0.0625, "add_1": 0.5,
        "adaptive_avg_pool2d": 0.75, "head": 0.0625, LAYOUT: 4.0, QUANTIZE: 0.125, OTHER: 0.375,
    }  # fmt: skip
    assert column.sum_ms == pytest.approx(sum(ms for *_, ms in operators))
    assert column.whole_ms == pytest.approx(2 * sum(one["ms"] for one in described))
    assert column.overhead_ms == 0.03125
    hidden = [row.path for row in table.rows if row.cells[0] is not None and row.cells[0].below_noise]
    assert len(hidden) == 1, "asking took longer than the operator"


def test_a_layer_within_another_s_operator_counts_for_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUFFIXES, ".fake", RUNTIME)  # type: ignore[arg-type]
    bundle = bundle_of("plain").save(tmp_path / "b")
    assert bundle.path is not None
    (bundle.path / "exports").mkdir()
    described = [
        {"name": n, "type": "Gemm", "inputs": [i, "w"], "outputs": [o], "ms": 1.0}
        for n, i, o in (("conv1", "input", "a"), ("conv2", "a", "b"), ("both", "b", "y"))
    ]
    shape = list(bundle.input_shape)
    metadata = {"precision": "float32", "input_shape": shape}
    file = write_fake(bundle.path / "exports" / "m.fake", operators=described, shape=shape, metadata=metadata)
    layers = [{"layer": p, "tensor": t} for p, t in (("conv1", "a"), ("conv2", "b"), ("hidden", "no"), ("head", "y"))]
    (bundle.path / "exports" / "m.fake.parity.json").write_text(json.dumps({"layers": layers}))
    (table,) = profile_layers(file, runs=2).tables
    cells = {row.path: row.cells[0] for row in table.rows}
    assert cells["hidden"] is None
    assert cells["head"] is not None
    assert cells["head"].within == ("hidden",)
    # 320 × 24 and 24 × 7 weights with their biases, read once; memory decides.
    elements = (320 + 320 * 24 + 24 + 24) + (24 + 24 * 7 + 7 + 7)
    assert cells["head"].attainable_ms == pytest.approx(1000 * 4 * elements / 20e9)
    assert cells["conv2"] is not None
    assert cells["conv2"].within == ()


def test_a_file_of_a_stranger_has_its_operators_for_rows(tmp_path: Path) -> None:
    (file,) = export(bundle_of("plain"), "onnx", output=tmp_path)
    (table,) = profile_layers(file.path, runs=2).tables
    assert table.name == "model.onnx"
    assert [row.op for row in table.rows].count("Conv") == 2
    assert all(row.cells[0] is not None and row.cells[0].share is None for row in table.rows)


def test_the_roofline_by_hand() -> None:
    # 1 MMAC on 1 kB: 20 µs of arithmetic against 50 ns of memory; in int8 a quarter.
    assert LINE.attainable_ms(1_000_000, 1000) == pytest.approx(0.020)
    assert LINE.attainable_ms(1_000_000, 1000, integer=True) == pytest.approx(0.005)
    # An addition of 1 MB: memory alone, 50 µs.
    assert LINE.attainable_ms(0, 1_000_000) == pytest.approx(0.050)
    # At the ridge both take as long: attainable = min(peak, intensity × bandwidth).
    assert LINE.ridge() == 2.5
    assert LINE.attainable_ms(2_500_000, 1_000_000) == pytest.approx(0.050)
    assert LINE.ridge(integer=True) == 10
    unknown = Roofline(threads=1, bytes_per_second=1e9, float32_macs_per_second=1e9, int8_macs_per_second=None)
    assert unknown.attainable_ms(1, 1, integer=True) is None
    assert unknown.ridge(integer=True) is None
    best = best_of(unknown, LINE)
    assert (best.bytes_per_second, best.float32_macs_per_second, best.int8_macs_per_second) == (20e9, 50e9, 200e9)


def test_the_products_compute_what_they_should(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (256, 256)).astype(np.float32)
    outputs = {}
    for name, model in (("float", float_product(rng, 256)), ("integer", integer_product(rng, 256))):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        with target_for("local") as target, target.worker() as worker:
            worker.open(path, "onnxruntime", Options())
            outputs[name] = model, worker.run(x)[0]
    from onnx import numpy_helper

    model, y = outputs["float"]
    weight = numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(y, x.astype(np.float64) @ weight, rtol=1e-4, atol=0.1)
    model, y = outputs["integer"]
    weight = numpy_helper.to_array(next(one for one in model.graph.initializer if one.name == "b")).astype(np.int64)
    exact = (x.astype(np.int64) - 128) @ weight * (0.01 * 0.01 / 0.01)
    assert np.abs(y - np.clip(np.round(exact) + 128, 0, 255)).max() <= 1


def test_the_roofline_is_measured_here() -> None:
    with target_for("local") as target:
        line = measure_roofline(target, 1)
        with target.worker() as worker:
            numpy = worker.matrix_product(512, 1)
    assert line.array_bytes >= 4 * line.cache_bytes or line.array_bytes > 1 << 26
    # Two libraries that both know how to multiply: within a factor on a shared machine.
    assert 1 / 8 < line.float32_macs_per_second / numpy["macs_per_second"] < 8
    assert line.int8_macs_per_second is not None
    # No machine copies slower than 100 MB/s or faster than 1 TB/s with one thread.
    assert 1e8 < line.bytes_per_second < 1e12


def test_emulated_times_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "fake", "edgekit.testing.fakes:FakeTarget")  # type: ignore[arg-type]
    bundle = bundle_of("plain").save(tmp_path / "b")
    with pytest.raises(UsageError, match="no latency"):
        profile_layers(str(bundle.path), target="fake")
    with pytest.raises(UsageError, match="no latency"):
        measure_roofline(FakeTarget())


def test_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        profile_layers(tmp_path / "no.onnx")
    bundle = bundle_of("plain").save(tmp_path / "b")
    assert bundle.path is not None
    with pytest.raises(UsageError, match="0 runs"):
        profile_layers(bundle.path, runs=0)
    (bundle.path / "bundle.json").write_text("{")
    with pytest.raises(BundleError):
        profile_layers(bundle.path)


def test_a_broken_file_is_a_column_with_its_reason(heavy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    found = profile_layers([broken, heavy / "exports" / "model.onnx"], runs=2)
    (failed,) = found.failed
    assert "broken.onnx" in failed.error
    assert [column.error for table in found.tables for column in table.columns if column.label == "model.onnx"] == [""]


def test_int8_layers_are_held_against_the_int8_peak(tmp_path: Path) -> None:
    bundle = bundle_of("residual", "int8").save(tmp_path / "b")
    assert bundle.path is not None
    export(bundle, "onnx")
    (table,) = profile_layers(bundle.path, runs=2).tables
    rows = {row.path: row for row in table.rows}
    simulated, onnx = rows["conv1"].cells
    assert simulated is not None
    assert onnx is not None
    assert simulated.attainable_ms is None, "torch only simulates integers"
    # 12 channels of 16 × 16 in and out at a byte each; 1296 weights; a scale for each channel, and the float bias.
    assert rows["conv1"].macs == 12 * 12 * 9 * 256
    assert rows["conv1"].bytes["int8"] == pytest.approx(2 * 12 * 256 + 12 * 12 * 9 + 12 * 4 + 12 * 4, abs=1)
    assert onnx.attainable_ms == pytest.approx(1000 * max(331776 / 200e9, rows["conv1"].bytes["int8"] / 20e9))


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("multiply", ["QLinearConv", "FusedConv", "ConvolutionDepthWise", "InnerProduct", "QGemm", "linear.default"]),
        ("quantize", ["QuantizeLinear", "DequantizeLinear", "quantized_decomposed.quantize_per_tensor.default"]),
        ("elementwise", ["QLinearAdd", "BinaryOp", "Add (ND)", "add.Tensor", "mul.Tensor"]),
        ("pool", ["AveragePool", "ReduceMean", "Pooling", "Mean (ND) Reduce2", "max_pool2d.default"]),
        ("layout", ["ReorderInput", "Split", "Transpose (ND)", "Reshape", "permute.default"]),
        ("activation", ["Clip", "Clamp (NC)", "ReLU", "hardswish.default"]),
        ("slice", ["STRIDED_SLICE", "split.Tensor", "Crop"]),
        ("multiply", ["FULLY_CONNECTED", "Fully Connected (NC, F32) GEMM", "Convolution (NHWC, F32) IGEMM"]),
        ("other", ["Einsum"]),
    ],
)  # fmt: skip
def test_kinds_of_operators(kind: str, types: list[str]) -> None:
    assert {name: kind_of(name) for name in types} == dict.fromkeys(types, kind)


def test_groups_of_a_program() -> None:
    program = program_groups(bundle_of("residual").module())
    shown = [(group.kind, len(group.nodes)) for group in program.groups]
    # Stem; conv1, whose batch norm has no activation; the sum and its activation; the shortcut's slices and padding.
    assert shown[:3] == [("multiply", 3), ("multiply", 2), ("elementwise", 2)]
    assert [kind for kind, _ in shown].count("multiply") == len(program.weighted) == 4
    assert program.groups[2].before == {0, 1}
    assert sorted(program.place.values()) == [i for i, group in enumerate(program.groups) for _ in group.nodes]


def test_xnnpack_operators_beside_the_file_s() -> None:
    def op(index: int, name: str, inputs: list[int], outputs: list[int]) -> dict[str, object]:
        return {"index": index, "op_name": name, "inputs": inputs, "outputs": outputs}

    operators = [
        op(0, "CONV_2D", [0, 10], [1]), op(1, "PAD", [1, 11], [2]), op(2, "CONV_2D", [2, 12], [3]),
        op(3, "STRIDED_SLICE", [1, 13], [4]), op(4, "ADD", [3, 4], [5]), op(5, "FULLY_CONNECTED", [5, 14], [6]),
        op(6, "DELEGATE", [0, 10], [1, 3]), op(7, "DELEGATE", [3, 4], [6]),
    ]  # fmt: skip
    tags = [
        ("Convolution (NHWC, F32) IGEMM", True, 0), ("Fully Connected (NC, F32) GEMM", True, 1), ("STRIDED_SLICE", False, 3),
        ("Add (ND)", True, 0), ("Clamp (NC)", True, 1), ("Fully Connected (NC, F32) GEMM", True, 2),
    ]  # fmt: skip
    found = align([Event(tag, delegated, index, 1) for tag, delegated, index in tags], operators)
    assert found == [
        ((0, 10), (1,)),
        ((12, 1, 11), (3, 2)),  # with its padding
        ((1, 13), (4,)),
        ((3, 4), (5,)),
        ((5,), ()),  # the addition's activation, in its place
        ((5, 14), (6,)),
    ]
    # Other numbers of operators that multiply: nothing is guessed.
    assert align([Event("Convolution (NHWC, F32) IGEMM", True, 0, 1)], operators)[0] == ((), ())


def test_the_median_s_interval_is_two_of_the_samples() -> None:
    rng = np.random.default_rng(0)
    covered = sum(low <= 0 <= high for low, high in (median_interval(rng.standard_normal(50)) for _ in range(500)))
    assert covered / 500 > 0.93
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
