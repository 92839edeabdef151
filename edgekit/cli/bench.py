"""``edgekit bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.benchmark import BenchResult, Row
    from edgekit.runtimes.measure import Measurement


def bench(
    items: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILES_OR_BUNDLES…", help="Exported files, or bundles with all their exports.", show_default=False
        ),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            metavar="NAME[:SETTING=VALUE,…]",
            help="Only this runtime; repeat for several.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option("--threads", min=1, help="Threads of the runtime; repeat for several.", show_default="1"),
    ] = None,
    target: options.Target = "local",
    data: options.Data = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Test images for the accuracy, at most.", show_default="all")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", metavar="X", help="Compare with this one. Default: the first of several.", show_default=False
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=3, help="Fresh processes for each file; they are interleaved.")
    ] = 8,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Least timed runs in each round.")] = 10,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="Least seconds of timed runs in each round.")
    ] = 0.4,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs at a time; TFLite and ncnn files take one.")] = 1,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a delegate or option was not honoured.")] = False,
    list_runtimes: Annotated[
        bool, typer.Option("--list", help="Show the runtimes and whether they work here, and exit.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure files side by side: latency, memory, size and, with data, accuracy.

    Examples:

      edgekit bench small --data digits

      edgekit bench original small --baseline original --threads 1 --threads 2

      edgekit bench a/exports/model.tflite b/exports/model.int8.tflite --json > bench.json

      edgekit bench small --target emulated:cortex-a76 --data digits

    Every round is a fresh process, and the rounds of all files are interleaved. A ratio below 1 is faster than the
    baseline; the interval is a 95 % bootstrap over rounds. MACs × is what arithmetic would promise, time × what it took.
    An emulated target counts instructions by class instead: what it takes is no latency.
    """
    from edgekit.cli import render

    if list_runtimes:
        _list(as_json)
        return
    if not items:
        raise UsageError(
            "there is nothing to measure", "Give exported files or bundle folders; see `edgekit bench --help`."
        )
    from edgekit.benchmark import bench as run
    from edgekit.runtimes.measure import Plan

    plan = Plan(rounds=rounds, runs=runs, seconds=seconds, batch=batch)
    with render.progress_bar() as progress:
        result = run(
            items, runtimes=runtime or (), threads=tuple(threads or (1,)), data=data, baseline=baseline, plan=plan,
            images=images, target=target, progress=progress,
        )  # fmt: skip
    if as_json:
        render.print_json(result.to_dict())
    else:
        show(result)
    if result.failed or (strict and result.not_honoured):
        raise typer.Exit(1)


def show(result: BenchResult) -> None:
    """The table, the failures, and what should be known."""
    from rich.markup import escape

    from edgekit.cli import render

    rows = [_cells(row) for row in result.rows if not row.measurement.error]
    columns = ("model", "runtime", "precision", "threads", "size", "load ms", "first ms", "p50 ms", "p90 ms", "p99 ms",
               "instructions", "memory", "float", "NEON float", "NEON integer", "dot product", "peak memory", "top-1", "MACs ×",
               "instructions ×", "time × [95 %]", "verdict")  # fmt: skip
    # A column that is empty everywhere (no data, no baseline) is left out.
    keep = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    render.table("", [columns[i] for i in keep], [[row[i] for i in keep] for row in rows], left=min(3, len(keep)))
    for row in result.failed:
        # Install lines hold brackets, which are no markup.
        said = escape(f"{row.measurement.cell.label}: {row.measurement.error}")
        render.stdout.print(f"[red]failed[/red] {said}", soft_wrap=True)
    target, plan = result.target, result.plan
    how = f"{target['cores']} cores; {plan.rounds} rounds of at least {plan.runs} runs and {plan.seconds:g} s"
    if "emulated_on" in target:
        how = f"emulated on {target['emulated_on']}; instructions of one inference, one thread"
    render.stdout.print(
        f"{target['cpu']}, {how}, batch {plan.batch}",
        soft_wrap=True,
        style="dim",
    )
    notes = [
        f"{row.measurement.cell.label} ({row.measurement.cell.choice}): {note}"
        for row in result.rows
        for note in row.notes
    ]
    notes += [
        f"{row.measurement.cell.label}: timed on {row.input}" for row in result.rows if row.input == "random numbers"
    ]
    for note in dict.fromkeys([*notes, *result.warnings]):
        render.stderr.print(f"note: {note}", soft_wrap=True, markup=False)


def _cells(row: Row) -> list[str]:
    from edgekit.cli import render

    measured, compared = row.measurement, row.comparison
    memory = measured.peak_memory_bytes
    return [
        measured.cell.label,
        measured.cell.choice,
        row.precision,
        str(measured.cell.threads),
        render.kib(measured.size_bytes),
        *_times(measured),
        *_instructions(measured),
        render.kib(memory) if memory is not None else "",
        f"{row.accuracy.top1:.2f} %" if row.accuracy else "",
        f"{row.macs_ratio:.2f}" if row.macs_ratio is not None else "",
        f"{row.instructions_ratio:.2f}" if row.instructions_ratio is not None else "",
        f"{compared.ratio:.2f} [{compared.low:.2f}, {compared.high:.2f}]" if compared else "",
        compared.verdict if compared else "",
    ]


def _times(measured: Measurement) -> list[str]:
    from edgekit.cli import render

    if not measured.rounds_ms:
        return [""] * 5
    times = [_median(measured.load_ms), _median(measured.first_run_ms), *map(measured.percentile, (50, 90, 99))]
    return [render.milliseconds(ms) for ms in times]


def _instructions(measured: Measurement) -> list[str]:
    from edgekit.cli import render
    from edgekit.runtimes.targets import instructions

    if not measured.instructions:
        return [""] * 6
    found = instructions.mean(measured.instructions)
    shown = ("memory", "float", "neon_float", "neon_integer", "dot_product")
    return [render.count(number) for number in (measured.total_instructions, *(found[name] for name in shown))]


def _median(values: tuple[float, ...]) -> float:
    import statistics

    return statistics.median(values)


def _list(as_json: bool) -> None:
    from edgekit.benchmark import available
    from edgekit.cli import render

    found = available()
    if as_json:
        render.print_json(found)
        return
    for name, entry in found.items():
        state = "[green]works[/green]" if entry["usable"] else "[red]missing[/red]"
        render.stdout.print(f"[bold]{name}[/bold] {state} {entry['version']}")
        if not entry["usable"]:
            _told(2, entry["reason"], entry["install"])
        for setting, default in entry["settings"].items():
            values = [default, *(value for value in entry["choices"][setting] if value != default)]
            _indented(2, f"{setting} = {' | '.join(map(_typed, values))}")
        for setting, lacking in entry["unusable"].items():
            _told(2, f"not here: {setting}: {lacking['reason']}", lacking["install"])
    render.stdout.print("Name them as NAME:SETTING=VALUE,…; the first value is the default.", style="dim")


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _told(by: int, reason: str, install: str) -> None:
    _indented(by, reason, style="yellow")
    _indented(by + 2, f"→ {install}")


def _indented(by: int, text: str, style: str = "") -> None:
    import textwrap

    from edgekit.cli import render

    lines = textwrap.wrap(
        text, render.stdout.width, initial_indent=" " * by, subsequent_indent=" " * (by + 2), break_on_hyphens=False
    )
    for line in lines:
        # Install lines hold brackets, which are no markup.
        render.stdout.print(line, markup=False, style=style)
