"""What the documents tell, from the results in benches/results: ``python benches/tables.py [--write]``.

One line for each bench in the README, all tables in docs/results.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import tables_runtime as runtime
import tables_structure as structure
from tables_shared import NAMES, ROOT, machine, points, result
from tables_summary import summary

BEGIN, END = "<!-- measured: benches/tables.py -->", "<!-- end -->"


def resnet20() -> list[str]:
    """Accuracy, size and latency of ResNet-20 in each runtime."""
    found = result("resnet20")
    lines = [
        f"**ResNet-20, CIFAR-10** ({found['test_images']:,} test images as JPEG copies; {machine(found['bench'])}), "
        "`python benches/resnet20.py`:",
        "",
        "| bundle | runtime | size | top-1 | MACs × | p50 ms | time × [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["bench"]["rows"]:
        name, _, file = row["label"].partition("/")
        simulated = row["runtime"] == "torch" and row["precision"] == "int8"
        accuracy = found["exports"][row["label"]]["accuracy"]["file_top1"] if file else found["programs"][name]["top1"]
        compared, macs = row["comparison"], row["macs_ratio"]
        times = "" if simulated else f"{row['p50_ms']:.3g}"
        ratio = ""
        if compared and not simulated:
            ratio = f"{compared['ratio']:.2f} [{compared['low']:.2f}, {compared['high']:.2f}] {compared['verdict']}"
        runtime = "torch (simulated)" if simulated else NAMES[row["runtime"]]
        cells = [
            name,
            runtime,
            f"{row['size_bytes'] / 1024:.0f} KiB",
            f"{accuracy:.2f} %",
            f"{macs or 1:.2f}",
            times,
            ratio,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    floats = [e for label, e in found["exports"].items() if label.startswith("original/")]
    largest = max(e["agreement_with_program"]["max_abs"] for e in floats)
    between = found["agreement_of_int8_formats"]
    pruned = found["programs"]["pruned"]
    lines += [
        "",
        f"Float files: max |Δ| of logits {largest:.0e} against torch. Int8: ONNX and TFLite outputs agree within two steps of "
        f"the output scale on {between['within_two_steps_percent']:.2f} % of the logits. The pruned network is "
        f"{-pruned['difference']:.2f} ± {pruned['standard_error']:.2f} points below the original (paired), after 16 epochs.",
    ]
    return lines


def pruned_widths() -> list[str]:
    """Why widths are kept on a grid."""
    found = result("pruned_widths")
    lines = [
        f"**The same cut on different grids** (ResNet-20, untrained after the cut; {machine(found['bench'])}), "
        "`python benches/pruned_widths.py`; time against the original:",
        "",
        "| channels cut in multiples of | MACs × | ONNX Runtime | LiteRT | ncnn |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        times = " | ".join(f"{row[r][0]:.2f} {row[r][3]}" for r in ("onnxruntime", "tflite", "ncnn"))
        lines.append(f"| {name.removeprefix('multiple-')} | {row['macs_ratio']:.2f} | {times} |")
    return lines


def quantized_cifar() -> list[str]:
    """Post-training quantization as deployed."""
    found = result("quantize_cifar")
    lines = [
        f"**Quantized after training** (CIFAR-10, {found['test_images']:,} test images; points of top-1 lost against float, "
        "paired, and in brackets deployed minus simulated; ncnn, which has no zero points, holds some tensors on grids of its "
        "own: minus these simulated, and minus the bundle's), `python benches/quantize_cifar.py`:",
        "",
        "| network and step | float | weights × | simulated | ONNX Runtime | LiteRT | ncnn |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["networks"].items():
        cells = [
            f"{name.partition('-')[0]} `{row['step']}`",
            f"{row['float_top1']:.2f} %",
            f"{row['weights_share']:.2f}",
        ]
        simulated = row["simulated"]
        cells.append(f"{points(simulated['drop'])} ± {simulated['standard_error']:.2f}")
        cells += [f"{points(row[f]['drop'])} ({_against_simulated(row[f])})" for f in ("onnx", "tflite", "ncnn")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _against_simulated(row: dict[str, Any]) -> str:
    """What the file loses against the program on the format's grids, and on the bundle's where they differ."""
    own, bundle = row["top1"] - row["lowered_top1"], row["against_simulated"]
    return f"{own:+.2f}" if abs(own - bundle) < 0.005 else f"{own:+.2f}; {bundle:+.2f}"


def quantized_imagenet() -> list[str]:
    """Int8 beside other toolkits, accuracy."""
    found = result("quantize_imagenet")["networks"]
    tools = list(dict.fromkeys(tool for row in found.values() for tool in row["rows"]))
    heads = [f"{name} ({row['float_top1']:.1f} %, {row['test_images']} images)" for name, row in found.items()]
    lines = [
        "**Int8 beside other toolkits**, same images to calibrate on and to judge by (points of top-1 lost against float, "
        "paired ± standard error; SQNR of the outputs), `python benches/quantize_imagenet.py`:",
        "",
        f"| | {' | '.join(heads)} |",
        "|---|" + "---|" * len(found),
    ]
    for tool in tools:
        cells = [tool]
        for row in found.values():
            one = row["rows"].get(tool, {})
            text = (
                f"{points(one['drop'])} ± {one['standard_error']:.1f}, {one['sqnr_db']:.1f} dB"
                if "drop" in one
                else "failed"
            )
            cells.append(text)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def int8_speed() -> list[str]:
    """Int8 beside float and other toolkits, time."""
    found = result("int8_speed")["networks"]
    first = next(iter(found.values()))
    lines = [
        f"**Int8 latency**, ms ({first['target']['cpu']}, one thread, {first['rounds']} interleaved rounds; × is time against "
        "the same runtime's float32; MobileNet V2 and ResNet-50 have random weights, and the int8 files here are timed without "
        "a proof; ncnn2int8: ncnn's own tools as of October 2022, built from source), `python benches/int8_speed.py`:",
        "",
        f"| file | {' | '.join(found)} |",
        "|---|" + "---|" * len(found),
    ]
    for label in dict.fromkeys(label for row in found.values() for label in row["latency"]):
        cells = [label]
        for row in found.values():
            one = row["latency"].get(label)
            ratio = f" × {one['comparison']['ratio']:.2f}" if one and one["comparison"] else ""
            cells.append(f"{one['p50_ms']:.3g}{ratio}" if one else "")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Making the int8 model with 300 images, seconds (all tools in turns; the middle run counts, of "
        + ", ".join(f"{len(row['making']['edgekit']['all_seconds'])} for {name}" for name, row in found.items())
        + ") and peak MiB of the process:",
        "",
        f"| tool | {' | '.join(found)} |",
        "|---|" + "---|" * len(found),
    ]
    for tool in dict.fromkeys(tool for row in found.values() for tool in row["making"]):
        made = [row["making"].get(tool) for row in found.values()]
        cells = [_making(result) if result else "" for result in made]
        lines.append(f"| {tool} | {' | '.join(cells)} |")
    return lines


def _making(result: dict[str, Any]) -> str:
    return f"{result['seconds']:.1f} s, {result['peak_mib']:.0f}" if "seconds" in result else "failed"


def codebooks() -> list[str]:
    """Weight sharing and powers of two."""
    found = result("codebook")
    lines = [
        f"**Few values for each weight** (ResNet-20, float {found['float_top1']:.2f} %), `python benches/codebook.py`:",
        "",
        "| step | points lost | weights in float | entropy of the codes | on disk | whole bundle's program | ONNX |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"].values():
        sizes = [row[k] for k in ("float_bytes", "theory_bytes", "stored_weights_bytes", "archive_bytes", "onnx_bytes")]
        lost = f"{points(row['drop'])} ± {row['standard_error']:.2f}"
        lines.append(f"| `{row['step']}` | {lost} | {' | '.join(f'{size / 1024:.0f} KiB' for size in sizes)} |")
    return lines


def trained() -> list[str]:
    """Quantization-aware training."""
    found = result("qat")
    lines = [
        f"**Quantization-aware training** (ResNet-20, float {found['float_top1']:.2f} %; few epochs, as two cores allow), "
        "`python benches/qat.py --bits 4` with the settings that each step tells (`--epochs`, `--learning-rate`, `--distill`, "
        "`--weight-decay`); minutes are those of the epoch in the middle times their number, on one or two cores:",
        "",
        "| step | points lost | validation top-1 by epoch | as converted | minutes |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"].values():
        curve = ", ".join(f"{epoch['validation_top1']:.2f}" for epoch in row["history"])
        lost = f"{points(row['drop'])} ± {row['standard_error']:.2f}"
        minutes = statistics.median(epoch["seconds"] for epoch in row["history"]) * len(row["history"]) / 60
        lines.append(f"| `{row['step']}` | {lost} | {curve} | {row['converted_validation_top1']:.2f} | {minutes:.0f} |")
    return lines


def memory() -> list[str]:
    """Calibration in bounded memory."""
    rows = result("calibration_memory")["rows"]
    shown = [
        f"{method} {row['200']['peak_mib']:.0f} and {row['20000']['peak_mib']:.0f}" for method, row in rows.items()
    ]
    return [
        "Peak memory (MiB) of calibrating ResNet-20 on 200 and on 20 000 images, the data set itself included: "
        f"{', '.join(shown)} (`python benches/calibration_memory.py`)."
    ]


def others() -> list[str]:
    """What needs no table."""
    seconds, digits = result("startup")["median_s"], result("train_digits")
    return [
        f"`edgekit --help`: {seconds:.2f} s, median of ten (`python benches/startup.py`). The embedded network: "
        f"{digits['test_top1']:.2f} % on the {digits['test_images']} test digits (`python benches/train_digits.py`).",
    ]


def tables() -> str:
    """All of them."""
    parts: dict[str, Callable[[], list[str]]] = {
        "resnet20": resnet20, "pruned_widths": pruned_widths, "quantize_cifar": quantized_cifar,
        "quantize_imagenet": quantized_imagenet, "int8_speed": int8_speed, "codebook": codebooks, "qat": trained,
        "resnet56": structure.resnet56, "classes": structure.few_classes, "pruned_speed": structure.pruned_speed,
        "prune_weights": structure.pruned_weights, "low_rank": structure.low_rank, "distillation": structure.distilled,
        "student": structure.student, "fusion": structure.fusion, "zoo": structure.zoo, "layers": structure.layers,
        "sparse_speed": structure.sparse_speed, "harness": runtime.harness, "matrix": runtime.matrix, "arm": runtime.arm,
        "arithmetic": runtime.arithmetic, "calibration_memory": memory, "startup": others,
    }  # fmt: skip
    # What was not measured has no table.
    made = [part() for name, part in parts.items() if _measured(name)]
    return _marked([line for part in made for line in (*part, "")][:-1])


def documents() -> dict[str, str]:
    """What each document says of it, by its path in the repository."""
    return {"README.md": _marked(summary(_measured)), "docs/results.md": tables()}


def _measured(name: str) -> bool:
    return (ROOT / "benches" / "results" / f"{name}.json").is_file()


def _marked(lines: list[str]) -> str:
    return "\n".join([BEGIN, "", *lines, "", END])


def main() -> None:
    """Prints the tables, or writes them into the documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put them into README.md and docs/results.md")
    arguments = parser.parse_args()
    for name, made in documents().items():
        if not arguments.write:
            print(made)
            continue
        path = ROOT / name
        text = path.read_text()
        start, stop = text.index(BEGIN), text.index(END) + len(END)
        path.write_text(text[:start] + made + text[stop:])


if __name__ == "__main__":
    main()
