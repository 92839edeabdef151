"""Whether zeros make LiteRT faster: MobileNet V1 and V2 with 85 % zeros in their 1×1 convolutions.

    python benches/sparse_speed.py [--work runs/sparse-speed] [--sparsity 0.85] [--rounds 8]
        [--network mobilenet-v1 …] [--target emulated:cortex-a76 …]

The networks are what XNNPACK's sparse path asks for: a 3×3 convolution of stride 2 on 3 channels, then depthwise 3×3 and
1×1 convolutions with ReLU, a mean over space; the files hold the 1×1 weights sparse (DENSIFY). Random weights: time does not
depend on them.
XNNPACK has sparse kernels for ARM, and on x86 for processors without AVX alone: here the dense ones are timed, and on each
target, an emulated ARM CPU, instructions are counted. Results go to benches/results/sparse_speed.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.export.tflite_sparse import sparse_path
from edgekit.files import write_json
from edgekit.program import aten, attribute, layer_name
from edgekit.runtimes.measure import Plan

RESULT = Path(__file__).parent / "results" / "sparse_speed.json"
NETWORKS = ("mobilenet-v1", "mobilenet-v2")
TARGETS = ("emulated:cortex-a53", "emulated:cortex-a76")


def main() -> None:
    """Prunes, exports, measures, counts and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/sparse-speed"))
    parser.add_argument("--sparsity", type=float, default=0.85)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--target", action="append")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {"networks": {}}
    for name in arguments.network or NETWORKS:
        found["networks"][name] = _network(name, arguments)
        write_json(
            RESULT, {**found, "sparsity": arguments.sparsity, "rounds": arguments.rounds, "versions": versions()}
        )


def _network(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    dense = edgekit.load(f"zoo:{name}")
    step = f"prune-weights:sparsity={arguments.sparsity:g},scope=layer,epochs=0,keep=[{','.join(_others(dense))}]"
    sparse = edgekit.compress(dense, step)
    x = np.random.default_rng(0).standard_normal((4, *dense.input_shape), dtype=np.float32)
    files = []
    for kind, bundle in {"dense": dense, "sparse": sparse}.items():
        ready = bundle.with_samples(x, np.zeros(len(x), np.int64))
        files += edgekit.export(ready, "tflite", output=arguments.work / name / kind)
    paths = [file.path for file in files]
    path = sparse_path(paths[1].read_bytes())
    measured = edgekit.bench(paths, baseline=paths[0], plan=Plan(rounds=arguments.rounds), threads=(1,))
    compared = measured.rows[1].comparison
    assert compared is not None
    row: dict[str, Any] = {
        "zeros": sparse.steps[-1]["report"]["zeros"],
        "sparse_layers": [len(path.layers), len(path.layers) + len(path.dense)],
        "size_bytes": [file.parity["size_bytes"] for file in files],
        "p50_ms": [each.measurement.percentile(50) for each in measured.rows],
        "comparison": [compared.ratio, compared.low, compared.high, compared.verdict],
        "target": measured.target,
        "instructions": {},
    }
    for target in arguments.target or TARGETS:
        counted = edgekit.bench(paths, target=target)
        row["instructions"][target] = [each.to_dict(raw=False)["instructions"] for each in counted.rows]
        print(name, target, row["instructions"][target], flush=True)
    print(name, {key: row[key] for key in ("sparse_layers", "size_bytes", "p50_ms", "comparison")}, flush=True)
    return row


def _others(bundle: Bundle) -> list[str]:
    """All layers with weights but the 1×1 convolutions."""
    module = bundle.module()
    found = []
    for node in module.graph.nodes:
        if node.target is aten.conv2d.default:
            kernel = attribute(module, str(node.args[1].target)).shape[2:]
            if tuple(kernel) != (1, 1):
                found.append(layer_name(node))
        elif node.target is aten.linear.default:
            found.append(layer_name(node))
    return found


if __name__ == "__main__":
    main()
