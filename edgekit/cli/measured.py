"""How measurements are shown: tables on stdout, what should be known on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.benchmark.result import BenchResult, Row
    from edgekit.benchmark.sustained import SustainedResult
    from edgekit.runtimes.measure import Measurement


def show(result: BenchResult, *, per_class: bool = False, offline: bool = False) -> None:
    """The table, the failures, and what should be known."""
    from rich.markup import escape

    from edgekit.cli import render

    batches = {row.measurement.cell.batch for row in result.rows}
    rows = [_cells(row, offline, batches) for row in result.rows if not row.measurement.error]
    columns = ("model", "runtime", "precision", "threads", "batch", "size", "load ms", "first ms", "p50 ms", "p90 ms", "p99 ms",
               "inputs/s", "mJ", "instructions", "memory", "float", "NEON float", "NEON integer", "dot product", "peak memory",
               "top-1", "agrees", "MACs ×", "instructions ×", "time × [95 %]", "verdict")  # fmt: skip
    # A column that is empty everywhere (no data, no baseline) is left out.
    keep = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    if rows:
        render.table("", [columns[i] for i in keep], [[row[i] for i in keep] for row in rows], left=min(3, len(keep)))
    for row in result.failed:
        cell, measured = row.measurement.cell, row.measurement
        # Install lines hold brackets, which are no markup.
        said = escape(f"{cell.label} in {cell.choice}: {measured.error}")
        render.stdout.print(f"[red]{measured.failure or 'failed'}[/red] {said}", soft_wrap=True)
    if per_class:
        _show_classes(result)
    target, plan = result.target, result.plan
    most = max((len(row.measurement.rounds_ms) for row in result.rows), default=0)
    rounds = f"{plan.rounds} to {most} rounds" if most > plan.rounds else f"{plan.rounds} rounds"
    how = f"{target['cores']} cores; {rounds} of at least {plan.runs} runs and {plan.seconds:g} s"
    if "emulated_on" in target:
        how = f"emulated on {target['emulated_on']}; instructions of one inference, one thread"
    energy = next((row.measurement.energy for row in result.rows if row.measurement.energy), "")
    batch = f", batch {next(iter(batches))}" if len(batches) == 1 else ""
    limit = f", memory limit {render.kib(plan.memory_limit_bytes)}" if plan.memory_limit_bytes is not None else ""
    pinned = f", on CPUs {', '.join(map(str, plan.cpus))}" if plan.cpus else ""
    told = f"; energy: {energy}" if energy else ""
    render.stdout.print(
        f"{target['cpu']}, {how}{batch}{pinned}{limit}{told}", soft_wrap=True, style="dim", markup=False
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


def _show_classes(result: BenchResult) -> None:
    from edgekit.cli import render

    told = [row for row in result.rows if row.accuracy is not None and row.measurement.cell.threads == _first(result)]
    if not told:
        render.stderr.print("note: there is no accuracy by class: give --data", soft_wrap=True)
        return
    columns = [f"{row.measurement.cell.label} ({row.measurement.cell.choice})" for row in told]
    first = told[0].accuracy
    assert first is not None
    lines = []
    for index, entry in enumerate(first.per_class):
        shares = [row.accuracy.per_class[index]["top1"] if row.accuracy else None for row in told]
        lines.append(
            [entry["label"], str(entry["count"]), *("" if share is None else f"{share:.1f} %" for share in shares)]
        )
    render.table("Top-1 by class", ("class", "images", *columns), lines)


def _first(result: BenchResult) -> int:
    return result.rows[0].measurement.cell.threads


def show_sustained(result: SustainedResult) -> None:
    """The curves, from left to right, and whether they fell."""
    from rich.markup import escape

    from edgekit.cli import render

    rows = []
    for curve in result.curves:
        if curve.error:
            said = escape(f"{curve.cell.label} in {curve.cell.choice}: {curve.error}")
            render.stdout.print(f"[red]{curve.failure}[/red] {said}", soft_wrap=True)
            continue
        times = [window.p50_ms for window in curve.windows]
        degrees = [max(window.temperature_c.values()) for window in curve.windows if window.temperature_c]
        joules = [window.energy_mj for window in curve.windows if window.energy_mj is not None]
        interval = f" [{curve.low:.2f}, {curve.high:.2f}]" if curve.low else ""
        rows.append([
            curve.cell.label, curve.cell.choice, str(curve.cell.threads), render.milliseconds(times[0]),
            render.milliseconds(times[-1]), render.sparkline(times),
            f"{degrees[0]:.0f} → {degrees[-1]:.0f} °C" if degrees else "",
            f"{sum(joules) / len(joules):.2f}" if joules else "", f"{curve.ratio:.2f}{interval}", curve.verdict,
        ])  # fmt: skip
    columns = ("model", "runtime", "threads", "first p50 ms", "last p50 ms", "curve", "temperature", "mJ",
               "last ÷ first fifth [95 %]", "verdict")  # fmt: skip
    keep = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    if rows:
        render.table("", [columns[i] for i in keep], [[row[i] for i in keep] for row in rows], left=2)
    energy = next((curve.energy for curve in result.curves if curve.energy), "")
    render.stdout.print(
        f"{result.target['cpu']}, {result.minutes:g} minutes each without a pause; energy: {energy}",
        soft_wrap=True,
        style="dim",
    )
    for note in result.warnings:
        render.stderr.print(f"note: {note}", soft_wrap=True, markup=False)


def _cells(row: Row, offline: bool, batches: set[int]) -> list[str]:
    from edgekit.cli import render

    measured, compared = row.measurement, row.comparison
    memory = measured.peak_memory_bytes
    return [
        measured.cell.label,
        measured.cell.choice,
        row.precision,
        str(measured.cell.threads),
        str(measured.cell.batch) if len(batches) > 1 else "",
        render.kib(measured.size_bytes),
        *_times(measured),
        render.count(measured.inputs_per_second) if measured.rounds_ms and (offline or len(batches) > 1) else "",
        f"{_median(measured.energy_mj):.3g}" if measured.energy_mj else "",
        *_instructions(measured),
        render.kib(memory) if memory is not None else "",
        f"{row.accuracy.top1:.2f} %" if row.accuracy else "",
        f"{row.agreement:.1f} %" if row.agreement is not None else "",
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
