"""``edgekit compress``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle


def compress(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The network; see `edgekit inspect --help`.", show_default=False)
    ] = "",
    data: options.Data = None,
    step: Annotated[
        list[str] | None,
        typer.Option(
            "--step", metavar="NAME[:key=value,…]", help="A step; repeat for several, in order.", show_default=False
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE.yaml", help="The steps as a YAML list.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes", metavar="A,B,…", help="Keep these classes alone, by name or place.", show_default=False
        ),
    ] = None,
    other: Annotated[
        bool, typer.Option("--other", help="With --classes: one more output, for all other classes.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="The bundle folder to write.")
    ] = None,
    weights: options.Weights = None,
    input_shape: options.InputShape = None,
    mean: options.Mean = None,
    std: options.Std = None,
    scale: options.Scale = None,
    color: options.Color = None,
    resize: options.Resize = None,
    device: Annotated[str, typer.Option("--device", help="Where to train, as torch names it.")] = "cpu",
    seed: Annotated[int, typer.Option("--seed", help="Of every random choice.")] = 0,
    list_steps: Annotated[bool, typer.Option("--list", help="Show the steps with their settings, and exit.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Make a smaller bundle by one or more steps. Killed? The same command goes on where it stopped.

    Examples:

      edgekit compress zoo:digits-cnn --data digits --step quantize -o digits-int8

      edgekit compress zoo:resnet20-cifar --weights resnet20.safetensors --data cifar10:cifar-10-batches-py
      --step prune-channels:macs=0.5,epochs=8 --step quantize -o small

      edgekit compress zoo:digits-cnn --data digits --classes 3,5,8 --step prune-channels:macs=0.3,importance=lasso -o three

      edgekit compress zoo:resnet20-cifar --data cifar10:data --step distill:teacher=big,method=decoupled,epochs=60 -o taught

      edgekit compress zoo:digits-cnn --data digits --step student:latency=0.5@onnx,epochs=8 -o student

      edgekit compress --list
    """
    from edgekit.cli import render

    if list_steps:
        _list(as_json)
        return
    if not model or output is None:
        raise UsageError(f"{'MODEL' if not model else '-o DIR'} is missing", "See `edgekit compress --help`.")
    if other and not classes:
        raise UsageError("--other needs --classes", "For example --classes 3,5,7 --other.")
    if bool(step) == bool(recipe) and not (classes and not step):
        raise UsageError(
            "give either --step NAME (once or more) or --recipe FILE", "`edgekit compress --list` shows the steps."
        )
    from edgekit.compress.pipeline import compress as run
    from edgekit.compress.step import make_step, parse_step
    from edgekit.recipe import load_recipe

    steps = load_recipe(recipe) if recipe else [parse_step(text) for text in step or []]
    if classes:
        steps = [make_step("keep-classes", {"classes": classes, "other": other}), *steps]
    bundle = options.load_model(model, weights, input_shape, mean, std, scale, color, resize)
    if bundle.path is not None and bundle.path.resolve() == output.resolve():
        raise UsageError(f"{output} is the bundle to compress", "Write the result to another folder.")
    with render.progress_bar() as progress:
        result = run(bundle, steps, data, output=output, device=device, seed=seed, progress=progress)
    if as_json:
        render.print_json({"output": str(output), **result.describe()})
        return
    _show(bundle, result, output)


def _list(as_json: bool) -> None:
    from edgekit.cli import render
    from edgekit.compress.step import describe_steps

    rows = describe_steps()
    if as_json:
        render.print_json(rows)
        return
    for row in rows:
        render.stdout.print(f"[bold]{row['name']}[/bold]: {row['summary']}", soft_wrap=True)
        defaults = ", ".join(f"{key}={_shown(value)}" for key, value in row["settings"].items())
        render.stdout.print(f"  {defaults}", soft_wrap=True, markup=False)
        render.stdout.print(f"  after {row['source']}", soft_wrap=True, markup=False)
        render.stdout.print(f"  --step {row['example']}\n", soft_wrap=True, markup=False)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _show(before: Bundle, after: Bundle, output: Path) -> None:
    from edgekit.cli import render
    from edgekit.cost import cost_of
    from edgekit.files import size_on_disk

    was, now = cost_of(before.module()), cost_of(after.module())
    rows = [
        [
            "parameters",
            render.count(was.parameters),
            render.count(now.parameters),
            f"{now.parameters / was.parameters:.2f}",
        ],
        ["MACs", render.count(was.macs), render.count(now.macs), f"{now.macs / max(was.macs, 1):.2f}"],
        ["weights", render.kib(was.bytes), render.kib(now.bytes), f"{now.bytes / was.bytes:.2f}"],
    ]
    render.table("", ("", "before", "after", "ratio"), rows)
    for applied in after.steps[len(before.steps) :]:
        report = applied["report"]
        trained = report.get("finetune", report)
        if "best_validation_top1" in trained:
            render.stdout.print(
                f"{applied['step']}: validation top-1 {trained['best_validation_top1']:.2f} % (best, epoch "
                f"{trained['best_epoch']}), {trained['last_validation_top1']:.2f} % (last)",
                soft_wrap=True,
            )
        for barrier in report.get("barriers", []):
            render.stdout.print(
                f"left whole: {barrier['operator']} at {barrier['layer']}. {barrier['remedy']}", soft_wrap=True
            )
        for item in report.get("in_float", []):
            render.stdout.print(f"left in float: {item['layer']}: {item['reason']}", soft_wrap=True)
        if "accuracy_control" in report:
            control = report["accuracy_control"]
            changed = ", ".join(f"{item['layer']} to {item['to']}" for item in control["changed"]) or "none"
            render.stdout.print(
                f"{applied['step']}: lost {control['drop']:.2f} ± {control['standard_error']:.2f} points on "
                f"{control['validation_images']} validation images (allowed {control['max_drop']:g}); put back: {changed}",
                soft_wrap=True,
            )
        for note in report.get("notes", []):
            render.stdout.print(note, soft_wrap=True, markup=False)
    size = size_on_disk(output)
    render.stdout.print(f"wrote {output} ({render.kib(size)} on disk). A ratio of MACs is no speed-up: measure it with")
    render.stdout.print(f"  edgekit export {output} --to onnx && edgekit bench {output}", soft_wrap=True)
