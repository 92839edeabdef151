"""A student of ResNet-56 at half of its measured latency, made by itself, beside three others; CIFAR-10.

    python benches/student.py [--shared ../shared/data] [--work runs/student] [--goal latency=0.5@tflite] [--epochs 1]

(a) the same student, trained as long on labels alone; (b) ResNet-20 as it was trained, which is much longer than anything
here; (c) channel pruning to nearly the same latency (``--pruned``: on the grid that LiteRT likes no cut alone went below 0.52),
trained as the student is, teacher included. Channels are cut on the grid that the runtime likes. All begin with refitted
weights of ResNet-56 (but (b)) and see the same images in the same order. Training chooses nothing: figures are of its last
epoch, on the 5 000 test copies, paired. Times are interleaved, one thread, in three runtimes. Each part is saved when it is
done, and not done again; a killed training goes on. Results go to benches/results/student.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
from progress import log

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.compress.finetune import Finetune
from edgekit.compress.step import Context
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.evaluation import Evaluation, evaluate, paired_difference
from edgekit.files import write_json
from edgekit.runtimes.measure import Plan

RESULT = Path(__file__).parent / "results" / "student.json"
RUNTIMES = {"onnx": "onnxruntime", "tflite": "tflite", "ncnn": "ncnn"}


def main() -> None:
    """Makes, trains, evaluates, measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/student"))
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--goal", default="latency=0.5@tflite")
    parser.add_argument("--pruned", default="latency=0.53@tflite", help="the goal of channels cut alone")
    parser.add_argument("--images", type=int, help="of the training split, evenly; all if left out")
    parser.add_argument("--fitted", type=int, default=512, help="images to fit weights on")
    parser.add_argument("--trial", type=int, default=2048, help="images that a candidate learns from")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--distill", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    teacher, data = networks.cifar_resnet(arguments.shared, 56)
    data = replace(data, train=data.train.part(data.train.spread(arguments.images)))
    found: dict[str, Any] = json.loads(arguments.result.read_text()) if arguments.result.is_file() else {"rows": {}}
    settings = {key: value for key, value in vars(arguments).items() if key not in ("shared", "work", "result")}

    def keep(**more: Any) -> None:
        found.update(more)
        write_json(arguments.result, {**found, "settings": settings, "versions": versions()})

    goal, pruned = (f"{goal},align={goal.partition('@')[2]}" for goal in (arguments.goal, arguments.pruned))
    search = f"student:{goal},images={arguments.fitted},trial={arguments.trial}"
    search += f",epochs=0,learning_rate={arguments.learning_rate:g},distill={arguments.distill:g}"
    untrained = {
        "student": _made(teacher, search, data, arguments.work),
        "pruned": _made(
            teacher, f"prune-channels:{pruned},reconstruct={arguments.fitted},epochs=0", data, arguments.work
        ),
    }
    keep(search=untrained["student"].steps[-1]["report"], pruning=untrained["pruned"].steps[-1]["report"])
    jobs = {
        "student": ("student", arguments.distill),
        "labels": ("student", 0.0),
        "pruned": ("pruned", arguments.distill),
    }
    bundles = {"teacher": teacher, "resnet20": networks.cifar_resnet(arguments.shared, 20)[0]}
    for name, (start, distill) in jobs.items():
        train = Finetune(epochs=arguments.epochs, learning_rate=arguments.learning_rate, distill=distill, keep="last")
        bundles[name] = _trained(untrained[start], train, teacher, data, arguments.work / f"{name}-trained")
        keep()
    judged = {name: evaluate(bundle.module(), data.test, teacher.preprocessing) for name, bundle in bundles.items()}
    before = {
        name: evaluate(bundle.module(), data.test, teacher.preprocessing).top1 for name, bundle in untrained.items()
    }
    for name, bundle in bundles.items():
        row = found["rows"].setdefault(name, {})
        row |= _row(bundle, judged[name], judged, teacher)
        if name in jobs:
            row |= {"top1_before_training": before[jobs[name][0]], "distill": jobs[name][1], "training": bundle.metrics}
        print(name, {key: row[key] for key in ("top1", "macs_ratio", "parameters_ratio")}, flush=True)
    keep()
    times, target = _times(
        {name: bundles[name] for name in ("teacher", "student", "pruned", "resnet20")}, data, arguments
    )
    for name, row in times.items():
        found["rows"][name]["times"] = row
    found["rows"]["labels"]["times"] = found["rows"]["student"].get("times", {})
    keep(target=target)
    print(json.dumps(found["rows"], indent=1), flush=True)


def _made(teacher: Bundle, step: str, data: Dataset, work: Path) -> Bundle:
    path = work / step.split(":")[0]
    if (path / "bundle.json").is_file():
        return Bundle.load(path)
    return edgekit.compress(teacher, step, data, output=path, progress=log)


def _trained(start: Bundle, train: Finetune, teacher: Bundle, data: Dataset, path: Path) -> Bundle:
    """What the step does after its search; its checkpoints lie beside the bundle until it is done."""
    if (path / "bundle.json").is_file():
        return Bundle.load(path)
    checkpoints = path.with_name(f"{path.name}.work")
    checkpoints.mkdir(parents=True, exist_ok=True)
    bundle, report = train.train(start, Context(data=data, progress=log, checkpoints=checkpoints), teacher=teacher)
    x, y = next(iter(data.validation.batches(teacher.preprocessing, 16, limit=16)))
    saved = replace(bundle.with_samples(x, y), metrics=report, steps=start.steps, data=data.name).save(path)
    shutil.rmtree(checkpoints)
    return saved


def _row(bundle: Bundle, judged: Evaluation, all_judged: dict[str, Evaluation], teacher: Bundle) -> dict[str, Any]:
    was, now = cost_of(teacher.module()), cost_of(bundle.module())
    return {
        "top1": judged.top1,
        "macs_ratio": now.macs / was.macs,
        "parameters_ratio": now.parameters / was.parameters,
        "against_teacher": list(paired_difference(all_judged["teacher"], judged)),
        "student_against_it": list(paired_difference(judged, all_judged["student"])),
    }


def _times(
    bundles: dict[str, Bundle], data: Dataset, arguments: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Interleaved latency of each file that passes its proof, against the teacher's in the same runtime."""
    x, y = next(iter(data.validation.batches(bundles["teacher"].preprocessing, 16, limit=16)))
    folders = []
    for name, bundle in bundles.items():
        folder = arguments.work / "timed" / name
        bundle.with_samples(x, y).save(folder)
        edgekit.export(Bundle.load(folder), list(RUNTIMES))
        folders.append(folder)
    measured = edgekit.bench(
        folders, runtimes=list(RUNTIMES.values()), baseline=folders[0], plan=Plan(rounds=arguments.rounds)
    )
    rows: dict[str, dict[str, Any]] = {name: {} for name in bundles}
    for row in measured.rows:
        if row.comparison is not None:
            c, cell = row.comparison, row.measurement.cell
            rows[cell.label.split("/")[0]][cell.runtime] = [c.ratio, c.low, c.high, c.verdict]
    return rows, measured.target


if __name__ == "__main__":
    main()
