"""The tables of what changes a network's structure: pruning, low rank, students, distillation, rewriting, and the zoo."""

from __future__ import annotations

import itertools
import re
import statistics
from typing import Any

from tables_shared import NAMES, machine, points, result


def resnet56() -> list[str]:
    """Channel pruning beside another toolkit."""
    found = result("resnet56")
    lines = [
        f"**Channels cut from ResNet-56** (CIFAR-10, float {found['float_top1']:.2f} %; the same training for all where the "
        "epochs are as many; README tells the mean over seeds of ours as the command cuts by default), `python "
        "benches/resnet56.py`; rows of 14 epochs by `--ours-alone --epochs 14 --learning-rate 0.05 --distill 0.5 --precision "
        "bfloat16`, others by `--importance`, `--rounds`, `--whole`, `--refit`, `--multiple`, `--distill`, `--seed`, "
        "NNCF's by `--nncf PYTHON`:",
        "",
        "| tool, MACs divided by | MACs × | parameters × | top-1 before training | validation top-1 by epoch | top-1 after | "
        "points lost | against the others |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        tool, times, _, *kind = name.split()
        tool += "".join(f", {_told(word)}" for word in kind)
        grid = re.search(r"multiple=(\d+)", row["steps"][0])
        tool += f" (in multiples of {grid[1]})" if grid and grid[1] != "1" else ""
        lost = f"{points(row['drop'])} ± {row['standard_error']:.2f}"
        cells = [f"{tool}, {times}", f"{row['macs_ratio']:.2f}", f"{row['parameters_ratio']:.2f}"]
        epochs = ", ".join(f"{epoch['validation_top1']:.2f}" for epoch in row["history"])
        cells += [f"{row['top1_before_training']:.2f} %", epochs, f"{row['top1']:.2f} %", lost]
        beside = row.get("against", {}).items()
        cells.append(", ".join(f"{other} {value:+.2f} ± {error:.2f}" for other, (value, error) in beside))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Mean over the seeds of the training, of ours as the command cuts by default:", ""]
    lines += [
        "| MACs divided by | seeds | points lost | Torch-Pruning's | against Torch-Pruning, seed by seed | mean |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for times, (ours, others) in resnet56_seeds(found).items():
        if len(ours) == len(others) > 1:
            each = [other["drop"] - row["drop"] for row, other in zip(ours, others, strict=True)]
            lost = [points(statistics.mean(row["drop"] for row in rows)) for rows in (ours, others)]
            told = ", ".join(f"{value:+.2f}" for value in each)
            lines.append(f"| {times} | {len(ours)} | {lost[0]} | {lost[1]} | {told} | {statistics.mean(each):+.2f} |")
    return [*lines, *_by_time(found["rows"])]


def _by_time(rows: dict[str, Any]) -> list[str]:
    """Accuracy against the time of training, of the longer rows: at each mark, the last epoch done by then."""
    longer = {name.split()[1]: row["history"] for name, row in rows.items() if len(row["history"]) > 2}
    taken = {times: list(itertools.accumulate(e["seconds"] / 60 for e in history)) for times, history in longer.items()}
    marks = [mark for mark in (5, 10, 20, 30, 40, 50, 60, 75) if mark < max(ends[-1] for ends in taken.values())]
    lines = [
        "",
        "Validation top-1 against training time, one thread on one of two cores, which had other work besides. The learning "
        "rate rises first (one cycle) and falls to nothing at the end, so each curve is of its whole run. The original was "
        "trained on most of these validation images, so all stand higher than on the test images:",
        "",
        f"| MACs divided by | {' | '.join(f'{mark} min' for mark in marks)} | at the end | an epoch |",
        "|---" * (len(marks) + 3) + "|",
    ]
    for times, history in longer.items():
        done = [sum(end <= mark for end in taken[times]) for mark in marks]
        cells = [f"{history[count - 1]['validation_top1']:.2f}" if count else "" for count in done]
        cells = ["" if count == len(history) else cell for cell, count in zip(cells, done, strict=True)]
        cells.append(f"{history[-1]['validation_top1']:.2f} ({taken[times][-1]:.0f} min)")
        seconds = [epoch["seconds"] for epoch in history]
        cells.append(f"{min(seconds) / 60:.1f} to {max(seconds) / 60:.1f} min")
        lines.append(f"| {times if times != '1' else '1 (uncut)'} | {' | '.join(cells)} |")
    return lines


def resnet56_seeds(found: dict[str, Any]) -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """By what MACs are divided by: the rows of ours, as the bench cuts by default, and of the other tool, one for each seed."""
    rows: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for name, row in sorted(found["rows"].items()):
        matched = re.fullmatch(r"(edgekit|torch-pruning) (\S+) 2( seed-\d+)?( energy-100 inside)?", name)
        if matched and (matched[1] == "edgekit") == bool(matched[4]):
            rows.setdefault(matched[2], ([], []))[matched[1] != "edgekit"].append(row)
    return rows


def _told(word: str) -> str:
    """A word of a row's name: ``l2-20`` are 20 rounds by L2."""
    name, _, number = word.partition("-")
    return f"{name} {number}" if name == "seed" else f"{name} in {number} rounds" if number else name


def student() -> list[str]:
    """A student made from its teacher."""
    found = result("student")
    rows, settings = found["rows"], found["settings"]
    kinds = {
        "teacher": "ResNet-56, the teacher",
        "student": f"its student ({found['search']['chosen'].replace('+', ', ')})",
        "labels": "the same student without its teacher",
        "pruned": "channels cut alone, distilled",
        "resnet20": "ResNet-20, trained for much longer",
    }
    heads = [runtime for runtime in NAMES if runtime in rows["student"]["times"]]
    lines = [
        f"**A student of ResNet-56 at {settings['goal'].replace('=', ' ').replace('@', ' of the original in ')}** (CIFAR-10; "
        f"{settings['images'] or 45000:,} images, {settings['epochs']} time(s), for each; time × in each runtime), "
        "`python benches/student.py`:",
        "",
        f"| network | MACs × | top-1 fitted | top-1 trained | the student against it | {' | '.join(NAMES[h] for h in heads)} |",
        "|---|---|---|---|---|" + "---|" * len(heads),
    ]
    for name, kind in kinds.items():
        row = rows[name]
        fitted = f"{row['top1_before_training']:.2f} %" if "top1_before_training" in row else ""
        difference = "" if name == "student" else "{:+.2f} ± {:.2f}".format(*row["student_against_it"])
        times = [f"{row['times'][h][0]:.2f}" if h in row.get("times", {}) else "" for h in heads]
        cells = [kind, f"{row['macs_ratio']:.2f}", fitted, f"{row['top1']:.2f} %", difference, *times]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def few_classes() -> list[str]:
    """Networks for a few classes."""
    found = result("classes")
    ways = ("blind", "aware", "blind distilled", "aware distilled")
    seeds = max(len(row["aware"]["against_blind_by_seed"]) for row in found["rows"].values())
    lines = [
        "**A few classes of CIFAR-10 from ResNet-20** (top-1 on the test images of these classes, before and after "
        f"{found['epochs']} epochs on them, means of {seeds} seeds; blind: cut without knowledge of the classes, then "
        "restricted; aware: restricted, then cut; each by the criterion that it does better with before training, on "
        "validation images; distilled: the restricted whole teaches; differences against blind with the same training, paired, "
        "with their standard error over images, and seed by seed), `python benches/classes.py`:",
        "",
        f"| classes | the whole, restricted | MACs × | {' | '.join(ways)} |",
        "|---|---|---|" + "---|" * len(ways),
    ]
    for classes, row in found["rows"].items():
        macs = " and ".join(f"{row[way]['macs_ratio']:.3f}" for way in ("blind", "aware"))
        cells = [classes.replace(",", ", "), f"{row['restricted_top1']:.1f} %", macs]
        for name in ways:
            one = row[name]
            difference, error = one["against_blind"]
            each = ", ".join(f"{value:+.1f}" for value in one["against_blind_by_seed"])
            beside = "" if name.startswith("blind") else f"; {difference:+.1f} ± {error:.1f}: {each}"
            cells.append(f"{one['top1_before_training']:.1f} → {one['top1']:.1f} % ({one['importance']}{beside})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def pruned_speed() -> list[str]:
    """Fewer MACs, by the clock."""
    found = result("pruned_speed")
    lines = []
    for case in found["cases"].values():
        heads = list(next(iter(case["rows"].values()))["times"])
        lines += [
            f"**{case['fewer']:g} times fewer MACs in {case['network']}, by the clock** ({case['target']['cpu']}, "
            f"{found['rounds']} interleaved rounds; time × the original's in each runtime, with one and two threads, 95 % "
            "interval), `python benches/pruned_speed.py`:",
            "",
            f"| grid | MACs × | {' | '.join(heads)} |",
            "|---|---|" + "---|" * len(heads),
        ]
        for multiple, row in case["rows"].items():
            by = [runtime for runtime, chosen in case["chosen"].items() if str(chosen) == multiple]
            grid = f"{multiple} (align: {', '.join(by)})" if by else multiple
            times = [
                "{:.2f} [{:.2f}, {:.2f}]".format(*row["times"][head]) if head in row["times"] else "" for head in heads
            ]
            lines.append(f"| {grid} | {row['macs_ratio']:.2f} | {' | '.join(times)} |")
        if "16" not in case["rows"]:
            lines.append("| 16 | can't be cut so far |" + " |" * len(heads))
        lines.append("")
    return lines[:-1]


def fusion() -> list[str]:
    """Sibling layers merged into one."""
    found = result("fusion")
    first = next(iter(found["networks"].values()))
    heads = list(first["times"])
    lines = [
        f"**Sibling layers merged into one** (`rewrite`; {first['target']['cpu']}, {found['rounds']} interleaved rounds; time "
        "× the original's in each runtime with one and two threads, 95 % interval), `python benches/fusion.py`:",
        "",
        f"| network (groups merged) | {' | '.join(heads)} |",
        "|---|" + "---|" * len(heads),
    ]
    for name, network in found["networks"].items():
        times = [
            f"{ratio:.2f} [{low:.2f}, {high:.2f}] {verdict}"
            for ratio, low, high, verdict in (network["times"][head] for head in heads)
        ]
        lines.append(f"| {name} ({len(network['rewrite']['siblings'])}) | {' | '.join(times)} |")
    return lines


def layers() -> list[str]:
    """Where the time goes, by kind of layer."""
    found = result("layers")
    line = found["roofline"]
    lines = [
        f"**Where the time goes** (`edgekit bench layers`; {found['target']['cpu']}, one thread, medians of "
        f"{found['runs']} runs; roofline: {line['float32_macs_per_second'] / 1e9:.0f} GMAC/s in float32, copying "
        f"{line['bytes_per_second'] / 1e9:.0f} GB/s; a cell is the share of the file's time, and of the roofline; above 100 % "
        "where data stays in caches, or Winograd's algorithm saves multiplications), `python benches/layers.py`:",
    ]
    for name, network in found["networks"].items():
        runtimes = list(network["runtimes"])
        total = sum(kind["macs"] for kind in network["kinds"].values())
        lines += [
            "",
            f"| {name} | MACs | {' | '.join(NAMES[runtime] for runtime in runtimes)} |",
            "|---|---|" + "---|" * len(runtimes),
        ]
        # Of the medians' sum: whole runs may have been interrupted.
        summed = {
            runtime: sum(row["runtimes"][runtime]["ms"] for row in network["kinds"].values()) for runtime in runtimes
        }
        for kind, row in network["kinds"].items():
            cells = [_time_and_roof(row["runtimes"][runtime], summed[runtime]) for runtime in runtimes]
            lines.append(f"| {kind} | {100 * row['macs'] / total:.0f} % | {' | '.join(cells)} |")
        wholes = [f"{network['runtimes'][runtime]['whole_ms']:.3g} ms" for runtime in runtimes]
        lines.append(f"| whole, unprofiled | | {' | '.join(wholes)} |")
    return lines


def _time_and_roof(times: dict[str, float], total_ms: float) -> str:
    share = f"{100 * times['ms'] / total_ms:.0f} %"
    return (
        f"{share} ({100 * times['attainable_ms'] / times['ms']:.0f} %)"
        if times["ms"] and times["attainable_ms"]
        else share
    )


def sparse_speed() -> list[str]:
    """Zeros in LiteRT."""
    found = result("sparse_speed")
    targets = list(dict.fromkeys(target for row in found["networks"].values() for target in row["instructions"]))
    names = [target.removeprefix("emulated:") for target in targets]
    lines = [
        f"**{100 * found['sparsity']:.0f} % zeros in the 1×1 convolutions, in LiteRT** (random weights; time here, where "
        "XNNPACK takes its dense kernels, as on every x86 with AVX; and instructions counted on emulated ARM CPUs, where it "
        "takes its sparse ones: all × the dense file's, in brackets those of NEON's float arithmetic; no times), "
        "`python benches/sparse_speed.py`:",
        "",
        "| network | sparse 1×1 convolutions | size, MiB | time × here | "
        f"{' | '.join(f'{name}, instructions ×' for name in names)} |",
        "|---|---|---|---|" + "---|" * len(names),
    ]
    for network, row in found["networks"].items():
        ratio, low, high, verdict = row["comparison"]
        dense, sparse = (size / 2**20 for size in row["size_bytes"])
        cells = [network, "{} of {}".format(*row["sparse_layers"]), f"{dense:.1f} → {sparse:.1f}"]
        cells.append(f"{ratio:.2f} [{low:.2f}, {high:.2f}] {verdict}")
        for target in targets:
            whole, small = row["instructions"][target]
            cells.append(
                f"{small['total'] / whole['total']:.2f} ({small['neon_float'] / whole['neon_float']:.2f}) of "
                f"{whole['total'] / 1e6:.0f} M"
            )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def pruned_weights() -> list[str]:
    """Weight pruning."""
    found = result("prune_weights")
    lines = [
        f"**Zeros** (ResNet-20, float {found['float_top1']:.2f} %; few epochs, as two cores allow; no runtime is faster by "
        "them), `python benches/prune_weights.py`:",
        "",
        "| step | zeros | points lost | weights in float | theory | on disk | ONNX (float) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"].values():
        sizes = [
            f"{row[k] / 1024:.0f} KiB" for k in ("float_bytes", "theory_bytes", "stored_weights_bytes", "onnx_bytes")
        ]
        lost = f"{points(row['drop'])} ± {row['standard_error']:.2f}"
        whole = f"({row['float_onnx_bytes'] / 1024:.0f})"
        lines.append(f"| `{row['step']}` | {100 * row['zeros']:.0f} % | {lost} | {' | '.join(sizes)} {whole} |")
    return lines


def distilled() -> list[str]:
    """What each method of distillation is worth."""
    found = result("distillation")
    rows, settings = found["rows"], found["settings"]
    runs = [run.rsplit(", ", 2) for run in rows]
    students, methods = (list(dict.fromkeys(run[place] for run in runs)) for place in (0, 1))
    lines = [
        f"**Distillation, ResNet-56 ({found['teacher_top1']:.2f} %) as the teacher** (CIFAR-10, from scratch; the same short "
        f"budget for all: {settings['images']:,} images {settings['epochs']} times; top-1 on the test images, mean ± "
        "standard deviation over the seeds, and the gain over no teacher, paired by seed), `python benches/distillation.py`:",
        "",
        f"| method | {' | '.join(f'{s} | gain | seeds' for s in students)} |",
        "|---|" + "---|---|---|" * len(students),
    ]
    for method in methods:
        cells = [method]
        for student in students:
            top1 = {run[2]: rows[", ".join(run)]["top1"] for run in runs if run[:2] == [student, method]}
            alone = {seed: rows.get(f"{student}, no teacher, {seed}", {}).get("top1") for seed in top1}
            gains = [top1[seed] - alone[seed] for seed in top1 if alone[seed] is not None and method != "no teacher"]
            cells += [_spread(list(top1.values()), " %"), _spread(gains, "", "+"), str(len(top1))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _spread(values: list[float], unit: str, sign: str = "") -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):{sign}.2f}{unit}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def zoo() -> list[str]:
    """What compact architectures buy: counts, parity and latency of every network."""
    found = result("zoo")
    networks = found["networks"]
    first = next(iter(networks.values()))
    lines = [
        f"**The zoo** (random weights; {machine(first)}; published figures in brackets, their sources in "
        "`edgekit/testing/published.py`; max |Δ| of the outputs over the three float32 files against torch), "
        "`python benches/zoo.py`:",
        "",
        "| network | parameters, M | MACs, M | max \\|Δ\\| | torch ms | ONNX Runtime ms | LiteRT ms | ncnn ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in networks.items():
        published = row["published"] or {"parameters": "", "macs": ""}
        macs = published["macs"] + (" operations" if published.get("operations") == 2 else "")
        shown = [(row["parameters"], published["parameters"]), (row["macs"], macs)]
        counts = [f"{count / 1e6:.4g}" + (f" ({printed})" if printed else "") for count, printed in shown]
        parity = [export["max_abs"] for export in row["exports"].values() if "max_abs" in export]
        refused = [kind for kind, export in row["exports"].items() if "refused" in export]
        worst = f"{max(parity):.0e}" + (f" (refused: {', '.join(refused)})" if refused else "")
        times = [
            row["latency"].get(runtime, {}).get("p50_ms") for runtime in ("torch", "onnxruntime", "tflite", "ncnn")
        ]
        cells = [name, *counts, worst, *("" if time is None else f"{time:.3g}" for time in times)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


_LONG_NAMES = {"vgg11": "VGG-11 with half of its channels, trained here for ten epochs,"}


def low_rank() -> list[str]:
    """Half of the MACs by low rank."""
    found = result("low_rank")["networks"]
    lines = []
    for name, rows in found.items():
        lines += [
            f"**Half of the MACs of {_LONG_NAMES.get(name, name)} by low rank** (CIFAR-10, float {rows['float_top1']:.2f} %; "
            "points lost, paired), "
            "`python benches/low_rank.py` (CP trained: `--part trained --method cp --learning-rate 0.003`):",
            "",
            "| | MACs × | parameters × | top-1 | points lost |",
            "|---|---|---|---|---|",
        ]
        table = dict(rows["untrained"])
        for key in [key for key in rows if key.startswith("trained")]:
            method = key.removeprefix("trained").strip().upper()
            first = f"{method} alone" if method else "refitted through the ReLU"
            table[f"{first}, then `{rows[key]['steps'][-1]}`"] = rows[key]
        for tag, row in table.items():
            lines.append(
                f"| {tag} | {row['macs_ratio']:.2f} | {row['parameters_ratio']:.2f} | {row['top1']:.2f} % | "
                f"{points(row['drop'])} ± {row['standard_error']:.2f} |"
            )
        if "tensorly" in rows:
            lines += [
                "",
                "Each 3×3 layer at the same rank: the mean share missed of weight and output, and seconds for all (none where "
                "the run was paused):",
                "",
            ]
            lines += ["| decomposition | weight | output | s |", "|---|---|---|---|"]
            for tag, row in rows["tensorly"].items():
                seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
                lines.append(f"| {tag} | {row['weight']:.3f} | {row['output']:.3f} | {seconds} |")
        if "clock" in rows:
            runtimes = list(next(iter(rows["clock"]["rows"].values()))["times"])
            lines += ["", "Time × the original's, one thread:", ""]
            lines += [
                f"| method | MACs × | {' | '.join(NAMES[r] for r in runtimes)} |",
                "|---" * (2 + len(runtimes)) + "|",
            ]
            for tag, row in rows["clock"]["rows"].items():
                times = " | ".join(f"{row['times'][r][0]:.2f} {row['times'][r][3]}" for r in runtimes)
                lines.append(f"| {tag} | {row['macs_ratio']:.2f} | {times} |")
        lines.append("")
    return lines[:-1]
