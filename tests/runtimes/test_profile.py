"""Profiles as targets tell them, and the reader of ONNX graphs that targets need."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.runtimes.onnxruntime import OnnxRuntime
from edgekit.runtimes.peak import cache_bytes, copy_bandwidth, matrix_product
from edgekit.runtimes.profile import Operator, Profile, distinct
from edgekit.runtimes.profile_onnxruntime import executed_nodes
from edgekit.runtimes.runtime import Options, RunError


def test_a_profile_goes_there_and_back_as_json() -> None:
    operator = Operator(name="a", type="Conv", inputs=("x", "w"), outputs=("y",), samples_ms=(0.5, 0.25))
    profile = Profile(
        operators=(operator,),
        whole_ms=(1.0, 2.0),
        profiled_ms=(3.0, 4.0),
        method="m",
        overhead_ms=0.1,
        resolution_ms=0.001,
    )
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_equal_names_are_numbered() -> None:
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with named and unnamed nodes, attributes, weights, an input left out, and texts."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], name="first", doc_string="a text"),
        helper.make_node("Sin", ["a"], ["b"]),
        helper.make_node("Sin", ["b"], ["c"]),
        helper.make_node("Clip", ["c", "", "top"], ["y"], name="last"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n, 8, 8]) for name, n in (("x", 3), ("y", 4))]
    top = numpy_helper.from_array(np.array(0.5, np.float32), "top")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight, top])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="a test")
    onnx.save(made, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_nodes_are_read_as_the_onnx_library_reads_them(model: Path) -> None:
    expected = [
        (node.name, node.op_type, tuple(filter(None, node.input)), tuple(filter(None, node.output)))
        for node in onnx.load(model).graph.node
    ]
    assert len(expected) == 4
    assert executed_nodes(str(model)) == expected


@pytest.mark.parametrize("content", [b"nothing at all", b"\x3a\xff\xff\xff\xff\x0f", b"\x3a\x05\x0a\x03\x0a\x01"])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"broken\.onnx is no ONNX file"):
        executed_nodes(str(path))


def test_nodes_without_names_are_told_apart(model: Path) -> None:
    with OnnxRuntime().open(str(model), Options()) as session:
        session.prepare(np.zeros((1, 3, 8, 8), np.float32))
        first, again = session.profile(4), session.profile(2)
    types = [operator.type for operator in first.operators]
    assert types.count("Sin") == 2
    assert "Conv" in "".join(types)
    assert len({operator.name for operator in first.operators}) == len(types)
    sines = [operator for operator in first.operators if operator.type == "Sin"]
    assert sines[1].inputs == sines[0].outputs, "in the order of execution"
    assert [op.type for op in again.operators] == types, "a session can be profiled again"
    assert all(len(op.samples_ms) == 2 for op in again.operators)


def test_the_machine_s_limits() -> None:
    assert cache_bytes() >= 0
    found = copy_bandwidth(2)
    assert found["bytes_per_second"] > 1e8
    product = matrix_product(256, 1)
    assert product["macs_per_second"] > 1e8
    assert product["threads"] in (1, None)
