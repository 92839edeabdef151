"""``edgekit inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli import options


def inspect(
    model: options.Model,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Show every layer.")] = True,
    weights: options.Weights = None,
    input_shape: options.InputShape = None,
    as_json: options.AsJson = False,
) -> None:
    """Show parameters, bytes, MACs and memory access cost, per layer and in total.

    Examples:

      edgekit inspect zoo:mobilenet-v2

      edgekit inspect my_package.models:resnet20 --weights resnet20.safetensors --input-shape 3,32,32 --json

    One MAC is one multiply-add of a convolution, a linear layer or a matrix product, for one input. Batch norm,
    activations and pooling count none. Memory access is the elements of input, output and weights (arXiv:1807.11164).
    """
    from edgekit.cli import render
    from edgekit.cost import cost_of

    bundle = options.load_model(model, weights, input_shape)
    cost = cost_of(bundle.module())
    if as_json:
        render.print_json({**bundle.describe(), "cost": cost.to_dict()})
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
