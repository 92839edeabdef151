"""ResNet-50 and ResNet-101, batch 8, on a GPU: the framework's float32 against its and others' float16, bfloat16 and int8.

    python benches/gpu.py [--device cuda|cpu] [--shared ../shared/data] [--work runs/gpu] [--network resnet50 …] [--rounds 8]

All files and runtimes of a network are measured one after the other in every round, in fresh processes; on a GPU the input
lies in its memory and a run ends when the GPU has. Weights come from ``weights/NAME*.safetensors`` below --shared (with
torchvision's names); otherwise they are random, and outputs then say how far the arithmetic differs, not what accuracy is kept.
The bar is that of TensorRT 4 on its GPU: int8 at least 4.0 times as fast as the framework's float32. Without CUDA
--device cuda ends with exit code 2. Results go to benches/results/gpu.json (--output names another file).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.data.dataset import Dataset, Split, make_dataset
from edgekit.errors import ExecutionError
from edgekit.evaluation import sqnr
from edgekit.export.exporter import exporter_for
from edgekit.files import write_json
from edgekit.program import export_program
from edgekit.runtimes.choice import choose
from edgekit.runtimes.measure import Cell, Measurement, Plan, compare, measure
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets.target import Target, target_for
from edgekit.runtimes.torch import no_cuda
from edgekit.zoo.initialization import settle_statistics
from edgekit.zoo.resnet import ResNet

RESULT = Path(__file__).parent / "results" / "gpu.json"
# Blocks of each stage: He et al., CVPR 2016, table 1.
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
SHAPE = (3, 224, 224)
BAR = 4.0
IMAGES = 64
BASELINE = "torch float32"
FAST = "compile=true,channels_last=true,cuda_graphs=true"
# What is measured: its name, the file (program or ONNX, float or int8), and the runtime with its settings.
CELLS = {
    "cuda": (
        (BASELINE, "program", "torch:device=cuda"),
        ("torch TF32", "program", "torch:device=cuda,precision=tf32,channels_last=true"),
        ("torch float16, compiled", "program", f"torch:device=cuda,precision=float16,{FAST}"),
        ("torch bfloat16, compiled", "program", f"torch:device=cuda,precision=bfloat16,{FAST}"),
        ("ONNX Runtime float32", "onnx", "onnxruntime:provider=cuda"),
        ("TensorRT float16", "onnx", "onnxruntime:provider=tensorrt,precision=float16"),
        ("TensorRT int8", "onnx int8", "onnxruntime:provider=tensorrt,precision=int8"),
    ),
    "cpu": (
        (BASELINE, "program", "torch"),
        ("torch float32, compiled", "program", "torch:compile=true"),
        ("torch bfloat16, compiled", "program", "torch:precision=bfloat16,compile=true,channels_last=true"),
        ("torch int8, compiled", "program int8", "torch:precision=int8"),
        ("ONNX Runtime float32", "onnx", "onnxruntime"),
        ("ONNX Runtime int8", "onnx int8", "onnxruntime"),
        ("OpenVINO int8", "onnx int8", "openvino"),
    ),
}


def main() -> None:
    """Makes the files, measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(CELLS), default="cuda")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--network", action="append", choices=tuple(BLOCKS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="Of the processor.")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and (lacking := no_cuda()) is not None:
        print(f"error: {lacking.reason}\n  → {lacking.install}; or --device cpu", file=sys.stderr)
        sys.exit(2)
    found: dict[str, Any] = {"device": arguments.device, "bar": BAR, "batch": arguments.batch, "networks": {}}
    for name in arguments.network or BLOCKS:
        found["networks"][name] = _network(name, arguments)
        write_json(arguments.output, {**found, "rounds": arguments.rounds, "versions": versions()})
    print(f"wrote {arguments.output}")


