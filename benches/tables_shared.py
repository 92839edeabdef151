"""What the tables share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAMES = {
    "onnxruntime": "ONNX Runtime",
    "tflite": "LiteRT",
    "ncnn": "ncnn",
    "torch": "torch (eager)",
    "openvino": "OpenVINO",
}


def result(name: str) -> dict[str, Any]:
    """One file of results."""
    found: dict[str, Any] = json.loads((ROOT / "benches" / "results" / f"{name}.json").read_text())
    return found


def machine(bench: dict[str, Any]) -> str:
    """What was measured on."""
    target, plan = bench["target"], bench["plan"]
    return f"{target['cpu']}, one thread, {plan['rounds']} interleaved rounds"


def points(value: float) -> str:
    return f"{value + 0.0:.2f}"
