"""ONNX files as models: what they compute, what they become, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekit.compress.pipeline import compress
from edgekit.errors import SourceError, UnsupportedOperatorError, UsageError
from edgekit.export.onnx import save, to_onnx
from edgekit.export.run import export
from edgekit.program import aten, export_program, trainable
from edgekit.sources import onnx as source
from edgekit.sources.load import load
from edgekit.sources.onnx_network import RULES, OnnxNetwork
from edgekit.testing import networks


def _written(name: str, folder: Path, batch: int | None = None) -> Path:
    module = trainable(export_program(networks.make(name), networks.INPUT_SHAPE))
    path = folder / f"{name}.onnx"
    save(to_onnx(module, networks.INPUT_SHAPE, batch=batch), path)
    return path


@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_comes_back(name: str, batch: int | None, tmp_path: Path) -> None:
    bundle = load(_written(name, tmp_path, batch))
    x = networks.images(5)
    # A file fixed to a batch of one computes any batch here.
    torch.testing.assert_close(bundle.module()(x), networks.make(name)(x), rtol=1e-4, atol=1e-5)
    assert bundle.source["difference_from_onnxruntime"] < 1e-4


def test_every_technique_applies_from_there(tmp_path: Path) -> None:
    small = load("zoo:digits-cnn")
    (file,) = export(small, "onnx", data="digits", output=tmp_path)
    bundle = load(file.path, preprocessing=small.preprocessing.to_dict())
    layers = [n for n in bundle.module().graph.nodes if n.target in (aten.conv2d.default, aten.linear.default)]
    assert len(layers) == 8
    steps = ["prune-channels:macs=0.7,epochs=0", "quantize:images=64"]
    after = compress(bundle, steps, "digits", output=tmp_path / "after")
    assert after.steps[-1]["report"]["int8_macs_share"] == 1.0
    (proved,) = export(after, "onnx")
    assert proved.parity["agreement"]["top1_percent"] > 98


def _model(nodes: list[Any], constants: dict[str, np.ndarray], shape: list[int], opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "test", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


_W = {"w": _random(4, 3, 3, 3), "b": _random(4)}
CASES: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "same-upper": ([helper.make_node("Conv", ["x", "w", "b"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])], _W),
    "same-lower": ([helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2])], {"w": _W["w"]}),
    "uneven-pads": ([helper.make_node("Conv", ["x", "w"], ["y"], pads=[0, 1, 2, 1])], {"w": _W["w"]}),
    "grouped": ([helper.make_node("Conv", ["x", "w"], ["y"], group=3, dilations=[2, 2])], {"w": _random(6, 1, 3, 3)}),
    "bias-by-add": (
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Add", ["c", "b"], ["y"])],
        {"w": _W["w"], "b": _random(4, 1, 1)},
    ),
    "add-that-is-no-bias": (
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Add", ["c", "b"], ["y"])],
        {"w": _W["w"], "b": _random(10, 10)},
    ),
    "transposed": (
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
        {"w": _random(3, 5, 3, 3)},
    ),
    "pools": (
        [
            helper.make_node("MaxPool", ["x"], ["m"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
            helper.make_node("AveragePool", ["m"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0),
        ],
        {},
    ),
    "gemm": (
        [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "b"], ["y"], alpha=0.5, beta=2.0),
        ],
        {"w": _random(3, 5), "b": _random(5)},
    ),
    "sizes": (
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Gather", ["s", "zero"], ["n"]),
            helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
            helper.make_node("Concat", ["n1", "minus"], ["to"], axis=0),
            helper.make_node("Reshape", ["x", "to"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["y"]),
        ],
        {
            "zero": np.array(0), "axis": np.array([0]), "minus": np.array([-1]),
            "w": _random(432, 6) / 20, "b": _random(6),
        },
    ),
    "norm-and-activations": (
        [
            helper.make_node("BatchNormalization", ["x", "g", "o", "mean", "var"], ["n"], epsilon=1e-3),
            helper.make_node("HardSigmoid", ["n"], ["h"], alpha=1 / 6, beta=0.5),
            helper.make_node("Mul", ["n", "h"], ["s"]),
            helper.make_node("LeakyRelu", ["s"], ["l"], alpha=0.2),
            helper.make_node("Clip", ["l", "low", "six"], ["y"]),
        ],
        {
            "g": _random(3), "o": _random(3) + 1, "mean": _random(3), "var": np.abs(_random(3)) + 0.5,
            "low": np.array(-0.5, np.float32), "six": np.array(1.5, np.float32),
        },
    ),
    "cut-and-join": (
        [
            helper.make_node("Slice", ["x", "starts", "ends", "axes", "steps"], ["a"]),
            helper.make_node("Split", ["a", "parts"], ["p", "q"], axis=1),
            helper.make_node("Concat", ["q", "p"], ["c"], axis=1),
            helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
            helper.make_node("ReduceMean", ["t"], ["r"], axes=[1, 2], keepdims=0),
            helper.make_node("Softmax", ["r"], ["y"], axis=1),
        ],
        {
            "starts": np.array([0, 1]), "ends": np.array([2**62, 2**62]), "axes": np.array([2, 3]),
            "steps": np.array([2, 1]), "parts": np.array([1, 2]),
        },
    ),
    "folded-constants": (
        [
            helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Pad", ["c", "pads"], ["y"]),
        ],
        {"half": _W["w"].astype(np.float16), "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_rule_against_onnx_runtime(case: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(*CASES[case], [1, 3, 12, 12]), path)
    network, shape = source.load_onnx(path, None)
    assert source.prove(network, path, shape) < 1e-5
    exported = trainable(export_program(network, shape))
    x = torch.randn(3, *shape)
    torch.testing.assert_close(exported(x), network(x))


def test_a_bias_by_addition_becomes_a_bias() -> None:
    network = OnnxNetwork(_model(*CASES["bias-by-add"], [1, 3, 12, 12]), "m")
    assert [node.op for node in network.nodes] == ["Conv"]
    assert network.layer(network.nodes[0]).bias is not None


def test_an_operator_without_a_rule_is_named(tmp_path: Path) -> None:
    onnx.save(
        _model([helper.make_node("LRN", ["x"], ["y"], name="norm1", size=3)], {}, [1, 3, 8, 8]), tmp_path / "m.onnx"
    )
    with pytest.raises(UnsupportedOperatorError, match="LRN at norm1"):
        load(tmp_path / "m.onnx")


def test_a_quantized_file_is_told_as_such(tmp_path: Path) -> None:
    (file,) = export(
        compress(load("zoo:digits-cnn"), "quantize:images=32", "digits"), "onnx", data="digits", output=tmp_path
    )
    with pytest.raises(UnsupportedOperatorError) as caught:
        load(file.path)
    assert "quantized already" in caught.value.remedy


def test_bad_files_are_refused(tmp_path: Path) -> None:
    whole = _written("plain", tmp_path)
    (tmp_path / "cut.onnx").write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(SourceError, match=r"cut\.onnx is damaged"):
        load(tmp_path / "cut.onnx")
    with pytest.raises(SourceError, match="does not exist"):
        load(tmp_path / "missing.onnx")
    with pytest.raises(UsageError, match="weights of its own"):
        load(whole, weights="w.safetensors")
    onnx.save(_model([helper.make_node("Relu", ["x"], ["y"])], {}, ["n", 3, "h", "w"]), tmp_path / "open.onnx")
    with pytest.raises(SourceError, match="leaves its input shape open"):
        load(tmp_path / "open.onnx")
    assert load(tmp_path / "open.onnx", input_shape=(3, 8, 8)).input_shape == (3, 8, 8)


def test_a_wrong_rule_is_found_at_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _written("plain", tmp_path)
    monkeypatch.setitem(RULES, "Relu", lambda network, node, inputs: inputs[0])
    with pytest.raises(SourceError, match="brought over wrongly"):
        load(path)
