"""The one table of the README: a line for each thing that was measured, and the command that repeats it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import tables_structure as structure
from tables_shared import NAMES, points, result

_FORMATS = ("onnxruntime", "tflite", "ncnn")


def summary(measured: Callable[[str], bool]) -> list[str]:
    """The table.

    Args:
        measured: Whether a bench has results; what was not measured has no line.
    """
    lines = ["| what | measured | repeat it |", "|---|---|---|"]
    for name, (command, what, line) in _LINES.items():
        if measured(name):
            lines.append(f"| {what} | {line(result(name))} | `python benches/{command}` |")
    return lines


def _by_runtime(values: dict[str, str]) -> str:
    return ", ".join(f"{value} in {NAMES[runtime]}" for runtime, value in values.items())


def _range(values: Iterable[float], places: str = ".2f") -> str:
    shown = sorted(values)
    low, high = (format(round(value, 6) + 0.0, places).replace("-0.00", "0.00") for value in (shown[0], shown[-1]))
    return low if low == high else f"{low} to {high}"


def _resnet20(found: dict[str, Any]) -> str:
    rows = {
        (row["label"].partition("/")[0], row["runtime"]): row
        for row in found["bench"]["rows"]
        if row["runtime"] in _FORMATS
    }
    small, whole = rows["pruned-int8", "onnxruntime"], rows["original", "onnxruntime"]
    lost = points(-found["programs"]["pruned-int8"]["difference"])
    times = {runtime: f"{rows['pruned-int8', runtime]['comparison']['ratio']:.2f}" for runtime in _FORMATS}
    return (
        f"{whole['size_bytes'] / 1024:.0f} → {small['size_bytes'] / 1024:.0f} KiB, {lost} points lost, time × "
        f"{_by_runtime(times)}"
    )


def _quantized_cifar(found: dict[str, Any]) -> str:
    told = []
    for name in ("resnet20-int8", "resnet56-int8", "resnet20-w4-adaround"):
        row = found["networks"].get(name)
        if row is not None:
            bits = "4-bit weights (AdaRound)" if "w4" in name else "int8"
            lost = _range(row[kind]["drop"] for kind in ("onnx", "tflite", "ncnn"))
            told.append(f"{name.partition('-')[0].replace('resnet', 'ResNet-')} {bits} {lost}")
    return f"{'; '.join(told)} points lost in the three deployed formats"


def _quantized_imagenet(found: dict[str, Any]) -> str:
    told = []
    for name, row in found["networks"].items():
        drops = {tool: one["drop"] for tool, one in row["rows"].items() if "drop" in one}
        ours = points(drops["edgekit onnx"])
        theirs = {tool: drop for tool, drop in drops.items() if not tool.startswith("edgekit")}
        best = min(theirs, key=lambda tool: theirs[tool])
        told.append(f"{name} {ours} (best other: {best}, {points(theirs[best])})")
    return f"points lost: {'; '.join(told)}"


def _int8_speed(found: dict[str, Any]) -> str:
    told = {}
    for runtime, kind in (("onnxruntime", "onnx"), ("tflite", "tflite"), ("ncnn", "ncnn")):
        ratios = [row["latency"][f"{kind}: edgekit int8"]["comparison"]["ratio"] for row in found["networks"].values()]
        told[runtime] = _range(ratios)
    return f"{', '.join(found['networks'])}: time × {_by_runtime(told)}"


def _codebook(found: dict[str, Any]) -> str:
    row = found["rows"]["share-32"]
    return (
        f"weights {row['float_bytes'] / 1024:.0f} → {row['stored_weights_bytes'] / 1024:.0f} KiB, {points(row['drop'])} ± "
        f"{row['standard_error']:.2f} points lost"
    )


def _qat(found: dict[str, Any]) -> str:
    told = [
        f"{name[:4].upper()}{name[4:]} {points(row['drop'])} ± {row['standard_error']:.2f} ({len(row['history'])} epochs)"
        for name, row in found["rows"].items()
    ]
    return f"points lost: {', '.join(told)}"


def _resnet56(found: dict[str, Any]) -> str:
    told, nncf, longer = [], {}, []
    for times, (ours, others) in structure.resnet56_seeds(found).items():
        seeds = min(len(ours), len(others))
        lost = [points(statistics.mean(row["drop"] for row in rows[:seeds])) for rows in (ours, others)]
        if seeds == 1:
            lost = [f"{points(row['drop'])} ± {row['standard_error']:.2f}" for row in (ours[0], others[0])]
        told.append(f"{times}× {lost[0]} (Torch-Pruning {lost[1]}{f'; means of {seeds} seeds' if seeds > 1 else ''})")
    for name, row in found["rows"].items():
        tool, times, _ = name.split()[:3]
        if tool.startswith("nncf"):
            nncf[times] = min(row["drop"], nncf.get(times, row["drop"]))
        if len(row["history"]) > 2:
            of = "the original itself" if tool == "uncut" else f"{times}×"
            longer.append((len(row["history"]), f"{of} {points(row['drop'])} ± {row['standard_error']:.2f}"))
    said = f"points lost after 2 epochs: {'; '.join(told)}"
    if nncf:
        said += f"; NNCF by the better of two rankings {', '.join(f'{t}× {points(lost)}' for t, lost in nncf.items())}"
    for epochs in sorted({epochs for epochs, _ in longer}):
        said += f"; after {epochs}, taught by the original: {', '.join(cell for e, cell in longer if e == epochs)}"
    return said


def _classes(found: dict[str, Any]) -> str:
    gains = {
        name: [row[name]["against_blind"][0] for row in found["rows"].values()] for name in ("aware", "aware distilled")
    }
    aware, distilled = (_range(values, "+.1f") for values in gains.values())
    subsets = "; ".join(classes.replace(",", ", ") for classes in found["rows"])
    return (
        f"30 % of the MACs ({subsets}), points against cutting blind to the classes: {aware} after training on labels, "
        f"{distilled} both taught by the whole"
    )


def _pruned_speed(found: dict[str, Any]) -> str:
    told = []
    for case in found["cases"].values():
        chosen = {runtime: case["rows"][str(multiple)] for runtime, multiple in case["chosen"].items()}
        times = {runtime: f"{row['times'][f'{runtime} 1'][0]:.2f}" for runtime, row in chosen.items()}
        told.append(f"{case['network']}, {case['fewer']:g}× fewer: time × {_by_runtime(times)}")
    return "; ".join(told)


def _low_rank(found: dict[str, Any]) -> str:
    told = []
    for name, rows in found["networks"].items():
        trained = [row for key, row in rows.items() if key.startswith("trained")]
        if not trained:
            continue
        best = min(trained, key=lambda row: row["drop"])
        plain, ours = rows["untrained"].get("plain SVD"), rows["untrained"].get("refitted")
        before = f", untrained {points(ours['drop'])} (plain SVD {points(plain['drop'])})" if plain and ours else ""
        told.append(f"{name} {points(best['drop'])} ± {best['standard_error']:.2f}{before}")
    return f"points lost: {'; '.join(told)}"


def _distillation(found: dict[str, Any]) -> str:
    gains: dict[str, dict[str, list[float]]] = {}
    for run, row in found["rows"].items():
        student, method, seed = run.rsplit(", ", 2)
        alone = found["rows"].get(f"{student}, no teacher, {seed}")
        if alone is not None and method != "no teacher":
            gains.setdefault(student, {}).setdefault(method, []).append(row["top1"] - alone["top1"])
    told = []
    for student, methods in gains.items():
        best = max(methods, key=lambda method: statistics.mean(methods[method]))
        seeds = len(methods[best])
        told.append(
            f"{student}: best of {len(methods)} {best}, {statistics.mean(methods[best]):+.1f} points over no teacher "
            f"({seeds} seed{'s' * (seeds > 1)})"
        )
    return "; ".join(told)


def _student(found: dict[str, Any]) -> str:
    rows = found["rows"]
    against = {
        kind: "{:+.1f} ± {:.1f}".format(*rows[name]["student_against_it"])
        for name, kind in (
            ("labels", "itself without the teacher"),
            ("pruned", f"channels cut alone (× {rows['pruned']['times']['tflite'][0]:.2f} in LiteRT)"),
            ("resnet20", "ResNet-20"),
        )
    }
    times = {runtime: f"{rows['student']['times'][runtime][0]:.2f}" for runtime in _FORMATS}
    beside = ", ".join(f"{value} against {kind}" for kind, value in against.items())
    return f"time × {_by_runtime(times)}; points: {beside}"


def _fusion(found: dict[str, Any]) -> str:
    told = []
    for name, network in found["networks"].items():
        times = {runtime: f"{network['times'][f'{runtime} 1'][0]:.2f}" for runtime in _FORMATS}
        told.append(f"{name}: time × {_by_runtime(times)}")
    return "; ".join(told)


def _zoo(found: dict[str, Any]) -> str:
    rows = found["networks"].values()
    deltas = [
        export["max_abs"] / max(export["largest_output"], 1e-30)
        for row in rows
        for export in row["exports"].values()
        if "max_abs" in export
    ]
    refused = sum("refused" in export for row in rows for export in row["exports"].values())
    also = f", {refused} refused" if refused else ""
    return (
        f"{len(rows)} networks, {len(deltas)} files proved{also}; max |Δ| up to {max(deltas):.0e} of the largest output"
    )


def _sparse(found: dict[str, Any]) -> str:
    parts = []
    for name, row in found["networks"].items():
        counted = "; ".join(
            f"{small['total'] / whole['total']:.2f} on an emulated {target.removeprefix('emulated:')}"
            for target, (whole, small) in row["instructions"].items()
        )
        parts.append(f"{name}: time × {row['comparison'][0]:.2f} here, instructions × {counted}")
    return f"{100 * found['sparsity']:.0f} % zeros: {'. '.join(parts)}"


def _truth(found: dict[str, Any]) -> str:
    ratios: dict[str, list[float]] = {}
    for key, row in found["truth"]["against_bare_loops"].items():
        ratios.setdefault(key.split("/")[1], []).append(row["ratio"])
    return f"our p50 ÷ a bare loop's: {_by_runtime({r: _range(v, '.3f') for r, v in ratios.items()})}"


def _matrix(found: dict[str, Any]) -> str:
    times: dict[str, list[float]] = {}
    for key, row in found["cells"].items():
        network, target, runtime, precision, threads = key.split("/")
        whole = found["cells"].get("/".join((network, target, runtime, "float32", threads)), {})
        if precision == "int8" and runtime in _FORMATS and row.get("p50_ms") and whole.get("p50_ms"):
            times.setdefault(runtime, []).append(whole["p50_ms"] / row["p50_ms"])
    networks = len({key.split("/")[0] for key in found["cells"]})
    return f"{networks} networks, float32's time over int8's: {_by_runtime({r: _range(v) for r, v in times.items()})}"


def _arm(found: dict[str, Any]) -> str:
    right = [row for row in found["cells"].values() if "top1" in row]
    apart = max(abs(row["top1"] - row["top1_here"]) for row in right)
    cpus = sorted({key.split("/")[0] for key in found["cells"]})
    return f"{len(right)} files on {', '.join(cpus)}: accuracy within {apart:.1f} points of x86"


def _memory(found: dict[str, Any]) -> str:
    grown = [row["20000"]["peak_mib"] / row["200"]["peak_mib"] - 1 for row in found["rows"].values()]
    return f"peak with 20 000 images against 200: {_range(grown, '+.0%')}"


def _arithmetic(found: dict[str, Any]) -> str:
    def gain(machine: str, work: str) -> str:
        kinds = ("as libraries have it", "prepared")
        theirs, ours = (found["rows"][f"{machine}, {how}"][work] for how in kinds)
        return f"{theirs / ours:.2g}"

    return "; ".join(
        f"{machine}: calibration {gain(machine, 'calibration_s')}, training {gain(machine, 'training_s')} times as fast as "
        "with the libraries' defaults"
        for machine in ("idle", "one core busy")
    )


_LINES: dict[str, tuple[str, str, Callable[[dict[str, Any]], str]]] = {
    "resnet20": ("resnet20.py", "ResNet-20, half of the MACs cut, int8", _resnet20),
    "quantize_cifar": ("quantize_cifar.py", "Quantized after training, CIFAR-10", _quantized_cifar),
    "quantize_imagenet": ("quantize_imagenet.py", "Int8 beside other toolkits, real images", _quantized_imagenet),
    "int8_speed": ("int8_speed.py", "Int8 against float32 by the clock", _int8_speed),
    "calibration_memory": ("calibration_memory.py", "Memory of calibration", _memory),
    "codebook": ("codebook.py", "ResNet-20 with 32 values a layer", _codebook),
    "qat": ("qat.py", "ResNet-20 trained with few bits", _qat),
    "resnet56": ("resnet56.py", "Channels cut from ResNet-56, MACs divided by", _resnet56),
    "classes": ("classes.py", "ResNet-20 for a few classes", _classes),
    "pruned_speed": ("pruned_speed.py", "Fewer MACs by the clock", _pruned_speed),
    "low_rank": ("low_rank.py", "Half of the MACs by low rank", _low_rank),
    "distillation": ("distillation.py", "ResNet-56 as a teacher", _distillation),
    "student": ("student.py", "An automatic student of ResNet-56", _student),
    "fusion": ("fusion.py", "Sibling layers merged", _fusion),
    "sparse_speed": ("sparse_speed.py", "Zeros in 1×1 convolutions, LiteRT", _sparse),
    "zoo": ("zoo.py", "The zoo, exported three times", _zoo),
    "matrix": ("matrix.py --rounds 3", "The matrix here", _matrix),
    "arm": ("arm.py", "ResNet-20 on emulated ARM, 500 images", _arm),
    "arithmetic": ("arithmetic.py", "edgekit's own work on two cores", _arithmetic),
    "harness": ("harness.py truth", "The harness against bare loops", _truth),
}
