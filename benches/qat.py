"""Quantization-aware training of ResNet-20 on CIFAR-10: accuracy against training time, and as deployed.

    python benches/qat.py [--shared ../shared/data] [--work runs/qat] [--bits 4 --bits 3 --bits 2] [--epochs 6]
        [--distill 0.5] [--weight-decay 2.5e-5] [--precision bfloat16]

Weights and activations of so many bits, the first and the last layer 8. Killed, the same command goes on. Selection is on the
validation images, figures on the 5 000 test copies, paired with the float network's. Few epochs are what two cores manage;
``--epochs 100 --learning-rate 0.04`` is the full run. ``--distill`` is the share of the float network's soft targets in the
loss; such rows stand beside those without. Esser et al. (ICLR 2020, section 3) halve the weight decay for 3 bits and quarter it
for 2: ``--weight-decay``. Results go to benches/results/qat.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import networks
from progress import log

import edgekit
from edgekit.bundle import versions
from edgekit.evaluation import evaluate, paired_difference
from edgekit.files import write_json

RESULT = Path(__file__).parent / "results" / "qat.json"


def main() -> None:
    """Trains, evaluates and writes the result, width by width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/qat"))
    parser.add_argument("--bits", type=int, action="append", choices=range(2, 9))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--distill", type=float, default=0.0)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    original, data = networks.cifar_resnet(arguments.shared)
    reference = evaluate(original.module(), data.test, original.preprocessing)
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": {}}
    for bits in arguments.bits or (4,):
        step = (
            f"qat:weight_bits={bits},activation_bits={bits},epochs={arguments.epochs},"
            f"learning_rate={arguments.learning_rate}"
        )
        name = f"w{bits}a{bits}"
        if arguments.weight_decay != parser.get_default("weight_decay"):
            step = f"{step},weight_decay={arguments.weight_decay:g}"
        if arguments.precision != "float32":
            step = f"{step},precision={arguments.precision}"
        if arguments.distill:
            step, name = f"{step},distill={arguments.distill:g}", f"{name} distilled"
        small = edgekit.compress(original, step, data, output=arguments.work / name.replace(" ", "-"), progress=log)
        deployed = evaluate(small.module(), data.test, small.preprocessing)
        difference, error = paired_difference(reference, deployed)
        report = small.steps[-1]["report"]
        found["rows"][name] = {
            "step": step,
            "top1": deployed.top1,
            "drop": 0.0 - difference,
            "standard_error": error,
            "trained_validation_top1": report["best_validation_top1"],
            "converted_validation_top1": report["converted_validation_top1"],
            "history": report["history"],
        }
        print(f"{name}: {deployed.top1:.2f} ({difference:+.2f} ± {error:.2f})")
        write_json(RESULT, {**found, "float_top1": reference.top1, "versions": versions()})


if __name__ == "__main__":
    main()
