"""Int8 against float and against other toolkits' int8, on this CPU: latency in one interleaved run, time and memory to make it.

    python benches/int8_speed.py [--shared ../shared/data] [--work runs/int8-speed] [--nncf PYTHON] [--ncnn-tools FOLDER]
        [--network NAME …]

MobileNet V2 and ResNet-50 at 224 (random weights: for times alone) and SqueezeNet 1.1 at 227. All tools calibrate on the same
300 images, in turns; the run in the middle counts. For each runtime the files are measured one after the other in every
round, and compared with its float32 file.
Results go to benches/results/int8_speed.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import peers

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.cost import cost_of
from edgekit.export.exporter import exporter_for
from edgekit.files import write_json
from edgekit.runtimes.measure import Plan

RESULT = Path(__file__).parent / "results" / "int8_speed.json"
IMAGES = 300
FORMATS = ("onnx", "tflite", "ncnn")
TOOLS = (
    ("onnxruntime", "onnx"), ("nncf", "onnx"), ("nncf-mixed", "onnx"), ("ai-edge-quantizer", "tflite"), ("ncnn2int8", "ncnn"),
)  # fmt: skip


def main() -> None:
    """Quantizes by every tool, measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/int8-speed"))
    peers.add_options(parser)
    parser.add_argument("--network", action="append", choices=("mobilenet-v2", "resnet50", "squeezenet"))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="How often each tool makes its int8 model.")
    arguments = parser.parse_args()
    made: dict[str, Callable[[], Bundle]] = {
        "mobilenet-v2": networks.mobilenet_v2,
        "resnet50": networks.resnet50,
        "squeezenet": lambda: networks.squeezenet(arguments.shared),
    }
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"networks": {}}
    for name in arguments.network or made:
        found["networks"][name] = _network(name, made[name](), arguments)
        write_json(RESULT, {**found, "calibration_images": IMAGES, "versions": versions()})
    print(f"wrote {RESULT}")


def _network(name: str, bundle: Bundle, arguments: Any) -> dict[str, Any]:
    work = arguments.work / name
    data = networks.imagenet(arguments.shared)
    chosen = np.sort(np.random.default_rng(0).permutation(len(data.train))[:IMAGES])
    assert bundle.preprocessing is not None
    images = bundle.preprocessing(data.train.images(chosen))
    peers.write_archives(work, images, bundle.preprocessing)
    bundle = bundle.with_samples(images[:8], np.zeros(8, np.int64)).save(work / "float")
    files = {
        ("edgekit float32", f.parity["format"]): f.path for f in edgekit.export(bundle, ("onnx", "tflite", "ncnn"))
    }
    wanted = {"edgekit": (work / "float", "onnx", work / "int8")}
    for tool, kind in TOOLS:
        model = files["edgekit float32", kind]
        wanted[tool] = (model, kind, work / f"{tool}{model.suffix}")
    # The tools take turns: a disturbance of the machine meets them all.
    made: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.repeats):
        for tool, (model, kind, output) in wanted.items():
            shutil.rmtree(output, ignore_errors=True)
            result = peers.quantized(tool, model, work / peers.ARCHIVES[kind], output, arguments)
            print(f"{name} {tool}: {result or 'left out, for want of the option that names it'}", flush=True)
            if result:
                made.setdefault(tool, []).append(result)
    making = {tool: _median(runs) for tool, runs in made.items()}
    small = edgekit.load(work / "int8")
    files |= {("edgekit int8", kind): _written(small, kind, work / "files-int8") for kind in FORMATS}
    files |= {(tool, kind): wanted[tool][2] for tool, kind in TOOLS if "seconds" in made.get(tool, [{}])[-1]}
    rows = {}
    for kind in FORMATS:
        of_kind = {tool: path for (tool, k), path in files.items() if k == kind}
        measured = edgekit.bench(
            list(of_kind.values()), baseline=of_kind["edgekit float32"], plan=Plan(rounds=arguments.rounds)
        )
        for tool, row in zip(of_kind, measured.rows, strict=True):
            shown = row.to_dict(raw=False)
            rows[f"{kind}: {tool}"] = {key: shown[key] for key in ("p50_ms", "size_bytes", "comparison", "notes")}
            compared = shown["comparison"]
            ratio = f"× {compared['ratio']:.2f} [{compared['low']:.2f}, {compared['high']:.2f}]" if compared else ""
            print(f"{name} {kind} {tool}: {shown['p50_ms']:.2f} ms {ratio}", flush=True)
        # Ours against each peer's, from the same rounds.
        ours = edgekit.bench(
            [p for tool, p in of_kind.items() if tool != "edgekit float32"],
            baseline=of_kind["edgekit int8"],
            plan=Plan(rounds=arguments.rounds),
        )
        others = [tool for tool in of_kind if tool != "edgekit float32"]
        for tool, row in zip(others, ours.rows, strict=True):
            if tool != "edgekit int8":
                rows[f"{kind}: {tool}"]["against_edgekit_int8"] = row.to_dict(raw=False)["comparison"]
    macs = cost_of(bundle.module()).macs
    return {"macs": macs, "making": making, "latency": rows, "target": measured.target, "rounds": arguments.rounds}


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run in the middle, with the seconds of all."""
    if any("failed" in run for run in runs):
        return next(run for run in runs if "failed" in run)
    ordered = sorted(runs, key=lambda run: run["seconds"])
    return {**ordered[len(ordered) // 2], "all_seconds": [run["seconds"] for run in runs]}


def _written(bundle: Bundle, kind: str, folder: Path) -> Path:
    """A file without its proof: random weights amplify every rounding, so outputs of the same network need not agree."""
    exporter = exporter_for(kind)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"edgekit": 1, "input_layout": exporter.input_layout, "input_shape": list(bundle.input_shape)}
    return exporter.write(exporter.lower(bundle, bundle.precision), folder / f"model{exporter.suffix}", metadata)[0]


if __name__ == "__main__":
    main()
