"""What is said of int8 before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.runtimes.forecast import forecast
from edgekit.runtimes.runtime import SUFFIXES


def _verdicts(machine: str, *flags: str, depthwise: float = 0.0) -> dict[str, str]:
    return {found.runtime: found.verdict for found in forecast(machine, flags, depthwise)}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_runtime_that_a_file_runs_in_unasked_is_told_of_with_a_reason(machine: str) -> None:
    found = forecast(machine, (), 0.0)
    assert {one.runtime for one in found} == set(SUFFIXES.values())
    assert all(one.reason for one in found)


def test_instructions_decide() -> None:
    assert _verdicts("x86_64", "avx2", "avx512_vnni")["onnxruntime"] == "faster"
    assert _verdicts("x86_64", "avx2")["onnxruntime"] == "little"
    assert _verdicts("x86_64")["onnxruntime"] == "slower"
    assert _verdicts("aarch64", "asimd")["tflite"] == "little"
    assert _verdicts("aarch64", "asimd", "asimddp")["tflite"] == "faster"
    assert _verdicts("aarch64", "asimd", "asimdhp")["ncnn"] == "little"


def test_depthwise_layers_are_named_for_ncnn_on_x86() -> None:
    found = {one.runtime: one for one in forecast("x86_64", {"avx2", "avx512_vnni"}, 0.1)}
    assert "10 % of the MACs are depthwise" in found["ncnn"].reason
    assert _verdicts("x86_64", "avx2", "avx512_vnni")["ncnn"] == "little"
    assert _verdicts("x86_64", "avx2")["ncnn"] == "unknown"
    large = {one.runtime: one.verdict for one in forecast("x86_64", {"avx2", "avx512_vnni"}, 0.0, 4_000_000_000)}
    assert large["ncnn"] == "faster"


def test_what_was_measured_does_not_contradict() -> None:
    """The figures of benches/int8_speed.py, on a CPU with VNNI: nothing that is called faster was slower."""
    found = json.loads((Path(__file__).parents[2] / "benches" / "results" / "int8_speed.json").read_text())
    for network in found["networks"].values():
        target = network["target"]
        verdicts = {
            one.runtime: one.verdict for one in forecast(target["machine"], target["cpu_flags"], 0.0, network["macs"])
        }
        for kind, runtime in (("onnx", "onnxruntime"), ("tflite", "tflite"), ("ncnn", "ncnn")):
            ratio = network["latency"][f"{kind}: edgekit int8"]["comparison"]["ratio"]
            assert {"faster": ratio < 0.8, "little": 0.6 < ratio < 1.2, "slower": ratio > 1}[verdicts[runtime]]


def test_an_unknown_machine_is_called_unknown() -> None:
    assert set(_verdicts("riscv64").values()) == {"unknown"}
