"""Whether the harness tells the truth, and whether it tells the same again.

    python benches/harness.py truth [--work runs/harness] [--runtime NAME …]
    python benches/harness.py repeat [--work runs/harness] [--times 10] [--runtime NAME …]

``truth``: the median of `edgekit bench` against a bare loop over each runtime's own interface (bare_loops.py, no line of
edgekit), in turn, each round a fresh process; for a network of 0.05 ms and one of some 10 ms. And the time between two
inferences that compute nothing: what the harness adds to each. Rounds go on until the ratio is known within ``--within``.
``repeat``: a file against its own copy and against itself made 5 % slower on purpose, ten times, while a program keeps the
other core busy. All runs on the first core. Results go to benches/results/harness.json after each runtime.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
from odd_runtimes import NOTHING, SLOW, SLOWER

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.export.exporter import exporter_for
from edgekit.files import write_json
from edgekit.runtimes.comparison import compare, half_width, interval
from edgekit.runtimes.measure import Cell, Plan, measure
from edgekit.runtimes.targets.local import LocalTarget

HERE = Path(__file__).parent
RESULT = HERE / "results" / "harness.json"
FORMATS = {"onnx": "onnxruntime", "tflite": "tflite", "ncnn": "ncnn"}


def files(work: Path) -> dict[tuple[str, str], tuple[Path, np.ndarray]]:
    """A small and a larger network in each format, with an input as the file has it."""
    found = {}
    for name, bundle in (("digits-cnn", edgekit.load("zoo:digits-cnn")), ("mobilenet-v2", networks.mobilenet_v2())):
        x = np.random.default_rng(0).standard_normal((1, *bundle.input_shape), dtype=np.float32)
        for format, runtime in FORMATS.items():
            found[name, runtime] = (_written(bundle, format, work / name), x)
        found[name, "openvino"] = found[name, "onnxruntime"]
        found[name, "torch"] = (bundle.save(work / name / "bundle").path or work, x)
    return found


def _written(bundle: Bundle, format: str, folder: Path) -> Path:
    exporter = exporter_for(format)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"model{exporter.suffix}"
    metadata = {"input_layout": exporter.input_layout, "input_shape": list(bundle.input_shape)}
    exporter.write(exporter.lower(bundle, "float32"), path, metadata)
    return path


def truth(
    work: Path, rounds: int, within: float, runtimes: list[str], before: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Ours against a bare loop, and the harness by itself; what is known so far, after each."""
    plan = Plan(rounds=rounds, within=within, runs=20, seconds=0.5)
    rows = dict(before)
    empty = _empty(work)
    for (name, runtime), (path, x) in files(work).items():
        if runtime not in (runtimes or [runtime]):
            continue
        source = work / "input.npy"
        # NHWC where the file takes it so.
        np.save(source, np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if runtime == "tflite" else x)
        command = [
            sys.executable, str(HERE / "bare_loops.py"), runtime, str(path), str(source), "1", str(plan.runs),
            str(plan.seconds),
        ]  # fmt: skip
        ours: list[tuple[float, ...]] = []
        bare: list[tuple[float, ...]] = []
        order = random.Random(0)
        wanted = rounds
        while len(ours) < min(wanted, plan.most_rounds):
            for side in order.sample(("ours", "bare"), 2):
                if side == "bare":
                    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_plain())
                    bare.append(tuple(json.loads(done.stdout.strip().splitlines()[-1])))
                else:
                    ours.append(_one_round(path, runtime, x, plan))
            # As `edgekit bench --within` goes on.
            if len(ours) == wanted and half_width(*interval(ours, bare)) > within:
                wanted += max(2, wanted // 4)
        low, high = interval(ours, bare)
        ratio = _median(ours) / _median(bare)
        rows[f"{name}/{runtime}"] = {
            "ours_ms": _median(ours), "bare_ms": _median(bare), "ratio": ratio, "low": low, "high": high, "rounds": len(ours),
        }  # fmt: skip
        print(f"{name} in {runtime}: × {ratio:.3f} [{low:.3f}, {high:.3f}], {len(ours)} rounds", flush=True)
        yield {"against_bare_loops": rows, "nanoseconds_between_empty_inferences": empty}


def _one_round(path: Path, runtime: str, x: np.ndarray, plan: Plan) -> tuple[float, ...]:
    with LocalTarget().worker() as worker:
        from edgekit.runtimes.runtime import Options

        worker.open(path, runtime, Options())
        timed = worker.time(
            x, runs=plan.runs, seconds=plan.seconds, warmup_runs=plan.warmup_runs, warmup_seconds=plan.warmup_seconds
        )
    return tuple(timed["samples_ms"])


def _median(rounds: list[tuple[float, ...]]) -> float:
    return float(np.median([np.median(one) for one in rounds]))


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}


