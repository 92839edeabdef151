"""A network for a few classes out of one for all: ResNet-20 on CIFAR-10, for 2, 3 and 5 classes, with and without knowing them.

    python benches/classes.py [--shared ../shared/data] [--work runs/classes] [--macs 0.3] [--epochs 4] [--classes cat,dog]

The whole network, its outputs restricted to those classes, is cut to the same MACs in two ways: blind, on all classes and
then restricted; and aware, restricted first, so that importance and refitting see these classes alone. Both are fine-tuned
on the classes, once on labels alone and once with the restricted whole as their teacher: with the same images, in the same
order. Epochs are chosen on validation images; figures are on those of the 5 000 test copies that belong to the classes,
paired. Results go to benches/results/classes.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import networks
from progress import log

import edgekit
from edgekit.bundle import versions
from edgekit.cost import cost_of
from edgekit.evaluation import evaluate, paired_difference
from edgekit.files import write_json

RESULT = Path(__file__).parent / "results" / "classes.json"
SUBSETS = ("cat,dog", "cat,dog,horse", "airplane,automobile,horse,ship,truck")


def main() -> None:
    """Cuts, trains, evaluates and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/classes"))
    parser.add_argument("--macs", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--classes", action="append", metavar="A,B,…")
    arguments = parser.parse_args()
    original, data = networks.cifar_resnet(arguments.shared)
    whole_macs = cost_of(original.module()).macs
    cut = f"prune-channels:macs={arguments.macs:g},importance=fisher,multiple=4"
    train = f"epochs={arguments.epochs},learning_rate=0.02"
    rows: dict[str, Any] = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else {}
    for classes in arguments.classes or SUBSETS:
        keep = f"keep-classes:classes=[{classes}]"
        whole = edgekit.compress(original, keep, data)
        seen = whole.view_of(data)
        reference = evaluate(whole.module(), seen.test, original.preprocessing)
        row: dict[str, Any] = {"images": len(seen.test), "restricted_top1": reference.top1}
        untrained = {
            "blind": edgekit.compress(original, [f"{cut},epochs=0", keep], data),
            "aware": edgekit.compress(original, [keep, f"{cut},epochs=0"], data),
        }
        folder = arguments.work / classes.replace(",", "-")
        whole.save(folder / "whole")
        found = {}
        for teacher in ("", " distilled"):
            taught = f",distill=[teacher={folder / 'whole'},weight=0.7]" if teacher else ""
            for way, bundle in untrained.items():
                name = way + teacher
                path = folder / name.replace(" ", "-")
                trained = edgekit.compress(bundle, f"finetune:{train}{taught}", data, output=path, progress=log)
                found[name] = evaluate(trained.module(), seen.test, original.preprocessing, names=trained.labels)
                before = evaluate(bundle.module(), seen.test, original.preprocessing)
                row[name] = {
                    "steps": [step["step"] for step in trained.steps],
                    "macs_ratio": cost_of(trained.module()).macs / whole_macs,
                    "top1_before_training": before.top1,
                    "top1": found[name].top1,
                    "against_restricted": list(paired_difference(reference, found[name])),
                    "against_blind": list(paired_difference(found["blind" + teacher], found[name])),
                    "per_class": list(found[name].per_class),
                }
                print(
                    classes, name, {k: v for k, v in row[name].items() if k not in ("per_class", "steps")}, flush=True
                )
        rows[classes] = row
        write_json(RESULT, {"rows": rows, "epochs": arguments.epochs, "versions": versions()})


if __name__ == "__main__":
    main()
