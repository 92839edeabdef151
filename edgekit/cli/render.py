"""What commands print: results on stdout (a table, or JSON), progress and notices on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from edgekit.compress.step import Progress

# Whoever reads a pipe gets tables in full width, whatever their terminal.
_UNLIMITED = 10_000
_STEPS = "▁▂▃▄▅▆▇█"
stdout = Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED)
stderr = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Prints a result as JSON; not-a-number and infinities, which JSON lacks, become null."""
    # As a whole: what can't be written must not leave half of it behind.
    sys.stdout.write(json.dumps(_finite(value), indent=2, ensure_ascii=False))
    sys.stdout.write("\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Prints a table; all but the first ``left`` columns are figures, set to the right.

    In a terminal too narrow for it, each row becomes a short list of its own.
    """
    from rich.measure import Measurement
    from rich.table import Table

    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, name in enumerate(columns):
        made.add_column(name, justify="left" if position < left else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    wanted = Measurement.get(stdout, stdout.options.update(max_width=_UNLIMITED), made).maximum
    if not rows or wanted <= stdout.width:
        stdout.print(made)
        return
    stdout.print(f"[bold]{title}[/bold]" if title else "")
    for row in rows:
        stdout.print(" ".join(row[:left]))
        for name, cell in zip(columns[left:], row[left:], strict=True):
            if cell:
                stdout.print(f"  {name}: {cell}")


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar with time left on stderr; a line now and then where stderr is no terminal."""
    import time

    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if not stderr.is_terminal:
        last: dict[str, float] = {"time": 0.0}

        def line(done: int, total: int, text: str) -> None:
            now = time.monotonic()
            if now - last["time"] > 10 or done >= total:
                last["time"] = now
                stderr.print(f"{text}: {done}/{total}", soft_wrap=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=stderr, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def move(done: int, total: int, text: str) -> None:
            kind = text.split(":")[0]
            if kind not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[kind] = bar.add_task(text, total=total)
            bar.update(tasks[kind], completed=done, total=total, description=text, visible=True)

        yield move


def kib(size: float) -> str:
    """Bytes in KiB or MiB."""
    return f"{size / 1024:.1f} KiB" if size < 10 * 1024 * 1024 else f"{size / 1024 / 1024:.2f} MiB"


def count(number: float) -> str:
    """A large count with its unit prefix."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.2f} {unit}"
    return f"{number:.0f}"


def milliseconds(value: float) -> str:
    """A time in ms with three figures."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def sparkline(values: Sequence[float]) -> str:
    """A curve in one line, from the least value to the largest.

    Example:
        >>> sparkline([1, 2, 3])
        '▁▅█'
    """
    low, span = min(values), max(values) - min(values)
    return "".join(_STEPS[round((value - low) / span * (len(_STEPS) - 1)) if span else 0] for value in values)
