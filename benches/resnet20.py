"""ResNet-20 on CIFAR-10, the whole path: float and int8 in every format, and pruned to half of its MACs.

    python benches/resnet20.py [--shared ../shared/data] [--work runs/resnet20] [--images 5000]

Needs the real data (CIFAR-10 as JPEG copies, and the network adapted to them). The pruning trains for about half an hour
on two cores; killed, the same command goes on. Training and selection see the 50 000 training images alone; every figure
is on the 5 000 test copies. Results go to benches/results/resnet20.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from progress import log

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.cost import cost_of
from edgekit.evaluation import evaluate, paired_difference
from edgekit.files import write_json
from edgekit.runtimes.measure import Plan

FORMATS = ("onnx", "tflite", "ncnn")
# Without refitting, as these figures were taken: benches/resnet56.py has it.
PRUNE = "prune-channels:macs=0.5,reconstruct=0,epochs=16,learning_rate=0.05"
RESULT = Path(__file__).parent / "results" / "resnet20.json"


def made(path: Path, make: Any) -> Bundle:
    """The bundle of this name from an earlier run, or made now."""
    return edgekit.load(path) if (path / "bundle.json").is_file() else make(path)


def main() -> None:
    """Runs the whole path and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/resnet20"))
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    work = arguments.work
    data = edgekit.load_data(f"cifar10:{arguments.shared / 'sets' / 'cifar10_jpegq75_train50k.npz'}")
    weights = arguments.shared / "weights" / "resnet20_jpeg.safetensors"

    def original_at(path: Path) -> Bundle:
        bundle = edgekit.load("zoo:resnet20-cifar", weights=weights)
        x, y = next(iter(data.validation.batches(bundle.preprocessing, 16)))
        return bundle.with_samples(x, y).save(path)

    original = made(work / "original", original_at)
    int8 = made(work / "int8", lambda path: edgekit.compress(original, "quantize", data, output=path, progress=log))
    pruned = made(work / "pruned", lambda path: edgekit.compress(original, PRUNE, data, output=path, progress=log))
    pruned_int8 = made(
        work / "pruned-int8", lambda path: edgekit.compress(pruned, "quantize", data, output=path, progress=log)
    )

    exports: dict[str, Any] = {}
    for name, bundle in {"original": original, "int8": int8, "pruned": pruned, "pruned-int8": pruned_int8}.items():
        for file in edgekit.export(bundle, FORMATS, data=data, images=arguments.images, progress=log):
            keys = ("precision", "size_bytes", "agreement", "agreement_with_program", "accuracy")
            exports[f"{name}/{file.path.name}"] = {key: file.parity[key] for key in keys}
    reference = evaluate(original.module(), data.test, original.preprocessing, limit=arguments.images)
    programs = {}
    for name, bundle in {"original": original, "int8": int8, "pruned": pruned, "pruned-int8": pruned_int8}.items():
        found = evaluate(bundle.module(), data.test, bundle.preprocessing, limit=arguments.images)
        cost = cost_of(bundle.module())
        difference, error = paired_difference(reference, found)
        programs[name] = {
            "top1": found.top1, "difference": difference, "standard_error": error, "macs": cost.macs,
            "parameters": cost.parameters,
        }  # fmt: skip
    measured = edgekit.bench(
        [work / name for name in programs], baseline=work / "original", plan=Plan(rounds=arguments.rounds), progress=log
    )
    write_json(
        RESULT,
        {
            "test_images": len(reference.labels),
            "programs": programs,
            "exports": exports,
            "agreement_of_int8_formats": between(int8, data, arguments.images),
            "bench": measured.to_dict(raw=False),
            "versions": versions(),
        },
    )
    print(f"wrote {RESULT}")


def between(bundle: Bundle, data: Any, images: int) -> dict[str, Any]:
    """How near the int8 ONNX file is to the int8 TFLite file, in steps of the output scale."""
    import numpy as np

    from edgekit.export.lowering import DQ
    from edgekit.program import output_node
    from edgekit.runtimes.accuracy import evaluate_file
    from edgekit.runtimes.targets.target import target_for

    assert bundle.path is not None
    exports = bundle.path / "exports"
    node = output_node(bundle.module())
    assert node.target is DQ
    step = float(node.args[1])  # type: ignore[arg-type]
    with target_for("local") as target:
        onnx, tflite = (
            evaluate_file(
                exports / f"model.int8{suffix}", runtime, target, data.test, bundle.preprocessing, limit=images
            )
            for suffix, runtime in ((".onnx", "onnxruntime"), (".tflite", "tflite"))
        )
    steps = np.abs(onnx.logits - tflite.logits) / step
    return {
        "within_two_steps_percent": float(np.mean(steps <= 2.001) * 100),
        "equal_percent": float(np.mean(steps < 0.5) * 100),
        "largest_steps": float(steps.max()),
    }


if __name__ == "__main__":
    main()
