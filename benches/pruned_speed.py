"""What fewer MACs buy on the clock: grids of 1 and 16 channels, and the one that the stopwatch finds.

    python benches/pruned_speed.py [--shared ../shared/data] [--work runs/pruned-speed] [--rounds 5] [--case resnet56,2.1 …]

ResNet-56 for CIFAR-10 with 2, 2.1, 2.5 and 3.3 times fewer MACs and MobileNetV2 at 224 with half of them (random weights: time
depends on shapes). For each runtime, the grid that ``align`` finds there is measured once more beside the others and the
original, with one and two threads, interleaved. Results go to benches/results/pruned_speed.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import networks
import numpy as np

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.compress.prune.channels import PruneChannels, prune
from edgekit.compress.prune.stopwatch import Stopwatch, align
from edgekit.cost import cost_of
from edgekit.errors import StepError
from edgekit.files import write_json
from edgekit.runtimes.measure import Plan

RUNTIMES = {"onnx": "onnxruntime", "tflite": "tflite", "ncnn": "ncnn"}
RESULT = Path(__file__).parent / "results" / "pruned_speed.json"
CASES = ("resnet56,2", "resnet56,2.1", "resnet56,2.5", "resnet56,3.3", "mobilenet-v2,2")


def main() -> None:
    """Cuts, exports, measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/pruned-speed"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", action="append", choices=CASES, metavar="NETWORK,TIMES_FEWER")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {"cases": {}}
    for case in arguments.case or CASES:
        name, fewer = case.split(",")
        original = networks.cifar_resnet(arguments.shared, 56)[0] if name == "resnet56" else edgekit.load(f"zoo:{name}")
        work = arguments.work / case.replace(",", "-")
        found["cases"][case] = {"network": name, "fewer": float(fewer)} | _case(
            original, 1 / float(fewer), work, arguments.rounds
        )
        write_json(RESULT, {**found, "rounds": arguments.rounds, "versions": versions()})
        print(case, json.dumps(found["cases"][case]["rows"], indent=1), flush=True)


def _case(original: Bundle, macs: float, work: Path, rounds: int) -> dict[str, Any]:
    x = np.random.default_rng(0).standard_normal((4, *original.input_shape), dtype=np.float32)

    def cut(share: float, multiple: int) -> Bundle | None:
        module = original.module()
        try:
            prune(module, PruneChannels(macs=share, multiple=multiple, epochs=0))
        except StepError:
            return None
        return original.with_module(module)

    def kept(bundle: Bundle, name: str) -> Path:
        bundle.with_samples(x, np.zeros(len(x), np.int64)).save(work / name)
        edgekit.export(Bundle.load(work / name), list(RUNTIMES))
        return work / name

    chosen = {format: align(Stopwatch(original, format), macs, cut) for format in RUNTIMES}
    grids = sorted({1, 16, *(multiple for multiple, _ in chosen.values())})
    made = {multiple: bundle for multiple in grids if (bundle := cut(macs, multiple)) is not None}
    folders = [kept(original, "original"), *(kept(bundle, f"multiple-{m}") for m, bundle in made.items())]
    measured = edgekit.bench(
        folders, runtimes=list(RUNTIMES.values()), threads=(1, 2), baseline=folders[0], plan=Plan(rounds=rounds)
    )
    whole = cost_of(original.module()).macs
    rows: dict[str, Any] = {
        str(m): {"macs_ratio": cost_of(bundle.module()).macs / whole, "times": {}} for m, bundle in made.items()
    }
    for row in measured.rows:
        if row.comparison is not None:
            name, cell = row.measurement.cell.label.split("/")[0], row.measurement.cell
            compared = row.comparison
            rows[name.removeprefix("multiple-")]["times"][f"{cell.runtime} {cell.threads}"] = [
                compared.ratio,
                compared.low,
                compared.high,
                compared.verdict,
            ]
    return {
        "chosen": {RUNTIMES[f]: multiple for f, (multiple, _) in chosen.items()},
        "trials": {RUNTIMES[f]: [trial.to_dict() for trial in trials] for f, (_, trials) in chosen.items()},
        "rows": rows,
        "target": measured.target,
    }


if __name__ == "__main__":
    main()
