"""Settings of runtimes: computed as they say, or refused with what is missing."""

from __future__ import annotations

import json
import os
import re
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.compress.quantize.calibration.observe import observe_ranges, parameters_of
from edgekit.compress.quantize.plan import insert, make_plan
from edgekit.compress.rewrite import fold_batch_norm
from edgekit.errors import UsageError
from edgekit.export.run import export
from edgekit.program import aten, export_program, node_values, output_node
from edgekit.runtimes import onnx_graph, onnx_provider
from edgekit.runtimes.choice import choose, describe
from edgekit.runtimes.runtime import RUNTIMES, Options, RunError, Runtime, Session, runtime_for
from edgekit.runtimes.settings import UnusableError
from edgekit.runtimes.torch_program import integer_layers, move
from edgekit.testing import networks
from edgekit.testing.exporters import bundle_of

X = networks.images(4).numpy()


def opened(bundle: Bundle, folder: Path, text: str, **options: Any) -> Session:
    choice = choose(text)
    path = folder / "bundle"
    if not path.exists():
        bundle.save(path)
    return runtime_for(choice.name).open(str(path), Options(extra=choice.extra, **options))


# --- torch: integers


@pytest.mark.parametrize("network", ["depthwise", "concat"])
def test_torch_computes_int8_in_integers_as_it_is_simulated(network: str, tmp_path: Path) -> None:
    bundle = bundle_of(network, "int8")
    module = bundle.module()
    with opened(bundle, tmp_path, "torch") as session:
        simulated, facts = session.run(X)[0], session.facts()
    assert "simulated" in facts["arithmetic"]
    with opened(bundle, tmp_path, "torch:precision=int8") as session:
        before = session.facts()
        integers = session.run(X)[0]
        compiled = session.facts()["compile_ms"]
        alone = session.run(X[:1])[0]
        facts = session.facts()
    assert before["compile_ms"] == 0
    assert facts["mode"] == "compiled"
    assert facts["compile_ms"] == compiled > 100, "another batch is filled up, not compiled for"
    assert facts["integer_weights"] == [weights for _, weights in integer_layers(module)]
    weighted = (aten.conv2d.default, aten.linear.default)
    assert len(facts["integer_weights"]) == sum(node.target in weighted for node in module.graph.nodes)
    step = float(output_node(module).args[1])  # type: ignore[arg-type]
    np.testing.assert_allclose(integers, simulated, atol=1.01 * step)
    np.testing.assert_allclose(alone, integers[:1], atol=1.01 * step)


def test_layers_that_inductor_leaves_in_float_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.runtimes import torch_compile

    monkeypatch.setattr(torch_compile, "_integer_kernels", lambda counted: 0)
    with opened(bundle_of("plain", "int8"), tmp_path, "torch:precision=int8") as session:
        assert session.facts()["not_honoured"] == [], "nothing is known before the first run"
        session.run(X)
        facts = session.facts()
    assert facts["not_honoured"] == ["4 of 4 quantized layers are computed in float: Inductor has no kernel for them"]
    assert "integer_weights" not in facts


@pytest.mark.parametrize(
    ("precision", "weight_bits", "activation_bits", "setting", "words"),
    [
        ("float32", 8, 8, "precision=int8", "no layer of this one has quantized inputs"),
        ("int8", 8, 32, "precision=int8", "no layer of this one has quantized inputs"),
        ("int8", 8, 8, "precision=float16", "is for float bundles, and this one is quantized; take precision=int8"),
        ("int8", 8, 8, "compile=true", "take precision=int8"),
    ],
)
def test_torch_refuses_a_bundle_of_another_kind(
    precision: str, weight_bits: int, activation_bits: int, setting: str, words: str, tmp_path: Path
) -> None:
    bundle = bundle_of("plain", precision, weight_bits, activation_bits)
    with pytest.raises(RunError, match=words):
        opened(bundle, tmp_path, f"torch:{setting}")


# --- torch: halves


