"""ResNet-20 on emulated ARM CPUs: accuracy of the real aarch64 runtimes, and instructions by class for one inference.

    python benches/arm.py [--shared ../shared/data] [--work runs/arm] [--images 500] [--cpu cortex-a72 …]

Needs the real data, and the emulated root (`edgekit target setup emulated`). Each file is counted in three processes, six
inferences each, and run over test images; outputs are held against those of the same file on this machine. Killed, the
same command goes on. Results go to benches/results/arm.json after each cell.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from progress import log
from resnet20 import made

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.evaluation import Evaluation, agreement, sqnr
from edgekit.export.run import exported_files
from edgekit.files import write_json
from edgekit.runtimes.accuracy import evaluate_file
from edgekit.runtimes.measure import Cell, Plan, measure
from edgekit.runtimes.runtime import runtime_of_file
from edgekit.runtimes.targets import instructions
from edgekit.runtimes.targets.target import Target, target_for

CPUS = ("cortex-a76", "cortex-a72", "cortex-a53")
PROCESSES = 3
RESULT = Path(__file__).parent / "results" / "arm.json"


def bundles(shared: Path, work: Path, data: Any) -> dict[str, Bundle]:
    """The network in float32 and int8, with their exports."""

    def original_at(path: Path) -> Bundle:
        bundle = edgekit.load("zoo:resnet20-cifar", weights=shared / "weights" / "resnet20_jpeg.safetensors")
        x, y = next(iter(data.validation.batches(bundle.preprocessing, 16)))
        return bundle.with_samples(x, y).save(path)

    original = made(work / "original", original_at)
    int8 = made(work / "int8", lambda path: edgekit.compress(original, "quantize", data, output=path, progress=log))
    found = {"int8": int8, "original": original}
    for name, bundle in found.items():
        if len(exported_files(work / name)) < 3:
            edgekit.export(bundle, ("onnx", "tflite", "ncnn"), data=data, images=500, progress=log)
    return found


def accuracy(path: Path, target: Target, data: Any, bundle: Bundle, images: int) -> Evaluation:
    """A file's outputs on the target."""
    name = runtime_of_file(str(path))
    assert name is not None
    return evaluate_file(path, name, target, data.test, bundle.preprocessing, limit=images, progress=log)


def counted(path: Path, target: Target, x: np.ndarray) -> dict[str, Any]:
    """Instructions of one inference, counted in several processes."""
    name = runtime_of_file(str(path))
    assert name is not None
    processes, runs = [], []
    for _ in range(PROCESSES):
        (found,) = measure([Cell(label=path.name, path=path, runtime=name)], [x], target, Plan())
        if found.error:
            return {"runtime": name, "error": found.error}
        processes.append(instructions.mean(found.instructions))
        runs += found.instructions
    counts = instructions.mean(runs)
    return {
        "runtime": name,
        "size_bytes": found.size_bytes,
        "instructions": {"total": instructions.total(counts), **counts},
        "processes": [instructions.total(one) for one in processes],
        # Of the figure that is told, and of single inferences: an allocator may take turns from one to the next.
        "spread": instructions.spread(processes),
        "spread_of_runs": instructions.spread(runs),
    }


def count_cell(row: dict[str, Any], path: Path, target: Target, data: Any, bundle: Bundle, images: int) -> bool:
    """Fills in the counts where they are missing; whether it did."""
    if "processes" in row:
        return False
    assert bundle.samples is not None
    row |= counted(path, target, bundle.samples.inputs[:1])
    return True


def judge_cell(row: dict[str, Any], path: Path, target: Target, data: Any, bundle: Bundle, images: int) -> bool:
    """Fills in the accuracy where it is missing; whether it did."""
    if "top1" in row or "error" in row:
        return False
    here = accuracy(path, target_for("local"), data, bundle, images)
    start = time.perf_counter()
    there = accuracy(path, target, data, bundle, images)
    row |= {
        "top1": there.top1,
        "standard_error": there.standard_error,
        "top1_here": here.top1,
        "agreement_with_here": agreement(here.logits, there.logits),
        "max_abs_from_here": float(np.abs(here.logits - there.logits).max()),
        "sqnr_from_here": sqnr(here.logits, there.logits),
        "emulated_seconds_per_image": (time.perf_counter() - start) / images,
    }
    return True


def main() -> None:
    """Fills the matrix, cell by cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/arm"))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--cpu", action="append")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    data = edgekit.load_data(f"cifar10:{arguments.shared / 'sets' / 'cifar10_jpegq75_train50k.npz'}")
    found = bundles(arguments.shared, arguments.work, data)
    result: dict[str, Any] = json.loads(arguments.result.read_text()) if arguments.result.is_file() else {"cells": {}}
    result |= {"test_images": arguments.images, "versions": versions()}
    # Counting takes seconds, and comes first; accuracy takes minutes for each cell.
    for work in (count_cell, judge_cell):
        for name, bundle in found.items():
            for path in exported_files(arguments.work / name):
                for cpu in arguments.cpu or CPUS:
                    key = f"{cpu}/{name}/{path.name}"
                    row = result["cells"].setdefault(key, {})
                    if work(row, path, target_for(f"emulated:{cpu}"), data, bundle, arguments.images):
                        write_json(arguments.result, result)
                        print(key, json.dumps(row), flush=True)
    print(f"wrote {arguments.result}")


if __name__ == "__main__":
    main()
