"""``edgekit bench layers``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import AsJson, Target, Threads

if TYPE_CHECKING:
    from edgekit.benchmark.layers_result import LayerCell, LayerColumn, LayerRow, LayersResult, LayerTable
    from edgekit.benchmark.roofline import Roofline

_NOTHING, _BELOW = "–", "≈0"
# Profiling that makes a file so much longer, or misses so much of it, says little of a single layer.
_DISAGREES = 0.2


def layers(
    items: Annotated[list[Path], typer.Argument(metavar="BUNDLE|FILE…", help="Bundle folders and exported files.")],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime", metavar="NAME[:setting=value,…]", help="Only these runtimes, for example tflite:xnnpack=false."
        ),
    ] = None,
    threads: Threads = 1,
    target: Target = "local",
    runs: Annotated[int, typer.Option("--runs", min=1, help="Profiled runs of each file.")] = 50,
    top: Annotated[
        int | None, typer.Option("--top", min=1, metavar="N", help="Show the N longest layers, the others as one row.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time every layer in every runtime, and set it beside what the machine could do.

    Examples:

      edgekit bench layers small

      edgekit bench layers small --runtime onnxruntime --runtime tflite --top 10

      edgekit bench layers small/exports/model.onnx --threads 2 --target ssh:pi@raspberrypi --json

    A row is a layer of the bundle's program, with the batch norm and activation that runtimes merge into it; MACs are for
    one input, bytes are what it reads and writes. A cell is its time in ms and its share of the roofline: how long the same
    MACs and bytes would take at the speed of a large matrix product and of a copy in memory, both measured on that machine.
    """
    from edgekit.benchmark.layers import profile_layers
    from edgekit.cli import render

    with render.progress_bar() as progress:
        result = profile_layers(
            items, runtimes=runtime or (), threads=threads, target=target, runs=runs, progress=progress
        )
    if as_json:
        render.print_json(result.to_dict())
    else:
        show(result, top)
    if result.failed:
        raise typer.Exit(1)


def show(result: LayersResult, top: int | None = None) -> None:
    """The tables, the roofline, the failures, and what should be known."""
    from edgekit.cli import render

    for table in result.tables:
        columns = [column for column in table.columns if not column.error]
        if columns:
            _show_table(table, columns, top)
    for column in result.failed:
        render.stdout.print(
            f"[red]failed[/red] {column.label} ({column.runtime}): {column.error}", soft_wrap=True, highlight=False
        )
    render.stdout.print(_roofline(result.roofline), soft_wrap=True, style="dim")
    legend = (
        f"ms and share of the roofline; {_NOTHING}: within another operator; {_BELOW}: shorter than the clock tells; "
    )
    legend += "above 100 %: data in caches, or fewer multiplications than MACs (Winograd)"
    render.stdout.print(legend, soft_wrap=True, style="dim")
    for note in dict.fromkeys([*_notes(result), *result.warnings]):
        render.stderr.print(f"note: {note}", soft_wrap=True)


def _show_table(table: LayerTable, columns: Sequence[LayerColumn], top: int | None) -> None:
    from edgekit.cli import render

    positions = [table.columns.index(column) for column in columns]
    kept, others = _longest(table, columns, positions, top)
    precisions = list(dict.fromkeys(precision for row in table.rows for precision in row.bytes))
    bytes_names = ["bytes" if len(precisions) == 1 else f"bytes {precision}" for precision in precisions]
    names = ["layer", "op", "MACs", *bytes_names, *_headings(columns)]
    rows = [[*_layer(row, precisions), *(_shown(row.cells[i]) for i in positions)] for row in kept]
    blank = [""] * (2 + len(precisions))
    if others:
        total = sum(row.macs for row in others)
        macs = render.count(total) if total else ""
        times = [_aligned(_together(others, i), "") for i in positions]
        rows.append([f"({len(others)} others)", "", macs, *blank[2:], *times])
    rows.append(["sum", *blank, *(_aligned(_ms(c.sum_ms), "") for c in columns)])
    rows.append(["whole, unprofiled", *blank, *(_aligned(_ms(c.whole_ms), "") for c in columns)])
    # The operator is told by the layer's name, most often; without the bytes, too, if need be.
    optional: list[set[int]] = [set(), {1}, {1, *range(3, 3 + len(precisions))}]
    chosen = next((drop for drop in optional if _width(names, rows, drop) <= render.stdout.width), set())
    keep = [position for position in range(len(names)) if position not in chosen]
    render.table(
        table.name, [names[i] for i in keep], [[row[i] for i in keep] for row in rows], left=1 if 1 in chosen else 2
    )


