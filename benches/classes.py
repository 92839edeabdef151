"""A network for a few classes out of one for all: ResNet-20 on CIFAR-10, for 2, 3 and 5 classes, with and without knowing them.

    python benches/classes.py [--shared ../shared/data] [--work runs/classes] [--macs 0.15] [--epochs 4]

(a) the whole network, its outputs restricted to those classes; (b) pruned on all classes to the same MACs, then restricted
and fine-tuned on the classes; (c) restricted first, so that importance, refitting and fine-tuning see these classes alone.
(b) and (c) get the same fine-tuning. Epochs are chosen on validation images; figures are on those of the 5 000 test copies
that belong to the classes, paired. Results go to benches/results/classes.json.
"""

from __future__ import annotations

import argparse
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
SUBSETS = (("cat", "dog"), ("cat", "dog", "horse"), ("airplane", "automobile", "horse", "ship", "truck"))


def main() -> None:
    """Cuts, trains, evaluates and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/classes"))
    parser.add_argument("--macs", type=float, default=0.15)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    original, data = networks.cifar_resnet(arguments.shared)
    whole_macs = cost_of(original.module()).macs
    cut = f"prune-channels:macs={arguments.macs:g},importance=lasso,multiple=4,epochs=0"
    finetune = f"finetune:epochs={arguments.epochs},learning_rate=0.05"
    rows: dict[str, Any] = {}
    for classes in SUBSETS:
        keep = f"keep-classes:classes=[{','.join(classes)}]"
        whole = edgekit.compress(original, keep, data)
        seen = whole.view_of(data)
        reference = evaluate(whole.module(), seen.test, original.preprocessing)
        row: dict[str, Any] = {"images": len(seen.test), "restricted_top1": reference.top1}
        found = {}
        for name, steps in {"blind": [cut, keep], "aware": [keep, cut]}.items():
            path = arguments.work / f"{len(classes)}-{name}"
            at_once = edgekit.compress(original, steps, data)
            trained = edgekit.compress(at_once, finetune, data, output=path, progress=log)
            found[name] = evaluate(trained.module(), seen.test, original.preprocessing, names=trained.labels)
            before = evaluate(at_once.module(), seen.test, original.preprocessing)
            difference, error = paired_difference(reference, found[name])
            row[name] = {
                "steps": [*steps, finetune],
                "macs_ratio": cost_of(trained.module()).macs / whole_macs,
                "top1_before_training": before.top1,
                "top1": found[name].top1,
                "against_restricted": [difference, error],
                "per_class": list(found[name].per_class),
            }
        row["aware_against_blind"] = list(paired_difference(found["blind"], found["aware"]))
        rows[", ".join(classes)] = row
        print(classes, {k: row[k] for k in ("restricted_top1", "aware_against_blind")}, flush=True)
        print({name: (row[name]["top1_before_training"], row[name]["top1"]) for name in found}, flush=True)
        write_json(RESULT, {"rows": rows, "versions": versions()})


if __name__ == "__main__":
    main()
