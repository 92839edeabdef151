"""Half of a network's MACs by low rank: what data, refitting and allocation bring, TensorLy at the same ranks, and the clock.

    pip install --no-deps tensorly==0.10.0
    python benches/low_rank.py [--shared ../shared/data] [--work runs/low-rank] [--network vgg11 …] [--part untrained …]

Three parts: ``untrained`` (variants without any training, and every layer decomposed by TensorLy at the same ranks),
``trained`` (short fine-tuning with the original's soft targets) and ``clock`` (the time in three runtimes, one thread,
interleaved). The VGG-11 has half of its channels and is trained here first. Figures are on the 5 000 test copies, paired
with the original's. Each row is kept as it is done; the same command goes on. Results go to benches/results/low_rank.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
from progress import log

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.compress.factorize.algebra import relative_error
from edgekit.compress.factorize.layer import flat, layers_of
from edgekit.compress.factorize.method import method
from edgekit.compress.factorize.statistics import measure, seen_by
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset, to_inputs
from edgekit.evaluation import Evaluation, evaluate, paired_difference
from edgekit.files import write_json
from edgekit.program import attribute
from edgekit.runtimes.measure import Plan

RESULT = Path(__file__).parent / "results" / "low_rank.json"
NETWORKS = ("resnet20", "resnet56", "vgg11")
GOAL = "macs=0.5,multiple={multiple},epochs=0"
VARIANTS = {
    "plain SVD": "images=0,reconstruct=0,allocation=energy",
    "data-aware": "reconstruct=0,allocation=energy",
    "refitted": "allocation=energy",
    "refitted, uniform energy": "allocation=uniform",
    "refitted, by sensitivity": "allocation=sensitivity",
    "refitted through the ReLU, by sensitivity": "allocation=sensitivity,rectified=true",
    "CP alone, refitted, by sensitivity": "allocation=sensitivity,method=cp",
}
CLOCKED = ("auto", "channel", "spatial", "tucker", "cp")
RUNTIMES = {"onnx": "onnxruntime", "tflite": "tflite", "ncnn": "ncnn"}
# The share of the full rank at which a layer's decompositions are compared.
SHARE = 0.6


def main() -> None:
    """Runs the parts and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/low-rank"))
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--method", default="auto", choices=("auto", "spatial", "channel", "tucker", "cp"))
    parser.add_argument("--learning-rate", default="0.01")
    parser.add_argument("--multiple", type=int, default=4)
    parser.add_argument("--part", action="append", choices=("untrained", "trained", "clock"))
    parser.add_argument("--clocked", nargs="+", default=CLOCKED, choices=CLOCKED, help="CP takes long to find.")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {"networks": {}}
    for network in arguments.network or NETWORKS:
        work = arguments.work / network
        if network == "vgg11":
            original, data = networks.cifar_vgg(arguments.shared, work / "float")
        else:
            original, data = networks.cifar_resnet(arguments.shared, int(network.removeprefix("resnet")))
        kept = found["networks"].setdefault(network, {"untrained": {}})
        reference = evaluate(original.module(), data.test, original.preprocessing)
        kept["float_top1"] = reference.top1

        def keep() -> None:
            write_json(RESULT, {**found, "versions": versions()})

        goal = GOAL.format(multiple=arguments.multiple)
        for part in arguments.part or ("untrained", "trained", "clock"):
            if part == "untrained":
                for name, settings in VARIANTS.items():
                    if name not in kept["untrained"]:
                        start = time.monotonic()
                        small = edgekit.compress(original, f"factorize:{goal},{settings}", data, progress=log)
                        seconds = time.monotonic() - start
                        kept["untrained"][name] = {**_row(original, small, data, reference), "seconds": seconds}
                        print(name, kept["untrained"][name], flush=True)
                        keep()
                kept["tensorly"] = kept.get("tensorly") or _tensorly(original, data)
            if part == "trained":
                chosen = "rectified=true" if arguments.method == "auto" else f"method={arguments.method}"
                steps = [
                    f"factorize:{goal},{chosen}",
                    f"finetune:epochs={arguments.epochs},learning_rate={arguments.learning_rate},distill=0.5",
                ]
                key = "trained" if arguments.method == "auto" else f"trained {arguments.method}"
                folder = work / f"{key.replace(' ', '-')}-{arguments.epochs}-{arguments.learning_rate}"
                small = edgekit.compress(original, steps, data, output=folder, progress=log)
                kept[key] = {**_row(original, small, data, reference), "steps": steps}
                print(key, kept[key], flush=True)
            if part == "clock":
                kept["clock"] = _clock(original, goal, work, arguments.clocked)
            keep()