@pytest.mark.parametrize("network", sorted({**networks.NETWORKS, **networks.FEATURES}))
@pytest.mark.parametrize(("precision", "fraction"), [("float16", 11), ("bfloat16", 8)])
def test_torch_casts_the_whole_program(network: str, precision: str, fraction: int, tmp_path: Path) -> None:
    bundle = bundle_of(network)
    with opened(bundle, tmp_path, f"torch:precision={precision}") as session:
        output = session.run(X)[0]
        module, x = session._module, session._x  # type: ignore[attr-defined]
        values = node_values(module, x)
    dtype = getattr(torch, precision)
    floats = {name: value.dtype for name, value in values.items() if value.dtype.is_floating_point}
    assert set(floats.values()) == {dtype}, floats
    # Against float64, which shares no kernel with the halves.
    whole = bundle.module().double()
    for node in whole.graph.nodes:
        if "dtype" in node.kwargs:  # a recurrent layer's initial state
            node.update_kwarg("dtype", torch.float64)
    whole.recompile()
    reference = node_values(whole, torch.from_numpy(X).double())
    exact = reference[output_node(bundle.module()).name].numpy()
    # Each of some ten layers rounds once to so many bits of fraction.
    np.testing.assert_allclose(output, exact, atol=10 * 2.0**-fraction * np.abs(exact).max())
    assert np.abs(output - exact).max() > 2.0**-24, "this was computed in more than a half"


def test_batch_norm_keeps_its_own_numbers(tmp_path: Path) -> None:
    with opened(bundle_of("residual"), tmp_path, "torch:precision=float16") as session:
        module = session._module  # type: ignore[attr-defined]
    assert module.bn0.running_var.dtype == torch.float32
    assert module.stem.weight.dtype == torch.float16


def test_channels_last_takes_a_view_of_channels(tmp_path: Path) -> None:
    class Viewed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = torch.nn.Conv2d(3, 6, 3), torch.nn.Linear(6 * 14 * 14, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.head(x.view(x.shape[0], -1))

    torch.manual_seed(0)
    bundle = Bundle(export_program(Viewed(), networks.INPUT_SHAPE), networks.INPUT_SHAPE)
    with opened(bundle, tmp_path, "torch") as session:
        plain = session.run(X)[0]
    with opened(bundle, tmp_path, "torch:channels_last=true") as session:
        np.testing.assert_allclose(session.run(X)[0], plain, atol=1e-5)
        assert session._x.is_contiguous(memory_format=torch.channels_last)  # type: ignore[attr-defined]


def test_what_a_program_makes_itself_moves_with_it() -> None:
    class Positions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.mean((2, 3))
            return self.head(x + torch.arange(3, device=x.device) * torch.ones(3, device=x.device))

    module = Bundle(export_program(Positions(), networks.INPUT_SHAPE), networks.INPUT_SHAPE).module()
    assert node_values(module, torch.zeros(1, *networks.INPUT_SHAPE))
    # The meta device refuses to compute with what lies elsewhere, as a GPU does.
    moved = node_values(move(module, "meta"), torch.zeros(1, *networks.INPUT_SHAPE, device="meta"))
    assert {value.device.type for value in moved.values()} == {"meta"}


# --- torch: what is missing


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("built_for", "words", "remedy"),
    [
        (None, "^device=cuda: torch .* sees no CUDA device: it is a build without CUDA$", "pip install"),
        ("13.0", r"^device=cuda: torch .* \(CUDA 13.0\) sees no CUDA device$", "nvidia-smi"),
    ],
)
def test_no_gpu_is_said_with_what_to_do(
    built_for: str | None, words: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built_for)
    for more in ("", ",precision=tf32", ",precision=float16,compile=true,cuda_graphs=true"):
        with pytest.raises(UnusableError, match=words) as caught:
            opened(bundle_of("plain"), tmp_path, f"torch:device=cuda{more}")
        assert remedy in caught.value.install


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("precision=tf32", "a mode of CUDA's products"),
        ("cuda_graphs=true", "needs device=cuda"),
        ("device=cuda,precision=int8", "onnxruntime:provider=tensorrt,precision=int8"),
    ],
)
def test_settings_of_torch_that_do_not_go_together(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose(f"torch:{text}")


def test_a_missing_compiler_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config

    with torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)):
        for setting in ("compile=true", "precision=int8"):
            words = f"^{setting}: torch.compile needs a C\\+\\+ compiler: No working"
            with pytest.raises(UnusableError, match=words) as caught:
                opened(bundle_of("plain", "int8"), tmp_path, f"torch:{setting}")
            assert "apt-get install g++" in caught.value.install
        assert set(describe("torch")["unusable"]) >= {"compile=true", "precision=int8"}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(UnusableError, match=r"Python's headers: there is no .*Python\.h") as caught:
        opened(bundle_of("plain"), tmp_path, "torch:compile=true")
    assert "python3-dev" in caught.value.install


