"""Weight pruning on ResNet-20: zeros, points lost, and what it takes on disk against what theory says.

    python benches/prune_weights.py [--shared ../shared/data] [--work runs/prune-weights] [--sparsity 0.8 --sparsity 0.9]

The share of zeros rises for ``--ramp`` epochs, then the rest is fine-tuned for ``--epochs``: few, as two cores allow. Killed,
the same command goes on. Selection is on the validation images, figures on the 5 000 test copies, paired with the float
network's. ``theory`` is four bytes for each weight that is left and the entropy of the mask. Results go to
benches/results/prune_weights.json.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import networks
from progress import log

import edgekit
from edgekit.bundle import versions
from edgekit.evaluation import evaluate, paired_difference
from edgekit.files import write_json

RESULT = Path(__file__).parent / "results" / "prune_weights.json"


def main() -> None:
    """Prunes, evaluates and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/prune-weights"))
    parser.add_argument("--sparsity", type=float, action="append")
    parser.add_argument("--ramp", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    original, data = networks.cifar_resnet(arguments.shared)
    reference = evaluate(original.module(), data.test, original.preprocessing)
    (whole,) = edgekit.export(original, "onnx", data=data, images=1000, output=arguments.work / "whole")
    floats = sum(p.numel() for p in original.module().parameters()) * 4
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": {}}
    for sparsity in arguments.sparsity or (0.8, 0.9):
        step = f"prune-weights:sparsity={sparsity:g},ramp={arguments.ramp},epochs={arguments.epochs}"
        path = arguments.work / f"{100 * sparsity:g}"
        small = edgekit.compress(original, step, data, output=path, progress=log)
        result = evaluate(small.module(), data.test, small.preprocessing)
        difference, error = paired_difference(reference, result)
        report = small.steps[-1]["report"]
        sparse = sum(row["weights"] * row["bits_per_weight"] / 8 for row in report["layers"])
        others = floats - 4 * sum(row["weights"] for row in report["layers"])
        with zipfile.ZipFile(path / "program.pt2") as archive:
            stored = sum(entry.compress_size for entry in archive.infolist() if "/weights/" in entry.filename)
            stored += sum(entry.compress_size for entry in archive.infolist() if "/constants/" in entry.filename)
        (file,) = edgekit.export(small, "onnx", data=data, images=1000)
        found["rows"][f"{sparsity:g}"] = {
            "step": step,
            "zeros": report["zeros"],
            "top1": result.top1,
            "drop": 0.0 - difference,
            "standard_error": error,
            "float_bytes": floats,
            "theory_bytes": sparse + others,
            "stored_weights_bytes": stored,
            "onnx_bytes": file.parity["size_bytes"],
            "float_onnx_bytes": whole.parity["size_bytes"],
            "history": report["finetune"]["history"],
        }
        print(f"{step}: {result.top1:.2f} ({difference:+.2f} ± {error:.2f}), {stored} of {floats} bytes", flush=True)
        write_json(RESULT, {**found, "float_top1": reference.top1, "versions": versions()})


if __name__ == "__main__":
    main()
