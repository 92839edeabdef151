"""Real files that crash, hang or outgrow their runtime: each is a result in its cell, and the matrix goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.benchmark.run import bench
from edgekit.errors import ExecutionError
from edgekit.export.run import export
from edgekit.runtimes.measure import Plan
from edgekit.runtimes.runtime import Options, runtime_of_file
from edgekit.runtimes.targets.local import LocalTarget
from edgekit.testing import networks
from edgekit.testing.exporters import bundle_of

MIB = 1 << 20
X, Y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small int8 network for each format."""
    folder = tmp_path_factory.mktemp("files")
    formats = ["onnx", "tflite", "ncnn"]
    written = export(bundle_of("plain", "int8"), formats, output=folder)
    return {format: one.path for format, one in zip(formats, written, strict=True)}


def _save(path: Path, graph: onnx.GraphProto) -> Path:
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def _endless(path: Path) -> Path:
    """A loop of 10¹⁵ additions."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Add", ["sum", "x"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 4]),
        ],
    )
    constants = [
        helper.make_tensor("turns", TensorProto.INT64, [], [10**15]),
        helper.make_tensor("true", TensorProto.BOOL, [], [True]),
    ]
    node = helper.make_node("Loop", ["turns", "true", "x"], ["y"], body=body)
    return _save(path, helper.make_graph([node], "endless", [X], [Y], constants))


def _huge(path: Path) -> Path:
    """Sums the input after it was repeated to 2 GiB."""
    constants = [helper.make_tensor("shape", TensorProto.INT64, [2], [128 * MIB, 4])]
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["many"]),
        helper.make_node("ReduceMean", ["many"], ["y"], axes=[0], keepdims=1),
    ]
    return _save(path, helper.make_graph(nodes, "huge", [X], [Y], constants))


def _crashing(param: Path, folder: Path) -> Path:
    """An ncnn network that takes its int8 weights for float ones and reads past the end of the .bin (found by fuzzing)."""
    folder.mkdir()
    for suffix in (".bin", ".json"):
        (folder / "crash.bin").with_suffix(suffix).write_bytes(param.with_suffix(suffix).read_bytes())
    lines = param.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Convolution") and " 8=1" in line)
    lines[first] = " ".join("8=0" if part.startswith("8=") else part for part in lines[first].split())
    (folder / "crash.param").write_text("\n".join(lines) + "\n")
    return folder / "crash.param"


def test_what_crashes_hangs_or_outgrows_its_limit_is_a_cell(files: dict[str, Path], tmp_path: Path) -> None:
    items = [
        _crashing(files["ncnn"], tmp_path / "ncnn"),
        _endless(tmp_path / "endless.onnx"),
        _huge(tmp_path / "huge.onnx"),
        files["onnx"],
        files["tflite"],
    ]
    plan = Plan(
        rounds=3, runs=3, seconds=0.0, warmup_runs=1, warmup_seconds=0.0, timeout_s=6.0, memory_limit_bytes=512 * MIB
    )
    found = bench(items, plan=plan, output=tmp_path / "bench.json")
    assert [row.measurement.failure for row in found.rows] == ["crash", "timeout", "memory", "", ""]
    crash, hang, memory, fine, other = (row.measurement for row in found.rows)
    assert "SIGSEGV" in crash.error
    assert "gave no answer in 6 s" in hang.error
    assert "under a memory limit of 512 MiB" in memory.error
    assert len(fine.rounds_ms) == len(other.rounds_ms) == 3
    assert (tmp_path / "bench.json").is_file()


@pytest.mark.parametrize("format", ["onnx", "tflite", "ncnn"])
def test_a_file_with_wrong_bytes_is_a_result_or_an_error_of_ours(
    files: dict[str, Path], format: str, tmp_path: Path
) -> None:
    source = files[format]
    runtime = runtime_of_file(str(source))
    assert runtime is not None
    x = networks.images(1).numpy()
    outcomes = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        content = bytearray(source.read_bytes())
        for place in rng.integers(0, len(content), 4):
            # Text stays text: digits are what ncnn's loader believes.
            content[place] = ord("0") + int(rng.integers(0, 10)) if format == "ncnn" else int(rng.integers(0, 256))
        (tmp_path / source.name).write_bytes(content)
        for suffix in (".bin", ".json") if format == "ncnn" else ():
            beside = source.with_suffix(suffix)
            (tmp_path / beside.name).write_bytes(beside.read_bytes())
        try:
            with LocalTarget().worker() as worker:
                worker.open(tmp_path / source.name, runtime, Options(memory_limit_bytes=512 * MIB), 10.0)
                outcomes.append(worker.run(x, 10.0)[0].shape)
        except ExecutionError as error:
            outcomes.append(error.failure if error.what else None)
    assert len(outcomes) == 6
    assert None not in outcomes