def test_what_the_compiler_says_is_handed_on(tmp_path: Path) -> None:
    import torch._inductor.config

    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *.cpp*) echo "x.cpp:1: fatal error: no space" >&2; exit 1;; esac\nexec c++ "$@"\n'
    )
    compiler.chmod(0o755)
    with (
        torch._inductor.config.patch({"cpp.cxx": (str(compiler),), "force_disable_caches": True}),
        opened(bundle_of("grouped"), tmp_path, "torch:compile=true") as session,
        pytest.raises(RunError, match=r"torch\.compile can't compile bundle: .*: x\.cpp:1: fatal error: no space"),
    ):
        session.run(X)


# --- ONNX Runtime


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Float, int8 with zero points, and symmetric int8."""
    folder = tmp_path_factory.mktemp("onnx")
    symmetric = Bundle(export_program(networks.make("residual"), networks.INPUT_SHAPE), networks.INPUT_SHAPE)
    module = symmetric.module()
    fold_batch_norm(module)
    plan = make_plan(module)
    insert(module, plan, parameters_of(plan, observe_ranges(module, plan, [X]), symmetric=True))
    symmetric = symmetric.with_module(module).with_samples(X, np.zeros(len(X), np.int64))
    bundles = {"float32": bundle_of("residual"), "int8": bundle_of("residual", "int8"), "symmetric": symmetric}
    return {name: export(bundle, "onnx", output=folder / name)[0].path for name, bundle in bundles.items()}


def test_optimization_decides_what_is_computed_in_integers(files: dict[str, Path]) -> None:
    found = {}
    for level in ("disabled", "basic", "extended", "all"):
        extra = {"optimization": level, "kernels": True}
        with runtime_for("onnxruntime").open(str(files["int8"]), Options(extra=extra)) as session:
            found[level] = session.facts()["integer_weights"]
    assert found["disabled"] == found["basic"] == []
    assert len(found["extended"]) == len(found["all"]) == 4


def test_a_provider_that_does_not_start_is_no_run_on_the_cpu(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    built = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    for extra in ({"provider": "cuda"}, {"provider": "tensorrt", "precision": "float16"}):
        with pytest.raises(
            UnusableError, match="could not be started, and ONNX Runtime would have computed on the CPU"
        ) as e:
            runtime_for("onnxruntime").open(str(files["float32"]), Options(extra=extra))
        assert "onnxruntime-gpu" in e.value.install


def test_settings_of_onnxruntime_that_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="provider=cpu, which computes float layers in float32"):
        choose("onnxruntime:precision=float16")
    with pytest.raises(UsageError, match="provider=cuda, which computes float layers in float32 or tf32"):
        choose("onnxruntime:provider=cuda,precision=int8")


def test_what_each_provider_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert onnx_provider.asked("cpu", "float32") == ["CPUExecutionProvider"]
    assert onnx_provider.asked("cuda", "float32") == [("CUDAExecutionProvider", {"use_tf32": "0"})]
    assert onnx_provider.asked("cuda", "tf32") == [("CUDAExecutionProvider", {"use_tf32": "1"})]
    first, second = onnx_provider.asked("tensorrt", "int8")
    assert first[0] == "TensorrtExecutionProvider"
    assert first[1]["trt_int8_enable"] == first[1]["trt_fp16_enable"] == "True"
    assert second[0] == "CUDAExecutionProvider"
    assert (tmp_path / "tensorrt").is_dir()
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ


def test_operators_that_another_provider_took_are_told(files: dict[str, Path]) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(files["float32"]), options, providers=["CPUExecutionProvider"])
    (told,) = onnx_provider.placed_elsewhere(session, "cuda")
    assert re.fullmatch(r"(\d+) of \1 operators run in CPUExecutionProvider: Add, Conv, .*", told)
    assert onnx_provider.placed_elsewhere(session, "cpu") == []


def test_a_bound_run_gives_what_a_plain_one_gives(files: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(str(files["float32"]), providers=["CPUExecutionProvider"])
    bound = onnx_provider.Bound(session, "cpu")
    for x in (X, X[:1]):
        run = bound.prepare({"input": x})
        run()
        run()
        np.testing.assert_array_equal(bound.values()[0], session.run(None, {"input": x})[0])


def test_a_symmetric_file_becomes_signed_for_tensorrt_without_a_change_of_value(files: dict[str, Path]) -> None:
    import onnx

    content = files["symmetric"].read_bytes()
    changed = onnx_graph.for_tensorrt(content, "int8")
    model = onnx.load_from_string(changed)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 8
    assert {types[node.input[2]] for node in pairs if len(node.input) > 2} == {onnx.TensorProto.INT8}
    assert not any(types.get(node.input[0]) == onnx.TensorProto.INT32 for node in pairs), "biases are float"

    plain, signed = (
        onnxruntime.InferenceSession(one, _unoptimized(), providers=["CPUExecutionProvider"]).run(None, {"input": X})[0]
        for one in (content, changed)
    )
    np.testing.assert_array_equal(signed, plain)


def _unoptimized() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


@pytest.mark.parametrize(
    ("file", "precision", "words"),
    [
        ("int8", "int8", "has no zero points, and .* quantize with --step quantize:symmetric=true"),
        ("float32", "int8", "needs a file with quantized activations"),
        ("symmetric", "float16", "the file is quantized, .* precision=int8, not float16"),
    ],
)
def test_files_that_tensorrt_would_compute_otherwise_are_refused(
    files: dict[str, Path], file: str, precision: str, words: str
) -> None:
    with pytest.raises(RunError, match=words):
        onnx_graph.for_tensorrt(files[file].read_bytes(), precision)


# --- LiteRT, ncnn, OpenVINO


def test_kernels_of_litert_go_together_with_the_delegate() -> None:
    assert choose("tflite:xnnpack=false,reference=true").extra == {"xnnpack": False, "reference": True}
    with pytest.raises(UsageError, match="add xnnpack=false"):
        choose("tflite:reference=true")
    with pytest.raises(UsageError, match="xnnpack=false leaves it out"):
        choose("tflite:fusion=false,xnnpack=false")


def test_openvino_computes_quantized_layers_in_integers_and_tells_its_precision(files: dict[str, Path]) -> None:
    with runtime_for("openvino").open(str(files["int8"]), Options()) as session:
        facts = session.facts()
        assert session.metadata()["precision"] == "int8"
    assert facts["integer_weights"] == [324, 1296, 2160, 140]
    assert facts["precision"] == "float32"


def test_a_precision_that_openvino_does_not_honour_is_told(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with runtime_for("openvino").open(str(files["float32"]), Options(extra={"precision": "bfloat16"})) as session:
        told = session._property("INFERENCE_PRECISION_HINT")  # type: ignore[attr-defined]
        monkeypatch.setattr(session, "_chosen", type(session._chosen)(precision="float16"))  # type: ignore[attr-defined]
        not_honoured = session.facts()["not_honoured"]
    used = told.get_type_name()
    names = {"bf16": "bfloat16", "f32": "float32"}
    wanted = f"precision=float16 was asked for, and OpenVINO computes in {names.get(used)}"
    assert not_honoured == ([] if used == "f16" else [wanted])


def test_openvino_runs_onnx_files_only_where_it_is_named(files: dict[str, Path]) -> None:
    from edgekit.benchmark import bench
    from edgekit.runtimes.measure import Plan

    quick = Plan(rounds=3, runs=3, seconds=0.0, warmup_runs=1, warmup_seconds=0.0)
    found = bench(files["float32"], runtimes=["onnxruntime", "openvino:hint=throughput"], plan=quick)
    assert [row.measurement.cell.choice for row in found.rows] == ["onnxruntime", "openvino:hint=throughput"]
    assert not found.failed
    assert found.not_honoured == ()


# --- telling


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_is_described_in_json(name: str) -> None:
    found = json.loads(json.dumps(describe(name)))
    assert found["usable"]
    assert set(found["settings"]) == set(found["choices"])
    for setting, default in found["settings"].items():
        assert default in found["choices"][setting]
    for lacking in found["unusable"].values():
        assert lacking["reason"]
        assert lacking["install"]


def test_a_missing_runtime_is_told_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cls: type[Runtime] = type(runtime_for("openvino"))

    def missing(self: Runtime) -> str:
        raise ModuleNotFoundError("No module named 'openvino'")

    monkeypatch.setattr(cls, "version", missing)
    found = describe("openvino")
    assert not found["usable"]
    assert found["install"] == "pip install openvino"
    assert found["unusable"] == {}