def _width(names: Sequence[str], rows: Sequence[Sequence[str]], drop: set[int]) -> int:
    widths = [max(len(row[i]) for row in [names, *rows]) + 2 for i in range(len(names)) if i not in drop]
    return sum(widths)


def _longest(
    table: LayerTable, columns: Sequence[LayerColumn], positions: Sequence[int], top: int | None
) -> tuple[list[LayerRow], list[LayerRow]]:
    """The rows that take most of any column's time, in order, and all others."""

    def weight(row: LayerRow) -> float:
        pairs = zip(columns, (row.cells[i] for i in positions), strict=True)
        return max((cell.ms / column.sum_ms for column, cell in pairs if cell and column.sum_ms > 0), default=0.0)

    longest = sorted(table.rows, key=weight, reverse=True)[: top or len(table.rows)]
    chosen = {id(row) for row in longest}
    kept = [row for row in table.rows if id(row) in chosen]
    return kept, [row for row in table.rows if id(row) not in chosen]


def _layer(row: LayerRow, precisions: Sequence[str]) -> list[str]:
    from edgekit.cli import render

    sizes = [render.kib(row.bytes[p]) if p in row.bytes else "" for p in precisions]
    return [row.path, row.op.partition(".")[0], render.count(row.macs) if row.macs else "", *sizes]


def _headings(columns: Sequence[LayerColumn]) -> list[str]:
    several = len({column.precision for column in columns}) > 1
    found = [f"{column.runtime} {column.precision}".strip() if several else column.runtime for column in columns]
    return [
        name if found.count(name) == 1 else f"{name} {Path(column.file).name}"
        for name, column in zip(found, columns, strict=True)
    ]


def _shown(cell: LayerCell | None) -> str:
    if cell is None:
        return _aligned(_NOTHING, "")
    if cell.below_noise:
        return _aligned(_BELOW, "")
    return _aligned(_ms(cell.ms), f"{100 * cell.share:.0f} %" if cell.share is not None else "")


def _aligned(ms: str, share: str) -> str:
    return f"{ms} {share:>5}"


def _ms(value: float) -> str:
    return f"{value:.2f}" if value >= 10 else f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def _together(rows: Sequence[LayerRow], position: int) -> str:
    cells = [row.cells[position] for row in rows]
    return _ms(max(sum(cell.ms for cell in cells if cell), 0.0))


def _roofline(line: Roofline) -> str:
    int8 = line.int8_macs_per_second
    peaks = f"{line.float32_macs_per_second / 1e9:.1f} GMAC/s in float32"
    peaks += f", {int8 / 1e9:.1f} in int8" if int8 is not None else ", int8 not measured"
    bandwidth = f"{line.bytes_per_second / 1e9:.1f} GB/s copying {line.array_bytes / 2**20:.0f} MiB"
    return f"roofline, {line.threads} thread{'s' * (line.threads > 1)}: {peaks} ({line.source}); {bandwidth}"


def _notes(result: LayersResult) -> list[str]:
    found = []
    for table in result.tables:
        for position, column in enumerate(table.columns):
            where = f"{column.label} ({column.runtime})"
            if column.input == "random numbers":
                found.append(f"{where}: run on random numbers")
            if column.runtime.startswith("torch") and column.precision == "int8":
                found.append(f"{where}: torch simulates int8 in float, so its times mean nothing")
                continue
            cells = [row.cells[position] for row in table.rows]
            medians = sum(cell.ms for cell in cells if cell is not None)
            if column.sum_ms and medians < (1 - _DISAGREES) * column.sum_ms:
                found.append(
                    f"{where}: the layers' medians sum to {medians:.3g} ms, and the median run's layers to "
                    f"{column.sum_ms:.3g} ms: other programs interrupted it"
                )
            elif column.unaccounted is not None and abs(column.unaccounted) > _DISAGREES:
                found.append(
                    f"{where}: the layers sum to {column.sum_ms / column.whole_ms:.0%} of the whole without profiling "
                    f"({column.method}): believe the order of its layers, not each time"
                )
    return found
