"""``edgekit bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli import options
from edgekit.cli.group import DefaultGroup
from edgekit.errors import UsageError

app = typer.Typer(cls=DefaultGroup)

_OFFLINE = (1, 8, 32)


@app.command("run")
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
            help="Only this runtime; repeat for several. --list shows them and their settings.",
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
    per_class: Annotated[bool, typer.Option("--per-class", help="Show the accuracy of each class too.")] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", metavar="X", help="Compare with this one. Default: the first of several.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the result there as JSON; the same command goes on after it was cut off.",
            show_default=False,
        ),
    ] = None,
    scenario: Annotated[
        str,
        typer.Option(
            "--scenario",
            metavar="single-stream|offline",
            help="Latency of one input after the other, or throughput by batch, as MLPerf names them.",
        ),
    ] = "single-stream",
    batch: Annotated[
        list[int] | None,
        typer.Option(
            "--batch", min=1, help="Inputs at a time; repeat for several.", show_default="1; offline 1, 8, 32"
        ),
    ] = None,
    sustained: Annotated[
        float | None,
        typer.Option(
            "--sustained",
            metavar="MINUTES",
            help="Run each for minutes without a pause: does it slow down?",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=3, help="Fresh processes for each file; they are interleaved.")
    ] = 8,
    within: Annotated[
        str | None,
        typer.Option(
            "--within",
            metavar="SHARE",
            help="More rounds until each ratio is known within this, such as 3%; at most 64.",
            show_default=False,
        ),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Least timed runs in each round.")] = 10,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="Least seconds of timed runs in each round.")
    ] = 0.4,
    cpus: Annotated[
        str | None,
        typer.Option("--cpus", metavar="N,…", help="Keep the processes on these CPUs.", show_default="any"),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            "--memory-limit",
            metavar="SIZE",
            help="What loading and running one file may take, such as 64M.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Give a file up that hangs so long.", show_default="600"),
    ] = None,
    fail_if_slower: options.FailIfSlower = None,
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

      edgekit bench a/exports/model.tflite b/exports/model.int8.tflite -o bench.json

      edgekit bench small --target emulated:cortex-a76 --data digits

      edgekit bench small --scenario offline

      edgekit bench old.tflite new.tflite --within 2% --fail-if-slower 3%

      edgekit bench compare monday.json today.json --fail-if-slower 5%

    Every round is a fresh process, and the rounds of all files are interleaved. A ratio below 1 is faster than the
    baseline; the interval is a 95 % bootstrap over rounds. MACs × is what arithmetic would promise, time × what it took.
    A file that crashes, hangs or finds no memory is a result too, and the others are measured all the same.
    An emulated target counts instructions by class instead: what it takes is no latency.
    """
    from edgekit.cli import measured, render

    if list_runtimes:
        _list(as_json)
        return
    if not items:
        raise UsageError(
            "there is nothing to measure", "Give exported files or bundle folders; see `edgekit bench --help`."
        )
    if scenario not in ("single-stream", "offline"):
        raise UsageError(f"there is no scenario {scenario!r}", "Known: single-stream, offline.")
    from edgekit.benchmark.run import bench as run
    from edgekit.benchmark.sustained import sustain
    from edgekit.runtimes.measure import Plan

    if within is not None and sustained is not None:
        raise UsageError("--within is about ratios, and --sustained compares nothing", "Leave one of them out.")
    given: dict[str, Any] = {"timeout_s": timeout} if timeout is not None else {}
    plan = options.settings_of(
        Plan, rounds=rounds, within=options.share(within, "--within"), most_rounds=max(rounds, Plan.most_rounds), runs=runs,
        seconds=seconds, cpus=options.cpus(cpus), memory_limit_bytes=options.size(memory_limit, "--memory-limit"), **given,
    )  # fmt: skip
    limit = options.share(fail_if_slower, "--fail-if-slower")
    chosen: dict[str, Any] = {
        "runtimes": runtime or (),
        "threads": tuple(threads or (1,)),
        "plan": plan,
        "target": target,
    }
    if sustained is not None:
        with render.progress_bar() as progress:
            curves = sustain(items, sustained, output=output, progress=progress, **chosen)
        if as_json:
            render.print_json(curves.to_dict())
        else:
            measured.show_sustained(curves)
        if any(curve.error for curve in curves.curves):
            raise typer.Exit(1)
        return
    offline = scenario == "offline"
    batches = tuple(batch or (_OFFLINE if offline else (1,)))
    with render.progress_bar() as progress:
        result = run(
            items,
            data=data,
            baseline=baseline,
            images=images,
            batches=batches,
            output=output,
            progress=progress,
            **chosen,
        )
    slower = [
        row
        for row in result.rows
        if limit is not None and row.comparison is not None and row.comparison.low > 1 + limit
    ]
    if as_json:
        render.print_json(result.to_dict())
    else:
        measured.show(result, per_class=per_class, offline=offline)
    for row in slower:
        assert row.comparison is not None
        render.stderr.print(
            f"[red]slower[/red] {row.measurement.cell.label} in {row.measurement.cell.choice}: × {row.comparison.ratio:.3f} "
            f"[{row.comparison.low:.3f}, {row.comparison.high:.3f}]".replace(" [", " \\["),
            soft_wrap=True,
        )
    if result.failed or slower or (strict and result.not_honoured):
        raise typer.Exit(1)


def _list(as_json: bool) -> None:
    from edgekit.benchmark.run import available
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
