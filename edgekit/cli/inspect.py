"""``edgekit inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import options
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.guidelines import Guide


def inspect(
    model: options.Model,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Show every layer.")] = True,
    weights: options.Weights = None,
    input_shape: options.InputShape = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="TARGET", help="Forecast whether int8 will help there: local.")
    ] = None,
    sensitivity: Annotated[
        str | None,
        typer.Option(
            "--sensitivity", metavar="STEP", help="What each layer costs when it is quantized, for example quantize."
        ),
    ] = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="Show which channels are coupled: prune-channels cuts them together.")
    ] = False,
    guidelines: Annotated[
        bool, typer.Option("--guidelines", help="Flag layers that break the four rules for fast networks.")
    ] = False,
    data: options.Data = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Validation images that judge --sensitivity.")] = 1000,
    as_json: options.AsJson = False,
) -> None:
    """Show parameters, bytes, MACs and memory access cost, per layer and in total.

    Examples:

      edgekit inspect zoo:mobilenet-v2

      edgekit inspect my_package.models:resnet20 --weights resnet20.safetensors --input-shape 3,32,32 --json

      edgekit inspect zoo:digits-cnn --no-layers --target local

      edgekit inspect zoo:resnet20-cifar --no-layers --groups

      edgekit inspect zoo:mobilenet-v1 --no-layers --guidelines

      edgekit inspect zoo:digits-cnn --sensitivity quantize:weight_bits=4 --data digits

    One MAC is one multiply-add of a convolution, a linear layer or a matrix product, for one input. Batch norm,
    activations and pooling count none. Memory access is the elements of input, output and weights (arXiv:1807.11164).
    """
    from edgekit.cli import render
    from edgekit.cost import cost_of

    bundle = options.load_model(model, weights, input_shape)
    cost = cost_of(bundle.module())
    extra: dict[str, Any] = {}
    if groups:
        extra["groups"], extra["barriers"] = _groups(bundle)
    if guidelines:
        from edgekit.guidelines import guide_of

        guide = guide_of(bundle.module())
        extra["guidelines"] = guide.to_dict()
    if target is not None:
        extra["forecast"] = _forecast(bundle, target)
    if sensitivity is not None:
        extra["sensitivity"] = _sensitivity(bundle, sensitivity, data, images)
    if as_json:
        render.print_json({**bundle.describe(), "cost": cost.to_dict(), **extra})
        return
    if layers:
        rows = [
            [layer.path or layer.name, layer.op, "×".join(map(str, layer.output_shape[1:])), render.count(layer.parameters),
             render.kib(layer.bytes), render.count(layer.macs), render.count(layer.memory_access)]
            for layer in cost.layers
            if layer.parameters or layer.macs
        ]  # fmt: skip
        columns = ("layer", "operator", "output", "parameters", "bytes", "MACs", "memory access")
        render.table("", columns, rows, left=2)
        render.stdout.print()
    summary = [
        ["parameters", f"{cost.parameters:,}"],
        ["weights", render.kib(cost.bytes)],
        ["MACs", f"{cost.macs:,} ({render.count(cost.macs)})"],
        ["memory access", f"{cost.memory_access:,} elements"],
        ["input", f"batch × {' × '.join(map(str, bundle.input_shape))}"],
        ["precision", bundle.precision],
    ]
    render.table(bundle.name, ("", ""), summary)
    if cost.uncounted:
        names = ", ".join(sorted({str(item) for item in cost.uncounted}))
        render.stderr.print(f"not counted, for want of a rule: {names}", soft_wrap=True)
    if "forecast" in extra:
        render.stdout.print()
        rows = [[row["runtime"], row["verdict"], row["reason"]] for row in extra["forecast"]["runtimes"]]
        render.table(f"int8 on {extra['forecast']['cpu']}: a forecast", ("runtime", "int8 is", "because"), rows, left=3)
    if "groups" in extra:
        _show_groups(extra["groups"], extra["barriers"])
    if guidelines:
        _show_guidelines(guide)
    if "sensitivity" in extra:
        render.stdout.print()
        columns = ("layer", "bits", "alone: dB", "drop", "±", "inside: dB", "median channel: dB")
        rows = [
            [row["layer"], str(row["bits"]), f"{row['alone_sqnr_db']:.1f}", f"{row['alone_drop']:+.2f}",
             f"{row['alone_drop_standard_error']:.2f}", f"{row['inside_sqnr_db']:.1f}", f"{row['channel_sqnr_db']:.1f}"]
            for row in extra["sensitivity"]
        ]  # fmt: skip
        render.table("sensitivity, the most sensitive layer first", columns, rows)


def _groups(bundle: Bundle) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    from edgekit.compress.prune.groups import coupled_groups

    found, barriers = coupled_groups(bundle.module())
    return [group.to_dict() for group in found], [dict(vars(barrier)) for barrier in barriers]


def _show_groups(groups: list[dict[str, Any]], barriers: list[dict[str, str]]) -> None:
    from edgekit.cli import render

    render.stdout.print()
    rows = [
        [
            str(row["channels"]),
            "fixed" if row["fixed"] else "free",
            _some(row["made_by"]),
            _some(row["read_by"]),
        ]
        for row in groups
    ]
    render.table("groups of coupled channels", ("channels", "", "made by", "read by"), rows, left=4)
    for barrier in barriers:
        text = f"not followed through {barrier['operator']} at {barrier['layer']}. {barrier['remedy']}"
        render.stdout.print(text, soft_wrap=True)


def _some(names: list[str]) -> str:
    """The first few; --json has all."""
    return ", ".join(names[:2]) + f" and {len(names) - 2} more" * (len(names) > 2)


def _show_guidelines(guide: Guide) -> None:
    from edgekit.cli import render
    from edgekit.guidelines import LIMITS

    render.stdout.print()

    def figure(value: float | None, text: str, rule: str, flags: tuple[str, ...]) -> str:
        return "" if value is None else ("✗ " if rule in flags else "") + text.format(value)

    rows = [
        [
            layer.path or layer.name, layer.op, render.count(layer.memory_access),
            figure(layer.over_bound, "{:.2f}", "G1", layer.flags), figure(layer.over_dense, "{:.2f}", "G2", layer.flags),
            figure(layer.parallel, "{}", "G3", layer.flags), figure(layer.element_wise_share, "{:.1%}", "G4", layer.flags),
        ]
        for layer in guide.layers
    ]  # fmt: skip
    columns = ("layer", "operator", "memory access", "G1: × bound", "G2: × dense", "G3: side by side", "G4: share")
    render.table("rules for fast networks (arXiv:1807.11164)", columns, rows, left=2)
    broken = {rule: sum(rule in layer.flags for layer in guide.layers) for rule in LIMITS}
    told = {
        "G1": f"layers with weights move {guide.weighted_access / max(guide.bound, 1):.2f} × what equal widths would",
        "G2": "groups write more for the same MACs",
        "G3": f"up to {guide.widest} layers side by side; the step rewrite merges what can be",
        "G4": f"element-wise operators move {guide.element_wise_share:.0%} of all elements, depthwise ones "
        f"{guide.depthwise_share:.0%}",
    }
    render.stdout.print()
    for rule, text in told.items():
        limit = f"{LIMITS[rule]:.0%}" if rule == "G4" else f"{LIMITS[rule]:g}"
        render.stdout.print(f"{rule}: {broken[rule]} flagged (✗: {limit} or more); {text}", soft_wrap=True)
    render.stdout.print("Rules of thumb about causes of time, not times: `edgekit bench` measures.", soft_wrap=True)


def _forecast(bundle: Bundle, target: str) -> dict[str, Any]:
    from edgekit.runtimes.forecast import forecast_of

    found = forecast_of(bundle.module(), target)
    forecasts = found.pop("forecasts")
    return {"target": target, **found, "runtimes": [one.to_dict() for one in forecasts]}


def _sensitivity(bundle: Bundle, text: str, data: str | None, images: int) -> list[dict[str, Any]]:
    from edgekit.cli import render
    from edgekit.compress.quantize.static import Quantize
    from edgekit.compress.quantize.table import sensitivity_table
    from edgekit.compress.step import parse_step

    step = parse_step(text)
    if not isinstance(step, Quantize):
        raise UsageError(f"--sensitivity takes a quantize step, not {step.name}", "For example --sensitivity quantize.")
    if data is None:
        raise UsageError("--sensitivity needs data, and none was given", "Give --data, for example --data digits.")
    with render.progress_bar() as progress:
        return sensitivity_table(bundle, data, step, images=images, progress=progress)