def _network(name: str, arguments: Any) -> dict[str, Any]:
    bundle, weights = _load(name, arguments.shared)
    data = _data(arguments.shared, bundle)
    paths = _files(bundle, data, arguments.work / name)
    cells = []
    for label, file, choice in CELLS[arguments.device]:
        chosen = choose(choice)
        cells.append(
            Cell(
                label=label, path=paths[file], runtime=chosen.name, threads=arguments.threads, extra=dict(chosen.extra)
            )
        )
    x = np.concatenate([batch for batch, _ in data.test.batches(bundle.preprocessing, 8, limit=IMAGES)])
    x = np.resize(x, (-(-len(x) // arguments.batch) * arguments.batch, *SHAPE))
    with target_for("local") as target:
        machine = target.describe()
        plan = Plan(rounds=arguments.rounds, batch=arguments.batch, warmup_runs=5, warmup_seconds=0.5)

        def said(done: int, total: int, text: str) -> None:
            print(f"{done}/{total} {text}", flush=True)

        outputs = []
        for cell in cells:
            print(f"{name}: what {cell.label} gives", flush=True)
            outputs.append(_outputs(cell, x, arguments.batch, target))
        measured = measure(cells, [x[: arguments.batch]] * len(cells), target, plan, said)
    rows = {
        cell.label: _row(one, measured[0], output, outputs[0])
        for cell, one, output in zip(cells, measured, outputs, strict=True)
    }
    for label, row in rows.items():
        print(f"{name} {label}: {row.get('error') or row['p50_ms']} {row.get('times_as_fast', '')}", flush=True)
    return {"weights": weights, "rows": rows, "target": machine}


def _load(name: str, shared: Path) -> tuple[Bundle, str]:
    """The network, and where its weights are from."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResNet(50, blocks=BLOCKS[name])
        settle_statistics(network, SHAPE)
    weights = next(iter(sorted((shared / "weights").glob(f"{name}*.safetensors"))), None)
    if weights is not None:
        from safetensors.torch import load_file

        network.load_state_dict(load_file(weights))
    bundle = Bundle(export_program(network.eval(), SHAPE), SHAPE, preprocessing=networks.IMAGENET_224)
    return bundle, weights.name if weights is not None else "random"


def _data(shared: Path, bundle: Bundle) -> Dataset:
    """ImageNet-like images, or smooth random ones where there are none."""
    if (shared / "sets" / "nips17_imagenet1k_299_q92.npz").is_file():
        return networks.imagenet(shared)
    coarse = torch.rand(3 * IMAGES, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=SHAPE[1:], mode="bilinear")
    images = (255 * smooth).byte().permute(0, 2, 3, 1).numpy()
    parts = [Split(images[start::3], np.arange(IMAGES)) for start in range(3)]
    return make_dataset("random", [str(i) for i in range(1000)], parts[0], validation=parts[1], test=parts[2])


def _files(bundle: Bundle, data: Dataset, work: Path) -> dict[str, Path]:
    """The program and its ONNX file, in float and in int8, without the proof: random weights would not pass it."""
    work.mkdir(parents=True, exist_ok=True)
    # TensorRT's int8 has no zero points.
    small = edgekit.compress(bundle, f"quantize:symmetric=true,images={IMAGES}", data)
    exporter = exporter_for("onnx")
    metadata = {"edgekit": 1, "input_layout": exporter.input_layout, "input_shape": list(SHAPE)}
    found = {}
    for ending, one in (("", bundle), (" int8", small)):
        found[f"program{ending}"] = one.save(work / f"program{ending.strip()}").path or work
        path = work / f"model{ending.replace(' ', '.')}.onnx"
        found[f"onnx{ending}"] = exporter.write(exporter.lower(one, one.precision), path, metadata)[0]
    return found


def _outputs(cell: Cell, x: np.ndarray, batch: int, target: Target) -> np.ndarray | None:
    try:
        with target.worker() as worker:
            worker.open(cell.path, cell.runtime, Options(threads=cell.threads, extra=cell.extra))
            return np.concatenate([worker.run(x[start : start + batch])[0] for start in range(0, len(x), batch)])
    except ExecutionError:
        return None  # the measurement meets the same error, and tells it


def _row(
    one: Measurement, baseline: Measurement, output: np.ndarray | None, reference: np.ndarray | None
) -> dict[str, Any]:
    if one.error:
        return {"choice": one.cell.choice, "error": one.error}
    row = {"choice": one.cell.choice, "p50_ms": one.percentile(50), "facts": one.facts}
    if not baseline.error and one is not baseline:
        compared = compare(one, baseline)
        row["times_as_fast"] = 1 / compared.ratio
        row["interval"] = [1 / compared.high, 1 / compared.low]
    if output is not None and reference is not None:
        row["same_top1_percent"] = 100 * float(np.mean(output.argmax(1) == reference.argmax(1)))
        row["sqnr_db"] = sqnr(reference, output)
    return row


if __name__ == "__main__":
    main()
