"""Whether zeros make LiteRT faster: MobileNet V1, a chain for XNNPACK's sparse path, with 85 % zeros in its 1×1 convolutions.

    python benches/sparse_speed.py [--work runs/sparse-speed] [--sparsity 0.85] [--rounds 8]

The network is what that path asks for: a 3×3 convolution of stride 2 on 3 channels, then depthwise 3×3 and 1×1 convolutions
with ReLU, a mean over space; the file holds the 1×1 weights sparse (DENSIFY). Random weights: time does not depend on
them. Results go to benches/results/sparse_speed.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import edgekit
from edgekit.bundle import versions
from edgekit.files import write_json
from edgekit.runtimes.measure import Plan

RESULT = Path(__file__).parent / "results" / "sparse_speed.json"
DENSE = (
    "keep=[features.0*,features.1.*,features.3.*,features.5.*,features.7.*,features.9.*,features.11.*,features.13.*,"
)
DENSE += "features.15.*,features.17.*,features.19.*,features.21.*,features.23.*,features.25.*,classifier]"


def main() -> None:
    """Prunes, exports, measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/sparse-speed"))
    parser.add_argument("--sparsity", type=float, default=0.85)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    dense = edgekit.load("zoo:mobilenet-v1")
    sparse = edgekit.compress(dense, f"prune-weights:sparsity={arguments.sparsity:g},epochs=0,{DENSE}")
    x = np.random.default_rng(0).standard_normal((4, *dense.input_shape), dtype=np.float32)
    files = []
    for name, bundle in {"dense": dense, "sparse": sparse}.items():
        ready = bundle.with_samples(x, np.zeros(len(x), np.int64))
        files += edgekit.export(ready, "tflite", output=arguments.work / name)
    measured = edgekit.bench(
        [file.path for file in files], baseline=files[0].path, plan=Plan(rounds=arguments.rounds), threads=(1,)
    )
    compared = measured.rows[1].comparison
    assert compared is not None
    found = {
        "sparsity": arguments.sparsity,
        "zeros": sparse.steps[-1]["report"]["zeros"],
        "size_bytes": [file.parity["size_bytes"] for file in files],
        "p50_ms": [row.measurement.percentile(50) for row in measured.rows],
        "comparison": [compared.ratio, compared.low, compared.high, compared.verdict],
        "target": measured.target,
        "rounds": arguments.rounds,
        "versions": versions(),
    }
    write_json(RESULT, found)
    print({key: found[key] for key in ("size_bytes", "p50_ms", "comparison")})


if __name__ == "__main__":
    main()
