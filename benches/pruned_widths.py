"""Why prune-channels keeps widths on a grid: ResNet-20 at half of its MACs, cut in multiples of 1, 4, 8 and 16 channels.

    python benches/pruned_widths.py [--shared ../shared/data] [--work runs/pruned-widths] [--rounds 8]

Nothing is trained: latency depends on shapes, not on weights. Results go to benches/results/pruned_widths.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.compress.prune.channels import PruneChannels, prune
from edgekit.cost import cost_of
from edgekit.files import write_json
from edgekit.runtimes.measure import Plan

FORMATS = ("onnx", "tflite", "ncnn")
MULTIPLES = (1, 4, 8, 16)
RESULT = Path(__file__).parent / "results" / "pruned_widths.json"


def main() -> None:
    """Prunes, exports, measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/pruned-widths"))
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    original = edgekit.load("zoo:resnet20-cifar", weights=arguments.shared / "weights" / "resnet20_jpeg.safetensors")
    x = np.random.default_rng(0).standard_normal((16, 3, 32, 32), dtype=np.float32)

    def kept(bundle: Bundle, name: str) -> Path:
        saved = bundle.with_samples(x, np.zeros(len(x), np.int64)).save(arguments.work / name)
        edgekit.export(saved, FORMATS)
        return arguments.work / name

    folders = [kept(original, "original")]
    whole = cost_of(original.module())
    rows: dict[str, Any] = {}
    for multiple in MULTIPLES:
        module = original.module()
        prune(module, PruneChannels(macs=0.5, multiple=multiple, epochs=0))
        bundle = original.with_module(module)
        cost = cost_of(bundle.module())
        name = f"multiple-{multiple}"
        rows[name] = {
            "macs_ratio": cost.macs / whole.macs,
            "parameters": cost.parameters,
            "widths": [layer.output_shape[1] for layer in cost.layers if layer.macs],
        }
        folders.append(kept(bundle, name))
    runtimes = ("onnxruntime", "tflite", "ncnn")
    measured = edgekit.bench(folders, runtimes=runtimes, baseline=folders[0], plan=Plan(rounds=arguments.rounds))
    for row in measured.rows:
        if row.comparison is not None:
            name, compared = row.measurement.cell.label.split("/")[0], row.comparison
            rows[name][row.measurement.cell.runtime] = [compared.ratio, compared.low, compared.high, compared.verdict]
    write_json(RESULT, {"rows": rows, "bench": measured.to_dict(raw=False), "versions": versions()})
    for name, row in rows.items():
        print(name, {key: row[key] for key in ("macs_ratio", *runtimes)})


if __name__ == "__main__":
    main()
