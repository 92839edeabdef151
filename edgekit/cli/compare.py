"""``edgekit bench compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options


def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The older result.", show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The newer one.", show_default=False)],
    fail_if_slower: options.FailIfSlower = None,
    fail_if_larger: Annotated[
        str | None,
        typer.Option(
            "--fail-if-larger", metavar="SHARE", help="Exit with 1 where a file grew more.", show_default=False
        ),
    ] = None,
    fail_if_less_accurate: Annotated[
        float | None,
        typer.Option(
            "--fail-if-less-accurate",
            metavar="POINTS",
            min=0,
            help="Exit with 1 where top-1 fell by more.",
            show_default=False,
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare two results that `edgekit bench --output` wrote, for a build that must not become slower.

    Examples:

      edgekit bench compare monday.json today.json

      edgekit bench compare main.json branch.json --fail-if-slower 5% --fail-if-less-accurate 0.5

    Rows are matched by file name, runtime, threads and batch. The interval is a 95 % bootstrap over the rounds of both; that
    the machine was another one by then is not in it. Files side by side in one `edgekit bench` are interleaved, and results
    of an emulated target are counts: both are stronger.
    """
    from edgekit.benchmark.compare import Limits, compare_results
    from edgekit.cli import render

    limits = Limits(
        slower=options.share(fail_if_slower, "--fail-if-slower"),
        larger=options.share(fail_if_larger, "--fail-if-larger"),
        less_accurate=fail_if_less_accurate,
    )
    found = compare_results(before, after, limits)
    if as_json:
        render.print_json(found.to_dict())
    else:
        figure = render.count if found.counted else render.milliseconds
        unit = "instructions" if found.counted else "p50 ms"
        rows = [
            [
                pair.label, pair.runtime, str(pair.threads), str(pair.batch), figure(pair.before), figure(pair.after),
                f"{pair.ratio:.3f} [{pair.low:.3f}, {pair.high:.3f}]", pair.verdict, f"{pair.size_ratio:.2f}",
                "" if pair.accuracy_difference is None else f"{pair.accuracy_difference:+.2f}",
                "same file" if pair.same_file else "",
            ]
            for pair in found.pairs
        ]  # fmt: skip
        columns = ("model", "runtime", "threads", "batch", f"{unit} before", "after",
                   "instructions ×" if found.counted else "time × [95 %]", "verdict", "size ×", "top-1", "")  # fmt: skip
        keep = [i for i in range(len(columns)) if any(row[i] for row in rows)]
        render.table("", [columns[i] for i in keep], [[row[i] for i in keep] for row in rows], left=2)
        for text in found.failed:
            render.stdout.print("[red]failed[/red] " + text.replace("[", "\\["), soft_wrap=True)
        for which, names in ((before, found.only_before), (after, found.only_after)):
            for name in names:
                render.stderr.print(f"note: only in {which}: {name}", soft_wrap=True)
        for note in found.notes:
            render.stderr.print(f"note: {note}", soft_wrap=True)
    if found.failed:
        raise typer.Exit(1)
