"""Calibration methods side by side on the validation images: ResNet-20 and ResNet-56, CIFAR-10, int8 as simulated.

    python benches/calibration.py [--shared ../shared/data] [--images 2000] [--depth 20 --depth 56]

Nothing here sees the test images: this is where the defaults of `quantize` were chosen. SQNR is of the logits against
the float network's; the drop is paired, in points of top-1. Results go to benches/results/calibration.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import edgekit
from edgekit.bundle import versions
from edgekit.compress.quantize.calibration.observer import OBSERVERS
from edgekit.evaluation import evaluate, paired_difference, sqnr
from edgekit.files import write_json

RESULT = Path(__file__).parent / "results" / "calibration.json"


def main() -> None:
    """Quantizes with each method, evaluates and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--depth", type=int, action="append", choices=(20, 56))
    arguments = parser.parse_args()
    data = edgekit.load_data(f"cifar10:{arguments.shared / 'sets' / 'cifar10_jpegq75_train50k.npz'}")
    results: dict[str, Any] = {}
    for depth in arguments.depth or (20, 56):
        weights = arguments.shared / "weights" / f"resnet{depth}_jpeg.safetensors"
        bundle = edgekit.load(f"zoo:resnet{depth}-cifar", weights=weights)
        reference = evaluate(bundle.module(), data.validation, bundle.preprocessing, limit=arguments.images)
        rows: dict[str, Any] = {}
        for method in OBSERVERS:
            for corrected in (False, True):
                step = f"quantize:calibration={method},bias_correction={str(corrected).lower()}"
                small = edgekit.compress(bundle, step, data)
                found = evaluate(small.module(), data.validation, small.preprocessing, limit=arguments.images)
                difference, error = paired_difference(reference, found)
                noise = sqnr(reference.logits, found.logits)
                rows[step] = {"sqnr_db": noise, "difference": difference, "standard_error": error}
                print(f"resnet{depth} {step}: {noise:.2f} dB, {difference:+.2f} ± {error:.2f} points", flush=True)
        results[f"resnet{depth}-cifar"] = {"validation_images": len(reference.labels), "rows": rows}
    write_json(RESULT, {"networks": results, "versions": versions()})


if __name__ == "__main__":
    main()