def _empty(work: Path) -> dict[str, float]:
    path = work / "nothing"
    path.write_text("")
    cell = Cell(label="nothing", path=path, runtime=NOTHING)
    (found,) = measure([cell], [np.zeros((1, 4), np.float32)], LocalTarget(), Plan(rounds=5, runs=20_000, seconds=0))
    if found.error:
        raise SystemExit(found.error)
    return {"p50_of_samples": found.percentile(50) * 1e6, "between_calls": found.facts["median_ns_between_calls"]}


@contextlib.contextmanager
def busy(cpu: int) -> Iterator[None]:
    """Keeps a core busy with products of matrices."""
    program = (
        f"import os; os.sched_setaffinity(0, {{{cpu}}}); os.nice(19)\n"
        "import numpy as np\n"
        "a = np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)\n"
        "while True: a @ a\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def repeat(
    work: Path, times: int, plan: Plan, other_core: int, runtimes: list[str], before: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The same comparison again and again; what is known so far, after each runtime."""
    rows = dict(before)
    for (name, runtime), (path, x) in files(work).items():
        if name != "mobilenet-v2" or runtime not in SLOW or runtime not in (runtimes or [runtime]):
            continue
        copy = work / "copy" / path.name
        copy.parent.mkdir(exist_ok=True)
        for one in (path, path.with_suffix(".bin")):
            if one.is_file():
                shutil.copy(one, copy.with_suffix(one.suffix))
        cells = [
            Cell(label="file", path=path, runtime=runtime),
            Cell(label="copy", path=copy, runtime=runtime),
            Cell(label="slower", path=path, runtime=SLOW[runtime]),
        ]
        same, slower, rounds, medians = [], [], [], []
        with busy(other_core):
            for number in range(times):
                again = replace(plan, seed=number)
                base, other, slow = measure(cells, [x] * 3, LocalTarget(), again, pairs=[(1, 0), (2, 0)])
                if base.error or other.error or slow.error:
                    raise SystemExit(base.error or other.error or slow.error)
                for found, into in ((other, same), (slow, slower)):
                    judged = compare(found, base, number)
                    into.append([judged.ratio, judged.low, judged.high])
                rounds.append(len(base.rounds_ms))
                both = zip(base.rounds_ms, other.rounds_ms, strict=False)
                medians += [[float(np.median(one)) for one in pair] for pair in both]
                print(f"{runtime} {number}: same {same[-1]}, slower {slower[-1]}, {rounds[-1]} rounds", flush=True)
        rows[f"{name}/{runtime}"] = {
            "same": same,
            "slower": slower,
            "covered": sum(low <= 1 <= high for _, low, high in same),
            "detected": sum(low > 1 for _, low, _ in slower),
            "times": times,
            "rounds": rounds,
            # Of the ratio of two medians of the same file: in one round, by turns, and of rounds that are strangers.
            "spread_in_a_round": float(np.diff(np.log(medians)).std()),
            "spread_between_rounds": float(np.sqrt(2) * np.log(medians).std(axis=0).mean()),
        }
        yield {"pairs": rows, "slower_on_purpose": SLOWER, "within": plan.within, "other_core": "busy"}


def main() -> None:
    """Does one of the two and adds it to the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("truth", "repeat"))
    parser.add_argument("--work", type=Path, default=Path("runs/harness"))
    parser.add_argument("--rounds", type=int, default=8, help="the least")
    parser.add_argument("--within", type=float, default=0.025, help="as `edgekit bench --within`")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--runtime", action="append", help="these alone; the others' rows stay")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    # glibc gives freed memory back to the kernel or keeps it by what was freed before, and torch's time hangs on it: here both
    # sides keep it.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
    # Workers find the odd runtimes beside this file.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    cores = sorted(os.sched_getaffinity(0))
    # What is started from here stays there, on both sides.
    os.sched_setaffinity(0, cores[:1])
    found = json.loads(arguments.result.read_text()) if arguments.result.is_file() else {}
    about = {"target": LocalTarget().describe(), "versions": versions()}
    before, chosen = found.get(arguments.what, {}), arguments.runtime or []
    if arguments.what == "truth":
        rows = before.get("against_bare_loops", {})
        told = truth(arguments.work, arguments.rounds, arguments.within, chosen, rows)
    else:
        plan = Plan(rounds=arguments.rounds, within=arguments.within, cpus=(cores[0],))
        rows = before.get("pairs", {}) if before.get("within") == arguments.within else {}
        told = repeat(arguments.work, arguments.times, plan, cores[-1], chosen, rows)
    for known in told:
        write_json(arguments.result, {**found, arguments.what: known, **about})
    print(f"wrote {arguments.result}")


if __name__ == "__main__":
    main()
