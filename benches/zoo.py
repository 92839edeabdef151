"""Every network of the zoo at its full size: counted, exported to three formats with proof, and timed in every runtime.

    python benches/zoo.py [--work runs/zoo] [--rounds 5] [--seconds 0.4] [--network resnet18 …] [--again]

Weights are random (drawn so that the signal lives): figures are sizes, times and parity, not accuracy. The files of a network
are measured in interleaved rounds beside its torch program and deleted afterwards. Killed, the same command goes on with the
networks that are missing in benches/results/zoo.json; ``--again`` repeats the ones that are named.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgekit
from edgekit import zoo
from edgekit.bundle import versions
from edgekit.cost import cost_of
from edgekit.errors import EdgekitError
from edgekit.files import write_json
from edgekit.runtimes.measure import Plan
from edgekit.testing.published import PUBLISHED

FORMATS = ("onnx", "tflite", "ncnn")
SAMPLES = 8
RESULT = Path(__file__).parent / "results" / "zoo.json"


def main() -> None:
    """Goes through the networks and writes the result after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="Least time of the timed runs in each round.")
    parser.add_argument("--network", action="append", choices=tuple(zoo.ENTRIES))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(arguments.result.read_text()) if arguments.result.is_file() else {"networks": {}}
    for name in arguments.network or zoo.ENTRIES:
        if name in found["networks"] and not arguments.again:
            continue
        began = time.monotonic()
        row = _network(name, arguments.work / name, Plan(rounds=arguments.rounds, runs=3, seconds=arguments.seconds))
        found["networks"][name] = row
        order = {key: found["networks"][key] for key in zoo.ENTRIES if key in found["networks"]}
        write_json(arguments.result, {"networks": order, "samples": SAMPLES, "versions": versions()})
        print(f"{name}: {_line(row)}; {time.monotonic() - began:.0f} s", flush=True)


def inputs(shape: tuple[int, ...], count: int) -> np.ndarray:
    """Smooth seeded inputs, shape (count, …): noise would hide errors of layout and order."""
    generator = torch.Generator().manual_seed(1)
    channels = shape[0] if len(shape) == 3 else 1
    coarse = torch.randn(count, channels, 7, 7, generator=generator)
    x = torch.nn.functional.interpolate(coarse, size=shape[-2:], mode="bilinear")
    return x.reshape(count, *shape).numpy()


def _network(name: str, work: Path, plan: Plan) -> dict[str, Any]:
    entry = zoo.get(name)
    shutil.rmtree(work, ignore_errors=True)
    bundle = edgekit.load(f"zoo:{name}")
    cost = cost_of(bundle.module())
    x = inputs(bundle.input_shape, SAMPLES)
    bundle = bundle.with_samples(x, np.zeros(SAMPLES, np.int64)).save(work)
    published = PUBLISHED.get(name)
    row: dict[str, Any] = {
        "summary": entry.summary,
        "paper": entry.paper,
        "input_shape": list(entry.input_shape),
        "parameters": cost.parameters,
        "macs": cost.macs,
        "memory_access": cost.memory_access,
        "published": asdict(published) if published else None,
        "exports": {},
    }
    for kind in FORMATS:
        try:
            (file,) = edgekit.export(bundle, kind)
        except EdgekitError as error:
            row["exports"][kind] = {"refused": str(error)}
            continue
        agreement = file.parity["agreement"]
        row["exports"][kind] = {
            "size_bytes": file.parity["size_bytes"],
            "max_abs": agreement["max_abs"],
            "largest_output": _largest(bundle, x),
            "sqnr_db": agreement["sqnr_db"],
        }
    measured = edgekit.bench(work, plan=plan)
    row["latency"] = {
        r.measurement.cell.runtime: {
            "p50_ms": r.measurement.percentile(50),
            "p90_ms": r.measurement.percentile(90),
            "rounds_p50_ms": [float(np.median(times)) for times in r.measurement.rounds_ms],
        }
        if not r.measurement.error
        else {"failed": r.measurement.error}
        for r in measured.rows
    }
    row |= {"target": measured.target, "plan": asdict(plan), "warnings": list(measured.warnings)}
    shutil.rmtree(work)
    return row


def _largest(bundle: edgekit.Bundle, x: np.ndarray) -> float:
    with torch.no_grad():
        return float(bundle.module()(torch.from_numpy(x[:1])).abs().max())


def _line(row: dict[str, Any]) -> str:
    parts = [f"{row['parameters'] / 1e6:.2f} M, {row['macs'] / 1e6:.1f} M MACs"]
    for kind, found in row["exports"].items():
        parts.append(f"{kind} refused" if "refused" in found else f"{kind} {found['max_abs']:.1e}")
    times = [f"{runtime} {t['p50_ms']:.3g}" for runtime, t in row["latency"].items() if "p50_ms" in t]
    return f"{', '.join(parts)}; ms: {', '.join(times)}"


if __name__ == "__main__":
    main()
