"""INT8 of real networks side by side with other toolkits: accuracy on the same images, calibrated on the same images.

    python benches/quantize_imagenet.py [--shared ../shared/data] [--work DIR] [--nncf PYTHON] [--ncnn-tools FOLDER]
        [--network NAME …]

SqueezeNet 1.1 and MobileNet V1 0.25 (calibrated on even ImageNet-like images, reported on the 500 odd ones), ResNet-8 of
MLPerf Tiny (CIFAR-10, 500 original test images). Ours is deployed in ONNX, TFLite and ncnn; ONNX Runtime's quantizer and NNCF
take our float ONNX file, ai-edge-quantizer our float TFLite file, ncnn's own tools our float ncnn file. Drops are paired
with the float network on the same images. Results go to benches/results/quantize_imagenet.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import networks
import numpy as np
import peers

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.data.dataset import Dataset
from edgekit.evaluation import Evaluation, agreement, evaluate, paired_difference, sqnr
from edgekit.files import write_json
from edgekit.runtimes.accuracy import evaluate_file
from edgekit.runtimes.targets.target import target_for

FORMATS = ("onnx", "tflite", "ncnn")
PEERS = (
    ("onnxruntime", "onnx"), ("nncf", "onnx"), ("nncf-mixed", "onnx"), ("ai-edge-quantizer", "tflite"), ("ncnn2int8", "ncnn"),
)  # fmt: skip
RUNTIMES = {"onnx": "onnxruntime", "tflite": "tflite", "ncnn": "ncnn"}
RESULT = Path(__file__).parent / "results" / "quantize_imagenet.json"


def main() -> None:
    """Quantizes by every tool, evaluates and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/quantize-imagenet"))
    peers.add_options(parser)
    parser.add_argument("--network", action="append", choices=("squeezenet", "mobilenet-v1-0.25", "resnet8"))
    parser.add_argument("--step", default="quantize:images=300")
    parser.add_argument(
        "--format", action="append", choices=FORMATS, help="Export to these alone; the rest stays as it was."
    )
    arguments = parser.parse_args()
    shared = arguments.shared
    imagenet = networks.imagenet(shared)
    jobs: list[tuple[str, Bundle, Dataset]] = [
        ("squeezenet", networks.squeezenet(shared), imagenet),
        ("mobilenet-v1-0.25", networks.mobilenet_v1(shared), imagenet),
        ("resnet8", networks.resnet8(shared), networks.cifar10_lossless(shared)),
    ]
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"networks": {}}
    for name, bundle, data in jobs:
        if name in (arguments.network or (name,)):
            rows = found["networks"].get(name, {}).get("rows", {}) if arguments.format else {}
            found["networks"][name] = _network(name, bundle, data, rows, arguments)
            write_json(RESULT, {**found, "versions": versions()})
    print(f"wrote {RESULT}")


def _network(name: str, bundle: Bundle, data: Dataset, rows: dict[str, Any], arguments: Any) -> dict[str, Any]:
    work = arguments.work / name
    reference = evaluate(bundle.module(), data.test, bundle.preprocessing)

    def add(tool: str, found: Evaluation, extra: dict[str, Any] | None = None) -> None:
        difference, error = paired_difference(reference, found)
        rows[tool] = {
            "top1": found.top1, "top5": found.top5, "drop": -difference, "standard_error": error,
            "sqnr_db": sqnr(reference.logits, found.logits), "same_class_percent": agreement(reference.logits, found.logits),
            **(extra or {}),
        }  # fmt: skip
        print(
            f"{name} {tool}: top-1 {found.top1:.1f}, drop {-difference:+.2f} ± {error:.2f}, {rows[tool]['sqnr_db']:.1f} dB"
        )

    with target_for("local") as target:

        def run(path: Path, kind: str) -> Evaluation:
            return evaluate_file(path, RUNTIMES[kind], target, data.test, bundle.preprocessing)

        known = arguments.format and (work / "int8" / "bundle.json").is_file()
        small = (
            edgekit.load(work / "int8")
            if known
            else edgekit.compress(bundle, arguments.step, data, output=work / "int8")
        )
        simulated = evaluate(small.module(), data.test, small.preprocessing)
        add("edgekit simulated", simulated)
        for file in edgekit.export(small, arguments.format or FORMATS, data=data):
            found = run(file.path, file.parity["format"])
            difference = paired_difference(simulated, found)[0]
            add(f"edgekit {file.parity['format']}", found, {"against_simulated": difference})
        if arguments.format:
            return {"test_images": len(reference.labels), "float_top1": reference.top1, "rows": rows}
        exported = edgekit.export(bundle, FORMATS, data=data, output=work / "float")
        floats = {file.parity["format"]: file.path for file in exported}
        # The very images that our step calibrates on: the same draw.
        count = min(300, len(data.train))
        chosen = np.sort(np.random.default_rng(0).permutation(len(data.train))[:count])
        assert bundle.preprocessing is not None
        images = bundle.preprocessing(data.train.images(chosen))
        peers.write_archives(work, images, bundle.preprocessing)
        for tool, kind in PEERS:
            made = work / f"{tool}{floats[kind].suffix}"
            result = peers.quantized(tool, floats[kind], work / peers.ARCHIVES[kind], made, arguments)
            if result is None or "failed" in result:
                print(f"{name} {tool}: {result or 'left out, for want of the option that names it'}")
                rows |= {tool: result} if result else {}
                continue
            add(tool, run(made, kind), result)
    return {"test_images": len(reference.labels), "float_top1": reference.top1, "rows": rows}


if __name__ == "__main__":
    main()
