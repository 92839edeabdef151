"""``edgekit verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options


def verify(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES_OR_BUNDLES…", help="Exported files, or bundles with all their exports.", show_default=False
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="DIR", help="The bundle, where the files lie elsewhere.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Prove exported files again: same content, same outputs, on the samples of their bundle.

    Examples:

      edgekit verify small

      edgekit verify small/exports/model.onnx

    Exit code 1 if a file was changed or computes something else; the first layer that differs is named.
    """
    from edgekit.cli import render
    from edgekit.cli.export import show_parity
    from edgekit.export.run import verify as run

    records = [record for file in files for record in run(file, bundle=bundle)]
    if as_json:
        render.print_json(records)
        return
    show_parity(records)
    render.stdout.print(f"{len(records)} file{'s' * (len(records) != 1)} verified")