def _row(original: Bundle, small: Bundle, data: Dataset, reference: Evaluation) -> dict[str, Any]:
    result = evaluate(small.module(), data.test, original.preprocessing)
    difference, error = paired_difference(reference, result)
    was, now = cost_of(original.module()), cost_of(small.module())
    return {
        "macs_ratio": now.macs / was.macs,
        "parameters_ratio": now.parameters / was.parameters,
        "top1": result.top1,
        "drop": 0.0 - difference,
        "standard_error": error,
    }


def _tensorly(original: Bundle, data: Dataset) -> dict[str, Any]:
    """Every 3×3 layer at the same rank: the share of the weight and of the output that is missed, and the time taken."""
    from tensorly.decomposition import parafac, partial_tucker

    module = original.module()
    layers = [layer for layer in layers_of(module) if layer.kernel == (3, 3)][1:]
    x = to_inputs(data.train.images(data.train.spread(512)), original.preprocessing)
    statistics = measure(module, layers, x)
    found: dict[str, dict[str, list[float]]] = {}
    for layer in layers:
        weight = attribute(module, layer.weight).detach()
        seen = seen_by(layer, statistics).covariance
        plain = torch.eye(layer.columns, dtype=torch.float64)
        for name in ("tucker", "cp"):
            ours = method(name)
            rank = round(SHARE * (ours.full_rank(layer) if name == "tucker" else 2 * layer.channels_out))
            array = weight.double().numpy()
            start = time.monotonic()
            if name == "tucker":
                inside, outside = ours.ranks(layer, rank)  # type: ignore[attr-defined]
                (core, (left, right)), _ = partial_tucker(array, rank=[outside, inside], modes=[0, 1])
                theirs = np.einsum("pqyx,op,iq->oiyx", core, left, right)
            else:
                scale, (o, i, y, z) = parafac(array, rank=rank, init="svd", n_iter_max=200, random_state=0)
                theirs = np.einsum("r,or,ir,yr,xr->oiyx", scale, o, i, y, z)
            rows = {"tensorly": (torch.from_numpy(np.ascontiguousarray(theirs)), time.monotonic() - start)}
            for tag, covariance in (("weights alone", plain), ("data-aware", seen)):
                start = time.monotonic()
                product = ours.product(ours.decompose(layer, weight, covariance)(rank))
                rows[tag] = product, time.monotonic() - start
            for tag, (product, seconds) in rows.items():
                kept = found.setdefault(f"{name}, {tag}", {"weight": [], "output": [], "seconds": []})
                kept["weight"].append(relative_error(flat(weight), flat(product), plain))
                kept["output"].append(relative_error(flat(weight), flat(product), seen))
                kept["seconds"].append(seconds)
    result = {
        tag: {key: float(np.sum(v) if key == "seconds" else np.mean(v)) for key, v in kept.items()}
        for tag, kept in found.items()
    }
    print(json.dumps(result, indent=1), flush=True)
    return result


def _clock(original: Bundle, goal: str, work: Path, names: Sequence[str]) -> dict[str, Any]:
    """Time against the original's with one thread; weights don't matter for it, so nothing is refitted."""
    x = np.random.default_rng(0).standard_normal((4, *original.input_shape), dtype=np.float32)

    def kept(name: str, make: Callable[[], Bundle]) -> Bundle:
        if not (work / name / "exports").is_dir():
            make().with_samples(x, np.zeros(len(x), np.int64)).save(work / name)
            edgekit.export(Bundle.load(work / name), list(RUNTIMES))
        return Bundle.load(work / name)

    def made(name: str) -> Bundle:
        return edgekit.compress(original, f"factorize:{goal},images=0,reconstruct=0,allocation=energy,method={name}")

    macs = cost_of(kept("original", lambda: original).module()).macs
    rows: dict[str, Any] = {}
    for name in names:
        small = kept(name, functools.partial(made, name))
        rows[name] = {"macs_ratio": cost_of(small.module()).macs / macs, "times": {}}
    folders = [work / name for name in ("original", *names)]
    measured = edgekit.bench(
        folders, runtimes=list(RUNTIMES.values()), threads=(1,), baseline=folders[0], plan=Plan(rounds=5)
    )
    for row in measured.rows:
        if row.comparison is not None:
            compared = row.comparison
            times = rows[row.measurement.cell.label.split("/")[0]]["times"]
            times[row.measurement.cell.runtime] = [compared.ratio, compared.low, compared.high, compared.verdict]
    print(json.dumps(rows, indent=1), flush=True)
    return {"rows": rows, "target": measured.target}


if __name__ == "__main__":
    main()
