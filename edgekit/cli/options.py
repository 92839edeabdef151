"""Options that several commands share, with one wording each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

_T = TypeVar("_T")
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
FailIfSlower = Annotated[
    str | None,
    typer.Option(
        "--fail-if-slower",
        metavar="SHARE",
        help="Exit with 1 where the whole interval lies above it, such as 5%.",
        show_default=False,
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


def settings_of(cls: type[_T], **values: Any) -> _T:
    """A settings object; a value that it does not take is an error of what was typed."""
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def share(text: str | None, option: str) -> float | None:
    """A share as typed: ``5%`` or ``0.05``."""
    if text is None:
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"{option} {text!r} is no share", f"For example {option} 5%.")
    return value


def size(text: str | None, option: str) -> int | None:
    """A number of bytes as typed: ``512K``, ``64M``, ``1.5G``, or plain bytes."""
    if text is None:
        return None
    number = text.upper().removesuffix("B").removesuffix("I")
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(number[-1:], 1)
    try:
        value = float(number if factor == 1 else number[:-1]) * factor
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise UsageError(f"{option} {text!r} is no size", f"For example {option} 64M.")
    return int(value)


def cpus(text: str | None) -> tuple[int, ...]:
    """Numbers of CPUs as typed: ``0,2`` or ``4-7``."""
    found: list[int] = []
    try:
        for part in text.split(",") if text else ():
            first, dash, last = part.partition("-")
            found += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        raise UsageError(f"--cpus {text!r} is no list of CPUs", "For example --cpus 0,1 or --cpus 4-7.") from None
    return tuple(dict.fromkeys(found))
