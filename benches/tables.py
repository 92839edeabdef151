"""The tables of the README, from the results in benches/results: ``python benches/tables.py [--write]``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- measured: benches/tables.py -->", "<!-- end -->"
NAMES = {"onnxruntime": "ONNX Runtime", "tflite": "LiteRT", "ncnn": "ncnn", "torch": "torch (eager)"}


def result(name: str) -> dict[str, Any]:
    """One file of results."""
    found: dict[str, Any] = json.loads((ROOT / "benches" / "results" / f"{name}.json").read_text())
    return found


def machine(bench: dict[str, Any]) -> str:
    """What was measured on."""
    target, plan = bench["target"], bench["plan"]
    return f"{target['cpu']}, one thread, {plan['rounds']} interleaved rounds"


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


def others() -> list[str]:
    """What needs no table."""
    seconds, digits = result("startup")["median_s"], result("train_digits")
    return [
        f"`edgekit --help`: {seconds:.2f} s, median of ten (`python benches/startup.py`). The embedded network: "
        f"{digits['test_top1']:.2f} % on the {digits['test_images']} test digits (`python benches/train_digits.py`).",
    ]


def tables() -> str:
    """All of them."""
    return "\n".join([BEGIN, "", *resnet20(), "", *pruned_widths(), "", *others(), "", END])


def main() -> None:
    """Prints the tables, or writes them into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put them into README.md")
    if not parser.parse_args().write:
        print(tables())
        return
    readme = ROOT / "README.md"
    text = readme.read_text()
    start, stop = text.index(BEGIN), text.index(END) + len(END)
    readme.write_text(text[:start] + tables() + text[stop:])


if __name__ == "__main__":
    main()
