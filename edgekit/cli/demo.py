"""``edgekit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where to put the bundles.")] = Path(
        "edgekit-demo"
    ),
    as_json: options.AsJson = False,
) -> None:
    """Run the whole path on embedded data: load, prune, quantize, export, prove, measure. Takes two or three minutes.

    Examples:

      edgekit demo

      edgekit demo -o /tmp/edgekit-demo --json

    The network is a small CNN for 8×8 handwritten digits that comes with edgekit. Nothing is downloaded.
    """
    from edgekit.cli import render
    from edgekit.cli.measured import show
    from edgekit.demo import run_demo

    with render.progress_bar() as progress:
        result = run_demo(output, progress)
    if as_json:
        render.print_json(
            {**result.bench.to_dict(), "bundles": [str(b) for b in result.bundles], "left_out": result.left_out}
        )
        return
    show(result.bench)
    for reason in result.left_out:
        render.stdout.print(f"left out: {reason}", soft_wrap=True)
    render.stdout.print(f"bundles and files: {', '.join(str(b) for b in result.bundles)}", soft_wrap=True)
