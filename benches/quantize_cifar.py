"""Post-training quantization of ResNet-20 and ResNet-56 on CIFAR-10, as deployed in every format.

    python benches/quantize_cifar.py [--shared ../shared/data] [--work runs/quantize-cifar] [--images 5000]

INT8 by the default settings; for ResNet-20 also 4-bit and 3-bit weights, rounded to nearest and by AdaRound. Calibrated on
training images; every figure is on the 5 000 test copies, paired with the float network's, with its standard error. Results
go to benches/results/quantize_cifar.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import edgekit
from edgekit.bundle import versions
from edgekit.cost import cost_of
from edgekit.evaluation import evaluate, paired_difference
from edgekit.files import write_json
from edgekit.runtimes.accuracy import evaluate_file
from edgekit.runtimes.targets.target import target_for

FORMATS = ("onnx", "tflite", "ncnn")
STEPS = {
    20: {
        "int8": "quantize",
        "w4": "quantize:weight_bits=4",
        "w4-adaround": "quantize:weight_bits=4,rounding=adaround,images=1024",
        "w3-adaround": "quantize:weight_bits=3,rounding=adaround,images=1024",
    },
    56: {"int8": "quantize"},
}
RESULT = Path(__file__).parent / "results" / "quantize_cifar.json"


def main() -> None:
    """Quantizes, exports, evaluates and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/quantize-cifar"))
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument(
        "--format", action="append", choices=FORMATS, help="Export to these alone; the rest stays as it was."
    )
    arguments = parser.parse_args()
    data = edgekit.load_data(f"cifar10:{arguments.shared / 'sets' / 'cifar10_jpegq75_train50k.npz'}")
    results: dict[str, Any] = json.loads(RESULT.read_text())["networks"] if arguments.format else {}
    for depth, steps in STEPS.items():
        weights = arguments.shared / "weights" / f"resnet{depth}_jpeg.safetensors"
        original = edgekit.load(f"zoo:resnet{depth}-cifar", weights=weights)
        reference = evaluate(original.module(), data.test, original.preprocessing, limit=arguments.images)
        floats = cost_of(original.module()).bytes
        for name, step in steps.items():
            start = time.monotonic()
            path = arguments.work / f"resnet{depth}-{name}"
            known = arguments.format and (path / "bundle.json").is_file()
            small = edgekit.load(path) if known else edgekit.compress(original, step, data, output=path)
            seconds = time.monotonic() - start
            simulated = evaluate(small.module(), data.test, small.preprocessing, limit=arguments.images)
            row: dict[str, Any] = {
                **results.get(f"resnet{depth}-{name}", {"seconds": seconds}),
                "step": step,
                "float_top1": reference.top1,
                "weights_share": cost_of(small.module()).bytes / floats,
                "simulated": _against(reference, simulated),
            }
            for file in edgekit.export(small, arguments.format or FORMATS, data=data, images=arguments.images):
                accuracy = file.parity["accuracy"]
                with target_for("local") as target:
                    deployed = evaluate_file(
                        file.path,
                        file.parity["runtime"],
                        target,
                        data.test,
                        small.preprocessing,
                        limit=arguments.images,
                    )
                row[file.parity["format"]] = {
                    **_against(reference, deployed),
                    "lowered_top1": accuracy["lowered_top1"],
                    "against_simulated": accuracy["difference"],
                    "against_simulated_standard_error": accuracy["difference_standard_error"],
                    "same_class_as_simulated_percent": file.parity["agreement_with_program"]["top1_percent"],
                    "size_bytes": file.parity["size_bytes"],
                }
            results[f"resnet{depth}-{name}"] = row
            shown = [f"{f} {row[f]['top1']:.2f} ({row[f]['against_simulated']:+.2f})" for f in FORMATS]
            print(
                f"resnet{depth} {name}: float {reference.top1:.2f}, simulated {simulated.top1:.2f}, {', '.join(shown)}"
            )
    write_json(RESULT, {"test_images": len(reference.labels), "networks": results, "versions": versions()})
    print(f"wrote {RESULT}")


def _against(reference: Any, found: Any) -> dict[str, float]:
    difference, error = paired_difference(reference, found)
    return {"top1": found.top1, "drop": -difference, "standard_error": error}


if __name__ == "__main__":
    main()
