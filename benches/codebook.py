"""Weight sharing and powers of two on ResNet-20: the file as it is on disk, its theory, and the accuracy.

    python benches/codebook.py [--shared ../shared/data] [--work runs/codebook] [--epochs 1]

K-means with 32 and 16 centroids, powers of two in 5 bits; centroids, and the weights that are not fixed yet, are trained for a
few epochs, as two cores allow. Figures on the 5 000 test copies, paired with the float network's. ``archive`` is the size of
program.pt2; ``theory`` what the entropy of the codes gives, with the tables. Results go to benches/results/codebook.json.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from typing import Any

import networks

import edgekit
from edgekit.bundle import versions
from edgekit.evaluation import evaluate, paired_difference
from edgekit.files import write_json

RESULT = Path(__file__).parent / "results" / "codebook.json"


def main() -> None:
    """Compresses, evaluates and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/codebook"))
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    original, data = networks.cifar_resnet(arguments.shared)
    reference = evaluate(original.module(), data.test, original.preprocessing)
    floats = sum(p.numel() for p in original.module().parameters()) * 4
    steps = {
        "share-32": f"share-weights:clusters=32,epochs={arguments.epochs}",
        "share-16": f"share-weights:clusters=16,epochs={arguments.epochs}",
        "powers-of-two-5-bits": f"powers-of-two:bits=5,epochs={arguments.epochs}",
    }
    rows: dict[str, Any] = {}
    for name, step in steps.items():
        small = edgekit.compress(original, step, data, output=arguments.work / name)
        found = evaluate(small.module(), data.test, small.preprocessing)
        difference, error = paired_difference(reference, found)
        layers = small.steps[-1]["report"]["layers"]
        path = arguments.work / name / "program.pt2"
        with zipfile.ZipFile(path) as archive:
            stored = sum(entry.compress_size for entry in archive.infolist() if "/weights/" in entry.filename)
        (file,) = edgekit.export(small, "onnx", data=data, images=1000)
        rows[name] = {
            "step": step,
            "top1": found.top1,
            "drop": 0.0 - difference,
            "standard_error": error,
            "float_bytes": floats,
            "theory_bytes": sum(row["weights"] * row["entropy_bits"] / 8 for row in layers),
            "stored_weights_bytes": stored,
            "archive_bytes": path.stat().st_size,
            "onnx_bytes": file.parity["size_bytes"],
        }
        print(f"{name}: {found.top1:.2f} ({difference:+.2f} ± {error:.2f}), {stored} of {floats} bytes", flush=True)
        write_json(RESULT, {"float_top1": reference.top1, "rows": rows, "versions": versions()})


if __name__ == "__main__":
    main()
