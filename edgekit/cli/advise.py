"""``edgekit advise``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.compress.search.advise import Advice, Trial


def advise(
    model: options.Model,
    data: options.Data = None,
    goal: Annotated[
        str | None,
        typer.Option(
            "--goal",
            metavar="GOAL",
            help="What may be left of the original: size=0.25, macs=0.5, or latency=0.5@tflite.",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[float, typer.Option("--max-drop", min=0, help="Points of top-1 that may be lost.")] = 1.0,
    budget_minutes: Annotated[
        float, typer.Option("--budget-minutes", min=0, help="What the recipe's training may take on this machine.")
    ] = 10.0,
    images: Annotated[int, typer.Option("--images", min=1, help="Validation images that judge each candidate.")] = 500,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.yaml", help="Write the recipe there.")
    ] = None,
    weights: options.Weights = None,
    input_shape: options.InputShape = None,
    mean: options.Mean = None,
    std: options.Std = None,
    scale: options.Scale = None,
    color: options.Color = None,
    resize: options.Resize = None,
    seed: Annotated[int, typer.Option("--seed", help="Of every random choice.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Try what may reach a goal on this network, and make a recipe of what loses least.

    Examples:

      edgekit advise zoo:digits-cnn --data digits --goal size=0.25 -o recipe.yaml

      edgekit compress zoo:digits-cnn --data digits --recipe recipe.yaml -o small

      edgekit advise zoo:digits-cnn --data digits --goal latency=0.5@tflite --budget-minutes 30

    Each candidate is applied without training and judged by validation images; that is measured. Published rules for the
    choice of a technique are told besides, as what they are. No candidate meets the goal: exit code 1, and no recipe.
    """
    from edgekit.cli import render

    if data is None:
        raise UsageError("advise needs data, and none was given", "Give --data, for example --data digits.")
    if goal is None:
        raise UsageError("advise needs a goal, and none was given", "Give --goal, for example --goal size=0.25.")
    from edgekit.compress.search.advise import advise as run
    from edgekit.compress.search.goal import parse_goal
    from edgekit.files import atomic_file

    wanted = parse_goal(goal)
    bundle = options.load_model(model, weights, input_shape, mean, std, scale, color, resize)
    with render.progress_bar() as progress:
        found = run(
            bundle, data, wanted, budget_minutes=budget_minutes, max_drop=max_drop, images=images, seed=seed,
            progress=progress,
        )  # fmt: skip
    if output is not None and found.chosen is not None:
        with atomic_file(output) as partial:
            partial.write_text(found.text, encoding="utf-8")
    if as_json:
        render.print_json(found.to_dict())
    else:
        _show(found, model, data, output)
    if found.chosen is None:
        raise typer.Exit(1)


def _show(found: Advice, model: str, data: str, output: Path | None) -> None:
    from edgekit.cli import render

    say = render.stdout.print
    chosen = found.trials[found.chosen] if found.chosen is not None else None
    measured = [trial for trial in found.trials if trial.drop is not None]
    columns = ("candidate", "points lost", "size ×", "MACs ×", "time × [95 %]", "goal", "advice")
    rows = [_cells(trial, trial is chosen) for trial in measured]
    keep = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    title = f"measured: {found.goal}, untrained, on {found.images} validation images ({found.top1:.2f} % before)"
    render.table(title, [columns[i] for i in keep], [[row[i] for i in keep] for row in rows])
    for trial in found.trials:
        for said in ([trial.failed] if trial.failed else []) + list(trial.notes):
            say(f"{trial.candidate.name}: {said}", soft_wrap=True, markup=False)
    say()
    forecasts = ", ".join(f"{one.runtime} {one.verdict}" for one in found.forecasts if one.runtime != "torch")
    say(f"[bold]forecast, not measured[/bold]: int8 here is: {forecasts}", soft_wrap=True)
    say("[bold]rules of thumb (arXiv:1710.09282 and others), not measured[/bold]", soft_wrap=True)
    for rule in found.rules:
        say(f"  {rule['rule']}", soft_wrap=True, markup=False)
    facts = found.facts
    say(
        f"  of this network: {facts.training_images:,} training images; fully connected layers have "
        f"{facts.linear_parameters_share:.0%} of the parameters and {facts.linear_macs_share:.0%} of the MACs, kernels of 5×5 "
        f"and larger {facts.large_kernel_macs_share:.0%} of the MACs, depthwise ones {facts.depthwise_macs_share:.0%}",
        soft_wrap=True,
    )
    say()
    if chosen is not None:
        say(f"[bold]advice: {chosen.candidate.name}[/bold]: {chosen.candidate.why}", soft_wrap=True)
    for note in found.notes:
        say(note, soft_wrap=True, markup=False)
    if chosen is None:
        return
    if output is None:
        say(found.text.rstrip(), soft_wrap=True, markup=False)
        return
    say(f"wrote {output}. Run it with", soft_wrap=True)
    say(f"  edgekit compress {model} --data {data} --recipe {output} -o small", soft_wrap=True, markup=False)


def _cells(trial: Trial, is_chosen: bool) -> list[str]:
    latency = trial.latency
    return [
        trial.candidate.name,
        f"{trial.drop:+.2f} ± {trial.standard_error:.2f}",
        f"{trial.size:.3f}",
        f"{trial.macs:.3f}",
        f"{latency[0]:.2f} [{latency[1]:.2f}, {latency[2]:.2f}]" if latency else "",
        "met" if trial.meets else "missed",
        "✓" if is_chosen else "",
    ]
