"""Options that several commands share, with one wording each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

_MODEL = "a bundle folder, zoo:NAME, package.module:factory, path/to/file.py:factory, FILE.pt2, or FILE.onnx"
_DATA = "digits, cifar10:PATH, idx:PATH, folder:PATH, npz:PATH, or package.module:factory"

Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"The network: {_MODEL}.", show_default=False)]
Data = Annotated[str | None, typer.Option("--data", metavar="DATA", help=f"The data set: {_DATA}.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="TARGET",
        help="Where: local, emulated:CPU (emulated:cortex-a76, …), ssh:[USER@]HOST[:PORT], adb[:SERIAL]; "
        "`edgekit target list` shows them.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", metavar="FILE", help="Weights for a zoo network or a factory: safetensors, or a plain state dict."
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option("--input-shape", metavar="C,H,W", help="Shape of one input, where the source does not tell it."),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean", metavar="M,…", help="Per channel, in units of pixel × scale.", rich_help_panel="Preprocessing"
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std", metavar="S,…", help="Per channel, in units of pixel × scale.", rich_help_panel="Preprocessing"
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        "--scale",
        help="Pixels 0–255 are multiplied by this first.",
        rich_help_panel="Preprocessing",
        show_default="1/255",
    ),
]
Color = Annotated[
    str | None,
    typer.Option(
        "--color", metavar="rgb|bgr|gray", help="Channel order that the network takes.", rich_help_panel="Preprocessing"
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        "--resize",
        metavar="refuse|stretch|crop",
        help="What to do with images of another size.",
        rich_help_panel="Preprocessing",
    ),
]


def load_model(
    model: str,
    weights: Path | None = None,
    input_shape: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    scale: float | None = None,
    color: str | None = None,
    resize: str | None = None,
) -> Bundle:
    """The bundle that MODEL and its options name."""
    from edgekit.sources.load import load

    preprocessing: dict[str, Any] = {
        "mean": numbers(mean, "--mean"),
        "std": numbers(std, "--std"),
        "scale": scale,
        "color": color,
        "resize": resize,
    }
    shape = numbers(input_shape, "--input-shape")
    if shape is not None and any(size < 1 or size != int(size) for size in shape):
        raise UsageError(
            f"--input-shape {input_shape} is no list of whole numbers", "For example --input-shape 3,32,32."
        )
    return load(
        model, weights=weights, input_shape=[int(s) for s in shape] if shape else None, preprocessing=preprocessing
    )


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """A list of numbers as typed, ``0.5,0.5``."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r} is no list of numbers", f"For example {option} 0.5,0.5,0.5.") from None
