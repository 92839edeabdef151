"""The whole path on embedded data: load, prune, quantize, export with proof, measure. What ``edgekit demo`` shows."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.benchmark import BenchResult, bench
from edgekit.compress.pipeline import compress
from edgekit.compress.step import no_progress
from edgekit.data.references import load_data
from edgekit.export.run import export
from edgekit.runtimes.measure import Plan
from edgekit.sources.load import load

if TYPE_CHECKING:
    from edgekit.compress.step import Progress

MODEL, DATA = "zoo:digits-cnn", "digits"
PRUNE = "prune-channels:macs=0.5,epochs=12,learning_rate=0.02"
QUANTIZE = "quantize"
FORMATS = ("onnx", "tflite", "ncnn")
# Short rounds, for the network is tiny: its inference takes well below a millisecond.
PLAN = Plan(rounds=8, runs=50, seconds=0.2)


@dataclass(frozen=True)
class DemoResult:
    """What the demo made and measured.

    Attributes:
        bundles: The folders of original, pruned, and pruned + int8.
        bench: All their exported files, measured side by side.
        left_out: Formats that could not be written here, with the reason.
    """

    bundles: tuple[Path, ...]
    bench: BenchResult
    left_out: tuple[str, ...]


def run_demo(output: str | Path, progress: Progress = no_progress) -> DemoResult:
    """Runs the whole path.

    Args:
        output: Where to put the bundles; what is there from an earlier demo is replaced.
        progress: Told how far the work has come.
    """
    output = Path(output)
    data = load_data(DATA)
    formats = [one for one in FORMATS if one != "tflite" or importlib.util.find_spec("litert_torch") is not None]
    left_out = () if len(formats) == len(FORMATS) else ("tflite needs litert-torch: pip install 'edgekit[tflite]'",)
    original = load(MODEL)
    x, y = next(iter(data.validation.batches(original.preprocessing, 16)))
    original = original.with_samples(x, y).save(output / "original")
    pruned = compress(original, PRUNE, data, output=output / "pruned", progress=progress)
    small = compress(pruned, QUANTIZE, data, output=output / "pruned-int8", progress=progress)
    for bundle in (original, pruned, small):
        export(bundle, formats, data=data, progress=progress)
    folders = tuple(output / name for name in ("original", "pruned", "pruned-int8"))
    measured = bench(
        folders,
        runtimes=("onnxruntime", "tflite", "ncnn"),
        data=data,
        baseline=folders[0],
        plan=PLAN,
        progress=progress,
    )
    return DemoResult(folders, measured, left_out)
