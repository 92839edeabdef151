"""The matrix: five networks in float32, float16 and int8, every runtime, one and two threads; and counted on emulated ARM CPUs.

    python benches/matrix.py [--shared ../shared/data] [--work runs/matrix] [--target local …] [--network NAME …]

ResNet-20 and ResNet-56 (CIFAR-10, trained), SqueezeNet 1.1 (ImageNet, trained), MobileNet V2 and ResNet-50 at 224 (random
weights: times and counts alone). With a trained network each file is run over test images on the target, as many as
``--images`` says. Killed, the same command goes on. Results go to benches/results/matrix.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
from progress import log

import edgekit
from edgekit.benchmark.compare import read_result
from edgekit.bundle import Bundle, versions
from edgekit.data.dataset import Dataset
from edgekit.export.exporter import exporter_for
from edgekit.export.run import exported_files
from edgekit.files import write_json
from edgekit.runtimes.measure import Plan

RESULT = Path(__file__).parent / "results" / "matrix.json"
FORMATS = ("onnx", "tflite", "ncnn")
TRAINED = ("resnet20", "resnet56", "squeezenet")
NETWORKS = (*TRAINED, "mobilenet-v2", "resnet50")


def made(name: str, shared: Path, work: Path) -> tuple[list[Path], Dataset | None]:
    """Bundles and files of a network, written once; and the data it is judged on."""
    sources: dict[str, Callable[[], tuple[Bundle, Dataset]]] = {
        "resnet20": lambda: networks.cifar_resnet(shared, 20),
        "resnet56": lambda: networks.cifar_resnet(shared, 56),
        "squeezenet": lambda: (networks.squeezenet(shared), networks.imagenet(shared)),
        "mobilenet-v2": lambda: (networks.mobilenet_v2(), networks.imagenet(shared)),
        "resnet50": lambda: (networks.resnet50(), networks.imagenet(shared)),
    }
    bundle, data = sources[name]()
    folders = {precision: work / precision for precision in ("float", "int8")}
    if not (folders["float"] / "bundle.json").is_file():
        x, y = next(iter(data.validation.batches(bundle.preprocessing, 16)))
        bundle.with_samples(x, y).save(folders["float"])
    if not (folders["int8"] / "bundle.json").is_file():
        edgekit.compress(
            Bundle.load(folders["float"]), "quantize:images=300", data, output=folders["int8"], progress=log
        )
    files = []
    for folder, precision in ((folders["float"], "float32"), (folders["float"], "float16"), (folders["int8"], "int8")):
        opened = Bundle.load(folder)
        if name in TRAINED:
            done = [path for path in exported_files(folder) if precision in path.name or precision == "float32"]
            if len(done) < len(FORMATS):
                edgekit.export(opened, FORMATS, precision=precision, data=data, images=500, progress=log)
            continue
        files += [_without_proof(opened, format, precision, work / "files") for format in FORMATS]
    # A bundle is its program in torch with all its proved files.
    return [folders["float"], folders["int8"], *files], data if name in TRAINED else None


def _without_proof(bundle: Bundle, format: str, precision: str, folder: Path) -> Path:
    """A file of random weights, which amplify every rounding: what it computes means nothing, its time and counts do."""
    exporter = exporter_for(format)
    path = folder / f"model.{precision}{exporter.suffix}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {
            "edgekit": 1, "input_layout": exporter.input_layout, "input_shape": list(bundle.input_shape),
            "precision": precision,
        }  # fmt: skip
        exporter.write(exporter.lower(bundle, precision), path, metadata)
    return path


def main() -> None:
    """Fills the matrix, network by network and target by target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/matrix"))
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--target", action="append")
    parser.add_argument("--images", type=int, default=500, help="0 for none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    for name in arguments.network or NETWORKS:
        items, data = made(name, arguments.shared, arguments.work / name)
        for target in arguments.target or ("local",):
            output = arguments.work / name / f"{target.replace(':', '-')}-{arguments.images}.json"
            if not output.is_file():
                edgekit.bench(
                    items if target == "local" else [*items[2:], *exported_files(items[0]), *exported_files(items[1])],
                    threads=(1, 2) if target == "local" else (1,),
                    data=data if arguments.images else None,
                    images=arguments.images or None,
                    plan=Plan(rounds=arguments.rounds, seconds=0.3, timeout_s=3600),
                    target=target,
                    output=output,
                    progress=log,
                )
            # Two targets may be measured at once, each by a command of its own.
            result = json.loads(arguments.result.read_text()) if arguments.result.is_file() else {"cells": {}}
            for row in read_result(output)["rows"]:
                # Counts and accuracy may come from two runs.
                result["cells"].setdefault(f"{name}/{target}/{_key(row)}", {}).update(_kept(row))
            result |= {"images": arguments.images or result.get("images"), "versions": versions()}
            if target == "local":
                result["rounds"] = arguments.rounds
            result.setdefault("targets", {})[target] = read_result(output)["target"]
            write_json(arguments.result, result)
            print(f"{name} on {target}: {len(read_result(output)['rows'])} rows", flush=True)
    print(f"wrote {arguments.result}")


def _key(row: dict[str, Any]) -> str:
    return f"{row['runtime']}/{row['precision']}/{row['threads']}"


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    names = ("error", "failure", "size_bytes", "p50_ms", "p90_ms", "load_ms", "first_run_ms", "peak_memory_bytes",
             "instructions", "instructions_spread", "agreement")  # fmt: skip
    kept = {name: row[name] for name in names if row.get(name) not in (None, "")}
    if row.get("accuracy"):
        kept |= {"top1": row["accuracy"]["top1"], "standard_error": row["accuracy"]["standard_error"]}
    if row.get("raw", {}).get("rounds_ms"):
        # The spread from process to process, which a ratio of two cells must be read with.
        medians = [float(np.median(one)) for one in row["raw"]["rounds_ms"]]
        kept["medians_ms"] = medians
    return kept


if __name__ == "__main__":
    main()
