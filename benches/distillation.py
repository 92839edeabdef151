"""What each method of distillation is worth: ResNet-56 teaches ResNet-20 and a small MobileNet V2 on CIFAR-10, from scratch.

    python benches/distillation.py [--shared ../shared/data] [--work runs/distillation] [--students ResNet-20] [--seeds 3]

Every run has the same short budget: 8 000 training images, spread evenly, four times; batch 64, peak learning rate 0.05,
weight decay 5e-4, bfloat16 arithmetic, the last epoch. Weights and temperatures of the methods are the published ones.
Images are not augmented, so that the teacher's answers are found once and remembered. Seeds choose initial weights and
order; the spread is the standard deviation over them, and gains are paired by seed. Figures are on the 5 000 test copies,
which nothing was chosen by. Killed, the same command goes on: the runs that are done are in
benches/results/distillation.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import networks
import torch
from progress import log

from edgekit.bundle import Bundle, versions
from edgekit.compress.distill.loss import distillation_loss
from edgekit.compress.distill.method import Seen
from edgekit.compress.distill.settings import Distillation
from edgekit.compress.distill.teacher import Teacher
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset, Split
from edgekit.data.preprocessing import Preprocessing
from edgekit.evaluation import evaluate
from edgekit.files import write_json
from edgekit.program import export_program
from edgekit.training import TrainingSettings, train
from edgekit.zoo import get

RESULT = Path(__file__).parent / "results" / "distillation.json"
# MobileNet V2 with the stride of its stem alone left out: the zoo's form for CIFAR takes four times the MACs.
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet-20": ("resnet20-cifar", {}),
    "MobileNet V2": ("mobilenet-v2-cifar", {"early_strides": (1, 2)}),
}
IMAGES, VALIDATION = 8000, 500
SETTINGS = TrainingSettings(
    epochs=4,
    batch_size=64,
    learning_rate=0.05,
    weight_decay=5e-4,
    augmentation="none",
    precision="bfloat16",
    keep="last",
)
BIG = "zoo:resnet56-cifar@{weights}/resnet56_jpeg.safetensors"
METHODS: dict[str, Distillation | None] = {
    "no teacher": None,
    "soft targets": Distillation(teacher=(BIG,)),
    "decoupled": Distillation(teacher=(BIG,), method="decoupled"),
    "hints": Distillation(teacher=(BIG,), method="hints"),
    "attention": Distillation(teacher=(BIG,), method="attention"),
    "relational": Distillation(teacher=(BIG,), method="relational"),
    "contrastive": Distillation(teacher=(BIG,), method="contrastive"),
    "ensemble": Distillation(teacher=(BIG, "zoo:resnet20-cifar@{weights}/resnet20_jpeg.safetensors")),
    "own average": Distillation(teacher=("ema",)),
}


class Remembered(Teacher):
    """A teacher that was asked about every training image once, in float32, and answers from memory."""

    known: ClassVar[dict[tuple[str, ...], tuple[dict[bytes, int], list[torch.Tensor]]]] = {}

    def __init__(self, asked: Teacher, split: Split, preprocessing: Preprocessing | None) -> None:
        key = (asked.fingerprint, str(asked.temperature), *asked.places)
        if key not in self.known:
            answers: list[tuple[torch.Tensor, ...]] = []
            places: dict[bytes, int] = {}
            for x, _ in split.batches(preprocessing, 100):
                inputs = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
                seen = asked(inputs)
                answers.append((seen.outputs, *seen.features))
                for image in x:
                    places[image.tobytes()] = len(places)
            self.known[key] = places, [torch.cat(parts) for parts in zip(*answers, strict=True)]
        self.places_of, self.values = self.known[key]

    def __call__(self, x: torch.Tensor) -> Seen:
        chosen = torch.tensor([self.places_of[image.contiguous().numpy().tobytes()] for image in x])
        outputs, *features = (value[chosen] for value in self.values)
        return Seen(outputs, tuple(features))


def main() -> None:
    """Trains student by student, seed by seed, and writes the result after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=STUDENTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    teacher, data = networks.cifar_resnet(arguments.shared, 56)
    weights = arguments.shared / "weights"
    few = replace(
        data,
        train=data.train.part(data.train.spread(IMAGES)),
        validation=data.validation.part(data.validation.spread(VALIDATION)),
    )
    found: dict[str, Any] = {"rows": {}, "students": {}}
    if arguments.result.is_file():
        found = json.loads(arguments.result.read_text())
    else:
        found["teacher_top1"] = evaluate(teacher.module(), data.test, teacher.preprocessing).top1
    for name in arguments.students:
        found["students"][name] = {"macs": cost_of(fresh(name, 0).module()).macs}
        for seed in range(arguments.seeds):
            for method in arguments.methods:
                run = f"{name}, {method}, {seed}"
                if run in found["rows"]:
                    continue
                found["rows"][run] = one(
                    name, method, seed, few, weights, arguments.work / run.replace(", ", "-").replace(" ", "-")
                )
                print(run, {k: v for k, v in found["rows"][run].items() if k != "history"}, flush=True)
                settings = {"images": IMAGES, "epochs": SETTINGS.epochs, "batch_size": SETTINGS.batch_size}
                write_json(arguments.result, {**found, "settings": settings, "versions": versions()})


def one(name: str, method: str, seed: int, data: Dataset, weights: Path, folder: Path) -> dict[str, Any]:
    """Trains one student and judges it."""
    student = fresh(name, seed)
    module = student.module()
    settings = METHODS[method]
    loss = None
    if settings is not None:
        places = tuple(reference.format(weights=weights) for reference in settings.teacher)
        loss = distillation_loss(replace(settings, teacher=places), module, student, seed=seed)
        if loss is not None and isinstance(loss.teacher, Teacher):
            loss.teacher = Remembered(loss.teacher, data.train, student.preprocessing)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    result = train(
        module, data, student.preprocessing, replace(SETTINGS, seed=seed), checkpoint=folder, progress=log, loss=loss
    )
    seconds = time.monotonic() - start
    return {
        "top1": evaluate(module, data.test, student.preprocessing).top1,
        "validation_top1": result.last_validation_top1,
        "seconds": round(seconds, 1),
        "history": result.history,
    }


def fresh(name: str, seed: int) -> Bundle:
    """A student with new weights."""
    reference, changes = STUDENTS[name]
    entry = get(reference)
    place, _, factory = entry.factory.partition(":")
    torch.manual_seed(seed)
    network = getattr(importlib.import_module(place), factory)(**{**entry.settings, **changes})
    preprocessing = Preprocessing(**entry.preprocessing) if entry.preprocessing else None
    program = export_program(network, entry.input_shape)
    return Bundle(
        program, entry.input_shape, preprocessing, tuple(entry.labels or ()), {"reference": f"zoo:{reference}"}
    )


if __name__ == "__main__":
    main()
