"""What horizontal fusion buys on the clock: sibling layers of GoogLeNet merged into one, beside the network as it is.

    python benches/fusion.py [--work runs/fusion] [--rounds 5] [--seconds 0.4] [--network googlenet …]

Random weights: time depends on shapes. Batch norms are folded either way, by the export. Each runtime with one and two
threads, interleaved. Results go to benches/results/fusion.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.compress.rewrite.step import Rewrite
from edgekit.compress.step import Context
from edgekit.files import write_json
from edgekit.runtimes.measure import Plan

RUNTIMES = {"onnx": "onnxruntime", "tflite": "tflite", "ncnn": "ncnn"}
RESULT = Path(__file__).parent / "results" / "fusion.json"


def main() -> None:
    """Rewrites, exports, measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/fusion"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--network", action="append")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    plan = Plan(rounds=arguments.rounds, seconds=arguments.seconds)
    found: dict[str, Any] = json.loads(arguments.result.read_text()) if arguments.result.is_file() else {"networks": {}}
    for name in arguments.network or ("googlenet",):
        found["networks"][name] = _network(edgekit.load(f"zoo:{name}"), arguments.work / name, plan)
        write_json(arguments.result, {**found, "rounds": plan.rounds, "versions": versions()})
        print(name, json.dumps(found["networks"][name]["times"], indent=1), flush=True)


def _network(original: Bundle, work: Path, plan: Plan) -> dict[str, Any]:
    x = np.random.default_rng(0).standard_normal((4, *original.input_shape), dtype=np.float32)

    def kept(bundle: Bundle, name: str) -> Path:
        bundle.with_samples(x, np.zeros(len(x), np.int64)).save(work / name)
        edgekit.export(Bundle.load(work / name), list(RUNTIMES))
        return work / name

    merged, report = Rewrite().apply(original, Context())
    folders = [kept(original, "original"), kept(merged, "merged")]
    measured = edgekit.bench(folders, runtimes=list(RUNTIMES.values()), threads=(1, 2), baseline=folders[0], plan=plan)
    times = {
        f"{row.measurement.cell.runtime} {row.measurement.cell.threads}": [
            row.comparison.ratio,
            row.comparison.low,
            row.comparison.high,
            row.comparison.verdict,
        ]
        for row in measured.rows
        if row.comparison is not None
    }
    milliseconds = {
        f"{row.measurement.cell.runtime} {row.measurement.cell.threads}": row.measurement.percentile(50)
        for row in measured.rows
        if row.comparison is None
    }
    kept_of = ("siblings", "splits_removed", "operators", "max_abs_difference", "largest_output")
    return {
        "rewrite": {name: report[name] for name in kept_of},
        "original_ms": milliseconds,
        "times": times,
        "target": measured.target,
    }


if __name__ == "__main__":
    main()
