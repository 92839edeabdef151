"""What is said of int8 before any work."""

from __future__ import annotations

import pytest

from edgekit.runtimes.forecast import forecast
from edgekit.runtimes.runtime import RUNTIMES


def _verdicts(machine: str, *flags: str, depthwise: float = 0.0) -> dict[str, str]:
    return {found.runtime: found.verdict for found in forecast(machine, flags, depthwise)}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_runtime_is_told_of_with_a_reason(machine: str) -> None:
    found = forecast(machine, (), 0.0)
    assert {one.runtime for one in found} == set(RUNTIMES)
    assert all(one.reason for one in found)


def test_instructions_decide() -> None:
    assert _verdicts("x86_64", "avx2", "avx512_vnni")["onnxruntime"] == "faster"
    assert _verdicts("x86_64", "avx2")["onnxruntime"] == "little"
    assert _verdicts("x86_64")["onnxruntime"] == "slower"
    assert _verdicts("aarch64", "asimd")["tflite"] == "little"
    assert _verdicts("aarch64", "asimd", "asimddp")["tflite"] == "faster"
    assert _verdicts("aarch64", "asimd", "asimdhp")["ncnn"] == "little"


def test_depthwise_layers_decide_for_ncnn_on_x86() -> None:
    assert _verdicts("x86_64", "avx2", "avx512_vnni", depthwise=0.1)["ncnn"] == "slower"
    assert _verdicts("x86_64", "avx2", "avx512_vnni", depthwise=0.0)["ncnn"] == "little"


def test_an_unknown_machine_is_called_unknown() -> None:
    assert set(_verdicts("riscv64").values()) == {"unknown"}
