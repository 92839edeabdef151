"""The tables of what measures: the harness itself, the matrix, emulated ARM."""

from __future__ import annotations

from tables_shared import NAMES, result

_CLASSES = ("total", "memory", "neon_float", "neon_integer", "dot_product")


def arithmetic() -> list[str]:
    """edgekit's own work with its settings and without."""
    found = result("arithmetic")
    lines = [
        "**edgekit's own work**, with the settings of its process (docs/measuring.md) and as libraries have it, seconds: "
        f"{found['images']} images of calibration of MobileNet V2, {found['steps']} steps of training of ResNet-20, on all "
        "cores; the machine to itself, or one core kept busy by another program, `python benches/arithmetic.py`:",
        "",
        "| machine | settings | calibration | training |",
        "|---|---|---|---|",
    ]
    for key, row in found["rows"].items():
        machine, settings = key.split(", ")
        lines.append(f"| {machine} | {settings} | {row['calibration_s']:.2f} | {row['training_s']:.2f} |")
    return lines


def harness() -> list[str]:
    """Whether measurements are true, and the same again."""
    found = result("harness")
    lines = [
        "**The harness**, `python benches/harness.py truth` and `repeat`. Our p50 over a bare loop's, with no line of edgekit:",
        "",
        "| network | runtime | bare loop, ms | ours ÷ bare [95 %] |",
        "|---|---|---|---|",
    ]
    for key, row in found.get("truth", {}).get("against_bare_loops", {}).items():
        network, runtime = key.split("/")
        ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        lines.append(f"| {network} | {NAMES.get(runtime, runtime)} | {row['bare_ms']:.3g} | {ratio} |")
    if "truth" in found:
        empty = found["truth"]["nanoseconds_between_empty_inferences"]
        lines += [
            "",
            "torch's eager time differs from process to process with its allocator (docs/measuring.md), on both sides.",
        ]
        lines += ["", f"Between two inferences that compute nothing: {empty['between_calls'] / 1000:.2f} µs."]
    if "repeat" in found:
        repeated = found["repeat"]
        slower = f"{repeated['slower_on_purpose']:.0%}"
        lines += [
            "",
            f"MobileNet V2 against its own copy, and against itself made {slower} slower, "
            f"with `--within {repeated['within']:.1%}` while the other core is kept busy; "
            "and how far the ratio of two medians of one file spreads (standard deviation):",
            "",
            f"| runtime | 1.0 held for the copy | {slower} found | rounds | ratio in a round, by turns | of two rounds |",
            "|---|---|---|---|---|---|",
        ]
        for key, row in repeated["pairs"].items():
            runtime = key.split("/")[1]
            lines.append(
                f"| {NAMES.get(runtime, runtime)} | {row['covered']} of {row['times']} | {row['detected']} of {row['times']} "
                f"| {min(row['rounds'])} to {max(row['rounds'])} | {row['spread_in_a_round']:.1%} "
                f"| {row['spread_between_rounds']:.1%} |"
            )
    return lines


def matrix() -> list[str]:
    """Five networks, three precisions, every runtime."""
    found = result("matrix")
    cells = {tuple(key.split("/")): row for key, row in found["cells"].items()}
    lines: list[str] = []
    networks = list(dict.fromkeys(key[0] for key in cells))
    if any(key[1] == "local" for key in cells):
        lines += [
            f"**The matrix here** ({found['targets']['local']['cpu']}; p50 in ms with one and two threads, {found['rounds']} "
            f"interleaved rounds; top-1 on {found['images']} images), "
            f"`python benches/matrix.py --rounds {found['rounds']}`:",
            "",
            "| network | precision | runtime | 1 thread | 2 threads | peak MiB | size KiB | top-1 |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for key, row in cells.items():
            network, target, runtime, precision, threads = key
            if target != "local" or threads != "1":
                continue
            two = cells.get((*key[:4], "2"), {})
            # torch simulates int8 in float unless asked to compute in integers: its accuracy counts, its time does not.
            simulated = (runtime, precision) == ("torch", "int8")
            shown = (
                ["simulated", ""]
                if simulated
                else [f"{one['p50_ms']:.3g}" if "p50_ms" in one else one.get("failure", "") for one in (row, two)]
            )
            peak = f"{row['peak_memory_bytes'] / 2**20:.0f}" if "peak_memory_bytes" in row else ""
            top1 = f"{row['top1']:.1f} %" if "top1" in row else ""
            lines.append(
                f"| {network} | {precision} | {NAMES.get(runtime, runtime)} | {shown[0]} | {shown[1]} | {peak} "
                f"| {row['size_bytes'] / 1024:.0f} | {top1} |"
            )
    emulated = [key for key in cells if key[1] != "local"]
    if emulated:
        lines += [
            "",
            "**Counted on emulated ARM** (millions of instructions of one inference: all, dot products in brackets; "
            f"top-1 on {found['images']} images where they were run there), "
            "`python benches/matrix.py --target emulated:cortex-a76 …`, for counts alone with `--images 0`:",
            "",
        ]
        targets = list(dict.fromkeys(key[1] for key in emulated))
        lines += [
            f"| network | precision | runtime | {' | '.join(name.partition(':')[2] for name in targets)} |",
            "|---|---|---|" + "---|" * len(targets),
        ]
        for network in networks:
            rows = dict.fromkeys((key[3], key[2]) for key in emulated if key[0] == network)
            for precision, runtime in rows:
                told = [_counted(cells.get((network, target, runtime, precision, "1"), {})) for target in targets]
                lines.append(f"| {network} | {precision} | {NAMES.get(runtime, runtime)} | {' | '.join(told)} |")
    return lines


def _counted(row: dict) -> str:  # type: ignore[type-arg]
    if "instructions" not in row:
        return str(row.get("failure", ""))
    counts = row["instructions"]
    top1 = f", {row['top1']:.1f} %" if "top1" in row else ""
    return f"{counts['total'] / 1e6:.3g} ({counts['dot_product'] / 1e6:.3g}){top1}"


def arm() -> list[str]:
    """Accuracy and instructions on emulated ARM CPUs."""
    found = result("arm")
    # Files of one kind together, whatever the order they were measured in.
    cells = sorted(found["cells"].items(), key=lambda one: (one[0].split("/")[1] == "int8", one[0].split("/")[2]))
    widest = max((row["spread"] for _, row in cells if "spread" in row), default=0.0)
    lines = [
        f"**ResNet-20 on ARM, emulated** ({found['test_images']} test images; millions of instructions of one inference, "
        f"the same in each process within {100 * widest:.1g} %; an emulator has no times), `python benches/arm.py`:",
        "",
        "| CPU | file | runtime | all | loads, stores | NEON float | NEON integer | dot product | top-1 (x86) | max Δ to x86 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, row in cells:
        cpu, bundle, _ = key.split("/")
        if "error" in row:
            lines.append(f"| {cpu} | {bundle} | {NAMES[row['runtime']]} | {row['error']} ||||||| |")
            continue
        # What is still to be measured is left blank.
        counted = row.get("instructions")
        counts = " | ".join(f"{counted[kind] / 1e6:.2f}" if counted else "" for kind in _CLASSES)
        right = (
            f"{row['top1']:.1f} % ({row['top1_here']:.1f} %) | {row['max_abs_from_here']:.1g}"
            if "top1" in row
            else " |"
        )
        lines.append(f"| {cpu} | {bundle} | {NAMES[row['runtime']]} | {counts} | {right} |")
    return lines
