"""``edgekit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options
from edgekit.errors import UsageError


def export(
    model: options.Model,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="onnx|tflite|ncnn", help="A format; repeat for several.", show_default=False),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="float32|float16|bfloat16|int8",
            help="Default: what the bundle holds.",
            show_default=False,
        ),
    ] = None,
    data: options.Data = None,
    images: Annotated[
        int, typer.Option("--images", min=1, help="Held-out images to prove the files on, at most.")
    ] = 5000,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Where to write. Default: BUNDLE/exports.", show_default=False
        ),
    ] = None,
    weights: options.Weights = None,
    input_shape: options.InputShape = None,
    mean: options.Mean = None,
    std: options.Std = None,
    scale: options.Scale = None,
    color: options.Color = None,
    resize: options.Resize = None,
    as_json: options.AsJson = False,
) -> None:
    """Write files for ONNX Runtime, LiteRT and ncnn, each proved in its real runtime before it is kept.

    Examples:

      edgekit export small --to onnx --to tflite --to ncnn

      edgekit export zoo:digits-cnn --to tflite --precision float16 --data digits -o out

    Each file gets a NAME.parity.json: how far its outputs are from the program's on real images, and its accuracy on
    held-out ones. A file beyond the tolerance is not kept, and the first layer that differs is named.
    """
    from edgekit.cli import render
    from edgekit.export.run import export as run

    if not to:
        raise UsageError("no format is given", "Add --to onnx, --to tflite or --to ncnn (or several).")
    bundle = options.load_model(model, weights, input_shape, mean, std, scale, color, resize)
    if output is None and bundle.path is None:
        raise UsageError(f"{model} is no bundle folder, so there is no place for its files", "Give one with -o DIR.")
    with render.progress_bar() as progress:
        files = run(bundle, to, precision=precision, data=data, output=output, images=images, progress=progress)
    if as_json:
        render.print_json([file.to_dict() for file in files])
        return
    show_parity([file.to_dict() for file in files])
    for file in files:
        share = file.parity["int8_macs_share"]
        if share is not None:
            render.stdout.print(f"{file.path.name}: {100 * share:.0f} % of the MACs run in integers", soft_wrap=True)
        for note in file.parity["lowering"]:
            render.stdout.print(f"{file.path.name}: {note}", soft_wrap=True)
        render.stdout.print(f"wrote {file.path}", soft_wrap=True)


def show_parity(files: list[dict]) -> None:  # type: ignore[type-arg]
    """A row for each proved file."""
    from edgekit.cli import render

    rows = []
    for file in files:
        parity = file["parity"]
        agreement, accuracy = parity["agreement"], parity.get("accuracy")
        sqnr = agreement["sqnr_db"]
        rows.append(
            [
                Path(file["path"]).name,
                parity["precision"],
                render.kib(parity["size_bytes"]),
                f"{agreement['max_abs']:.1e}",
                "equal" if sqnr is None else f"{sqnr:.1f} dB",
                f"{agreement['top1_percent']:.2f} %",
                f"{accuracy['program_top1']:.2f} %" if accuracy else "",
                f"{accuracy['file_top1']:.2f} %" if accuracy else "",
                str(agreement["samples"]),
            ]
        )
    columns = ("file", "precision", "size", "max |Δ|", "SQNR", "same top-1", "top-1 program", "top-1 file", "images")
    render.table("", columns, rows, left=2)
