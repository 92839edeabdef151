"""Where the time of a network goes in each runtime, by kind of layer, and how near each kind is to the machine's roofline.

    python benches/layers.py [--work runs/layers] [--runs 100] [--network resnet20-cifar …]

Random weights: time depends on shapes. One thread. Results go to benches/results/layers.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from torch.fx import GraphModule

import edgekit
from edgekit.benchmark.layers import profile_layers
from edgekit.benchmark.layers_result import LayerTable
from edgekit.bundle import Bundle, versions
from edgekit.files import write_json

NETWORKS = ("resnet20-cifar", "mobilenet-v2")
RUNTIMES = {"onnx": "onnxruntime", "tflite": "tflite", "ncnn": "ncnn"}
RESULT = Path(__file__).parent / "results" / "layers.json"


def main() -> None:
    """Exports, profiles and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/layers"))
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--network", action="append")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(arguments.result.read_text()) if arguments.result.is_file() else {"networks": {}}
    for name in arguments.network or NETWORKS:
        original = edgekit.load(f"zoo:{name}")
        x = np.random.default_rng(0).standard_normal((4, *original.input_shape), dtype=np.float32)
        original.with_samples(x, np.zeros(len(x), np.int64)).save(arguments.work / name)
        bundle = Bundle.load(arguments.work / name)
        edgekit.export(bundle, list(RUNTIMES))
        result = profile_layers(bundle, runtimes=list(RUNTIMES.values()), runs=arguments.runs)
        found["networks"][name] = _summary(result.tables[0], bundle.module())
        found |= {"target": result.target, "roofline": result.roofline.to_dict(), "runs": arguments.runs}
        write_json(arguments.result, {**found, "warnings": list(result.warnings), "versions": versions()})
        print(name, json.dumps(found["networks"][name], indent=1), flush=True)


def _summary(table: LayerTable, module: GraphModule) -> dict[str, Any]:
    """For each kind of layer its MACs, and in each runtime its time and what the roofline allows, summed."""
    weights = {node.name: _shape(node) for node in module.graph.nodes}
    kinds: dict[str, dict[str, Any]] = {}
    for row in table.rows:
        kind = kinds.setdefault(_kind(row.op, row.path, weights.get(row.node)), {"macs": 0, "runtimes": {}})
        kind["macs"] += row.macs
        for column, cell in zip(table.columns, row.cells, strict=True):
            times = kind["runtimes"].setdefault(column.runtime, {"ms": 0.0, "attainable_ms": 0.0})
            if cell is not None:
                times["ms"] += max(cell.ms, 0.0)
                times["attainable_ms"] += cell.attainable_ms or 0.0
    wholes = {column.runtime: {"whole_ms": column.whole_ms, "sum_ms": column.sum_ms} for column in table.columns}
    return {"kinds": kinds, "runtimes": wholes}


def _shape(node: Any) -> tuple[int, ...] | None:
    weight = node.args[1].meta.get("val") if len(node.args) > 1 and hasattr(node.args[1], "meta") else None
    return None if weight is None else tuple(weight.shape)


def _kind(op: str, path: str, weight: tuple[int, ...] | None) -> str:
    if op == "conv2d.default" and weight is not None:
        shape = f"{weight[2]}×{weight[3]}"
        return f"depthwise {shape}" if weight[1] == 1 and weight[0] > 1 else f"convolution {shape}"
    return (
        "linear" if op == "linear.default" else "layout, quantize" if path.startswith("(") else "sums, pooling, shapes"
    )


if __name__ == "__main__":
    main()
