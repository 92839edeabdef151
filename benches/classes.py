"""A network for a few classes out of one for all: ResNet-20 on CIFAR-10, for 2, 3 and 5 classes, with and without knowing them.

    python benches/classes.py [--shared ../shared/data] [--work runs/classes] [--macs 0.3] [--epochs 4] [--seeds 2]
        [--classes cat,dog]

The whole network, its outputs restricted to those classes, is cut to the same MACs in two ways: blind, on all classes and
then restricted; and aware, restricted first, so that importance and refitting see these classes alone. Each takes the
criterion, of ``lasso`` and ``discrimination``, by which it is better before training, on the validation images of the first
seed. Both are fine-tuned on the classes, once on labels alone and once with the restricted whole as their teacher: with the
same images, in the same order. Seeds are of the images that the cut looks at and of the training. Epochs are chosen on
validation images; figures are on those of the 5 000 test copies that belong to the classes, paired: an image counts by the
share of the seeds that are right. Killed, the same command goes on. Results go to benches/results/classes.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import networks
import numpy as np
from progress import log

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.evaluation import Evaluation, evaluate
from edgekit.files import write_json

RESULT = Path(__file__).parent / "results" / "classes.json"
SUBSETS = ("cat,dog", "cat,dog,horse", "airplane,automobile,horse,ship,truck")
CRITERIA = ("lasso", "discrimination")
WAYS = ("blind", "aware")


def main() -> None:
    """Cuts, trains, evaluates and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/classes"))
    parser.add_argument("--macs", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--classes", action="append", metavar="A,B,…")
    arguments = parser.parse_args()
    original, data = networks.cifar_resnet(arguments.shared)
    subsets = [
        _Subset(classes, original, data, arguments.work / classes.replace(",", "-"), arguments.macs, arguments.epochs)
        for classes in arguments.classes or SUBSETS
    ]
    for seed in range(arguments.seeds):
        for subset in subsets:
            subset.run(seed)
            found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": {}}
            found["rows"][subset.classes] = subset.row()
            write_json(RESULT, {"rows": found["rows"], "epochs": arguments.epochs, "versions": versions()})


class _Subset:
    """One set of classes: its cuts, their training, and what came of them, seed by seed."""

    def __init__(self, classes: str, original: Bundle, data: Dataset, folder: Path, macs: float, epochs: int) -> None:
        self.classes, self.original, self.data, self.folder = classes, original, data, folder
        self.macs, self.epochs = macs, epochs
        self.keep = f"keep-classes:classes=[{classes}]"
        self.whole = _made(original, [self.keep], data, folder / "whole", 0)
        self.seen = self.whole.view_of(data)
        self.reference = evaluate(self.whole.module(), self.seen.test, original.preprocessing)
        self.criteria: dict[str, dict[str, float]] = {}
        self.before: dict[str, list[float]] = defaultdict(list)
        self.trained: dict[str, list[tuple[Bundle, Evaluation]]] = defaultdict(list)

    def run(self, seed: int) -> None:
        """Cuts and trains with one seed."""
        cuts = {way: self._cut(way, seed) for way in WAYS}
        for teacher in ("", " distilled"):
            taught = f",distill=[teacher={self.folder / 'whole'},weight=0.7]" if teacher else ""
            step = f"finetune:epochs={self.epochs},learning_rate=0.02{taught}"
            for way, bundle in cuts.items():
                path = self.folder / f"{way}{teacher}-{seed}".replace(" ", "-")
                trained = _made(bundle, [step], self.data, path, seed)
                self.before[way + teacher].append(self._test(bundle).top1)
                self.trained[way + teacher].append((trained, self._test(trained)))
                print(self.classes, seed, way + teacher, f"{self.trained[way + teacher][-1][1].top1:.2f}", flush=True)

    def _cut(self, way: str, seed: int) -> Bundle:
        made = {}
        for criterion in [self._chosen(way)] if way in self.criteria else CRITERIA:
            cut = f"prune-channels:macs={self.macs:g},importance={criterion},reconstruct=2048,multiple=4,epochs=0"
            steps = [self.keep, cut] if way == "aware" else [cut, self.keep]
            made[criterion] = _made(
                self.original, steps, self.data, self.folder / f"{way}-{criterion}-cut-{seed}", seed
            )
        if way not in self.criteria:
            self.criteria[way] = {
                criterion: evaluate(bundle.module(), self.seen.validation, self.original.preprocessing).top1
                for criterion, bundle in made.items()
            }
        return made[self._chosen(way)]

    def _chosen(self, way: str) -> str:
        return max(self.criteria[way], key=self.criteria[way].__getitem__)

    def _test(self, bundle: Bundle) -> Evaluation:
        return evaluate(bundle.module(), self.seen.test, self.original.preprocessing, names=bundle.labels)

    def row(self) -> dict[str, Any]:
        """The figures of the seeds so far."""
        row: dict[str, Any] = {
            "images": len(self.seen.test),
            "restricted_top1": self.reference.top1,
            "validation_top1_before_training": self.criteria,
        }
        for name, results in self.trained.items():
            bundle = results[0][0]
            found = [result for _, result in results]
            blind = [result for _, result in self.trained[name.replace("aware", "blind")]]
            row[name] = {
                "importance": self._chosen(name.split()[0]),
                "steps": [step["step"] for step in bundle.steps],
                "macs_ratio": cost_of(bundle.module()).macs / cost_of(self.original.module()).macs,
                "top1_before_training": float(np.mean(self.before[name])),
                "top1": float(np.mean([result.top1 for result in found])),
                "against_restricted": _pooled([self.reference], found),
                "against_blind": _pooled(blind, found),
                "against_blind_by_seed": [b.top1 - a.top1 for a, b in zip(blind, found, strict=True)],
                "per_class": [
                    {**ones[0], "top1": float(np.mean([one["top1"] for one in ones]))}
                    for ones in zip(*(result.per_class for result in found), strict=True)
                ],
            }
        return row


def _made(bundle: Bundle, steps: list[str], data: Dataset, path: Path, seed: int) -> Bundle:
    """What an earlier run of the command has made already is taken as it is."""
    if (path / "bundle.json").is_file():
        return edgekit.load(path)
    return edgekit.compress(bundle, steps, data, output=path, seed=seed, progress=log)


def _pooled(a: list[Evaluation], b: list[Evaluation]) -> tuple[float, float]:
    """How much better ``b`` is than ``a``: points of top-1 and their standard error over images, seeds averaged first."""
    hits = [np.mean([e.predictions == e.labels for e in found], axis=0) for found in (a, b)]
    difference = hits[1] - hits[0]
    return float(difference.mean() * 100), float(difference.std(ddof=1) / math.sqrt(len(difference)) * 100)


if __name__ == "__main__":
    main()
