"""Advice: which recipe reaches a goal on this network, by quick trials without training, and by rules of thumb besides."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from edgekit.bundle import Bundle
from edgekit.compress.factorize.low_rank import Factorize
from edgekit.compress.pipeline import compress
from edgekit.compress.prune.channels import PruneChannels
from edgekit.compress.prune.stopwatch import Stopwatch
from edgekit.compress.search.candidates import Candidate, candidates_for, written
from edgekit.compress.search.goal import Goal, parse_goal
from edgekit.compress.search.rules import Facts, facts_of, rules_for
from edgekit.compress.step import Progress, Step, no_progress, parse_step
from edgekit.cost import cost_of
from edgekit.data.references import load_data
from edgekit.errors import EdgekitError, UsageError
from edgekit.evaluation import Evaluation, evaluate, paired_difference
from edgekit.program import set_training
from edgekit.recipe import recipe_text
from edgekit.runtimes.forecast import Forecast, forecast_of

if TYPE_CHECKING:
    from edgekit.data.dataset import Dataset

# A part of a recipe is aimed anew when the whole misses the goal, this often, and with this margin.
_AIMS, _MARGIN = 3, 0.98
# Images for each step of the optimizer that is timed, and how many are.
_BATCH, _TIMED = 64, 2
_MOST_EPOCHS = 20
# Weight of the original's soft targets where the data set is small.
_DISTILL = 0.5


@dataclass(frozen=True)
class Trial:
    """A candidate on the network at hand, untrained.

    Attributes:
        candidate: What was tried.
        steps: Its steps with all settings; empty if it could not be tried.
        drop: Points of top-1 lost on the validation images; None if it was not measured.
        standard_error: Of ``drop``, paired.
        size: Share of the original's weight bytes that is left.
        macs: Share of its MACs.
        latency: Ratio of the median times and its 95 % interval, where the goal is a latency.
        meets: Whether the goal is met.
        seconds: What the trial took.
        failed: Why it has no figures.
        notes: What its steps reported, the layer with the most noise of a quantized network among it.
    """

    candidate: Candidate
    steps: tuple[Step, ...] = ()
    drop: float | None = None
    standard_error: float | None = None
    size: float | None = None
    macs: float | None = None
    latency: tuple[float, float, float] | None = None
    meets: bool = False
    seconds: float = 0.0
    failed: str = ""
    notes: tuple[str, ...] = ()

    def share(self, goal: Goal) -> float | None:
        """What is left of what the goal limits."""
        if goal.measure == "latency":
            return self.latency[0] if self.latency else None
        return self.size if goal.measure == "size" else self.macs

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            **values,
            "candidate": self.candidate.name,
            "family": self.candidate.family,
            "why": self.candidate.why,
            "steps": [step.to_dict() for step in self.steps],
            "measured": self.drop is not None,
        }


@dataclass(frozen=True)
class Advice:
    """What to do, and what that stands on.

    Attributes:
        goal: The goal.
        max_drop: Points of top-1 that may be lost.
        top1: The original's, in percent, on so many validation images.
        images: How many those are.
        facts: Counted on the network and its data.
        forecasts: Whether int8 will help on this machine: told, not measured.
        rules: The rules of thumb that hold, each with the techniques that it speaks for.
        trials: Every candidate.
        chosen: Place of the trial that the recipe is made of; None if none meets the goal.
        recipe: The steps to run, with their training; empty if none meets the goal.
        epochs: Of training in the recipe.
        epoch_minutes: What an epoch of the original takes, by a few timed steps.
        notes: What else there is to know.
    """

    goal: Goal
    max_drop: float
    top1: float
    images: int
    facts: Facts
    forecasts: tuple[Forecast, ...]
    rules: tuple[dict[str, Any], ...]
    trials: tuple[Trial, ...]
    chosen: int | None
    recipe: tuple[Step, ...]
    epochs: int
    epoch_minutes: float
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The recipe as YAML with a comment on what it stands on; empty if none meets the goal."""
        if self.chosen is None:
            return ""
        trial = self.trials[self.chosen]
        trained = f"after {self.epochs} epochs: not measured" if self.epochs else "nothing is trained"
        comment = (
            f"edgekit advise: {self.goal}, at most {self.max_drop:g} points lost",
            f"{trial.candidate.name}: {trial.drop:+.2f} ± {trial.standard_error:.2f} points lost untrained on {self.images} "
            f"validation images; {trained}",
        )
        return recipe_text(self.recipe, comment=comment, brief=True)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "goal": self.goal.to_dict(),
            "max_drop": self.max_drop,
            "top1": self.top1,
            "validation_images": self.images,
            "facts": self.facts.to_dict(),
            "forecasts": [forecast.to_dict() for forecast in self.forecasts],
            "rules_of_thumb": list(self.rules),
            "trials": [trial.to_dict() for trial in self.trials],
            "chosen": self.trials[self.chosen].candidate.name if self.chosen is not None else None,
            "recipe": [step.to_dict() for step in self.recipe],
            "recipe_yaml": self.text,
            "epochs": self.epochs,
            "epoch_minutes": self.epoch_minutes,
            "notes": list(self.notes),
        }


def advise(
    bundle: Bundle,
    data: Dataset | str,
    goal: Goal | str,
    *,
    budget_minutes: float = 10.0,
    max_drop: float = 1.0,
    images: int = 500,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Advice:
    """Tries candidates on a network without training them, and makes a recipe of the one that loses least.

    Args:
        bundle: The trained network, with float weights.
        data: The data set or its reference; candidates are judged on its validation split.
        goal: What may be left of the original, such as ``size=0.25``.
        budget_minutes: What the training of the recipe may take here, by a few timed steps.
        max_drop: Points of top-1 that may be lost; a candidate that loses no more untrained is not trained.
        images: How many validation images judge a candidate.
        seed: Of every random choice.
        progress: Told how far the work has come.

    Raises:
        UsageError: For a goal or a bound that can't be right, and for a network that is compressed already.

    Example:
        >>> import edgekit
        >>> advice = advise(edgekit.load("zoo:digits-cnn"), "digits", "macs=0.6")
        >>> [step.name for step in advice.recipe]
        ['prune-channels']
    """
    goal = parse_goal(goal) if isinstance(goal, str) else goal
    for name, value in (("budget-minutes", budget_minutes), ("max-drop", max_drop)):
        if not value >= 0:
            raise UsageError(f"{name} must not be negative, and is {value:g}")
    if bundle.weights != "float32":
        raise UsageError(
            f"the weights of {bundle.name} are compressed already ({bundle.weights}), and advice is about float ones",
            "Give the bundle from before that step.",
        )
    dataset = bundle.view_of(load_data(data) if isinstance(data, str) else data)
    judge = _Judge(bundle, dataset, goal, images, seed, progress)
    probe = judge.tried(candidates_for(Goal("size", 0.5), None)[0])
    int8_share = probe.share(goal) if not probe.failed and goal.measure != "macs" else None
    trials = []
    wanted = candidates_for(goal, int8_share)
    for position, candidate in enumerate(wanted):
        progress(position, len(wanted), f"candidates: {candidate.name}")
        same = candidate == probe.candidate
        trials.append(probe if same else judge.tried(candidate, int8_share if candidate.with_int8 else None))
    progress(1, 1, "candidates: done")
    chosen = _best(trials)
    facts = facts_of(bundle.module(), len(dataset.train))
    rules = rules_for(goal, facts)
    seconds = _epoch_seconds(bundle, dataset, seed)
    small = any("distillation" in rule.families for rule in rules)
    epochs, recipe = 0, tuple(trials[chosen].steps) if chosen is not None else ()
    if chosen is not None and (trials[chosen].drop or 0) > max_drop:
        epochs = min(_MOST_EPOCHS, math.floor(budget_minutes * 60 / max(seconds, 1e-9)))
        recipe = with_training(recipe, epochs, distill=_DISTILL if small else 0.0)
        if recipe == trials[chosen].steps:
            epochs = 0
    return Advice(
        goal=goal,
        max_drop=max_drop,
        top1=judge.reference.top1,
        images=len(judge.reference.labels),
        facts=facts,
        forecasts=tuple(forecast_of(bundle.module(), "local")["forecasts"]),
        rules=tuple({"rule": rule.text, "speaks_for": list(rule.families)} for rule in rules),
        trials=tuple(trials),
        chosen=chosen,
        recipe=recipe,
        epochs=epochs,
        epoch_minutes=seconds / 60,
        notes=tuple(_notes(goal, trials, chosen, probe, max_drop, epochs, seconds, budget_minutes)),
    )


class _Judge:
    """Applies candidates to one network, and measures what is left."""

    def __init__(
        self, bundle: Bundle, dataset: Dataset, goal: Goal, images: int, seed: int, progress: Progress
    ) -> None:
        self._bundle, self._dataset, self._goal, self._images = bundle, dataset, goal, images
        self._seed, self._progress = seed, progress
        self._cost = cost_of(bundle.module())
        self._watch = Stopwatch(bundle, goal.clock, progress=progress) if goal.clock else None
        self.reference = self._evaluated(bundle)

    def tried(self, candidate: Candidate, int8_share: float | None = None) -> Trial:
        """One candidate; ``int8_share`` is what int8 leaves by itself, where it does a part of the work."""
        start = time.monotonic()
        if not candidate.quick:
            return Trial(candidate, failed="not tried: it can't be judged without training")
        try:
            trial = self._aimed(candidate, self._goal.share / (int8_share or 1.0))
        except EdgekitError as error:
            trial = Trial(candidate, failed=f"not possible: {error.what}")
        return replace(trial, seconds=time.monotonic() - start)

    def _aimed(self, candidate: Candidate, aim: float) -> Trial:
        """Aims lower where the whole misses the goal: what lies beside the weights does not shrink with them."""
        aimed_at_something = any("{" in template for template in candidate.steps)
        best = self._measured(candidate, aim)
        for _ in range(_AIMS - 1):
            reached = best.share(self._goal)
            if best.meets or not aimed_at_something or reached is None:
                break
            aim *= _MARGIN * self._goal.share / reached
            best = self._measured(candidate, aim)
        return best

    def _measured(self, candidate: Candidate, aim: float) -> Trial:
        steps = [parse_step(written(template, self._goal, min(aim, 0.9999))) for template in candidate.steps]
        made = compress(self._bundle, steps, self._dataset, seed=self._seed, progress=self._progress)
        settled = tuple(_settled(step, applied) for step, applied in zip(steps, made.steps[-len(steps) :], strict=True))
        cost = cost_of(made.module())
        drop, error = paired_difference(self._evaluated(made), self.reference)
        latency = None
        if self._watch is not None:
            (compared,) = self._watch.ratios([made])
            latency = compared.ratio, compared.low, compared.high
        trial = Trial(
            candidate, settled, drop, error, cost.bytes / self._cost.bytes, cost.macs / max(self._cost.macs, 1), latency
        )
        reached = trial.share(self._goal)
        notes = tuple(note for applied in made.steps[-len(steps) :] for note in _noted(applied["report"]))
        return replace(trial, meets=reached is not None and reached <= self._goal.share, notes=notes)

    def _evaluated(self, bundle: Bundle) -> Evaluation:
        return evaluate(
            bundle.module(), self._dataset.validation, bundle.preprocessing, limit=self._images, progress=self._progress
        )


def _noted(report: dict[str, Any]) -> list[str]:
    """What a step's report says in words, and the most sensitive layer where it quantized."""
    noted = list(report.get("notes", []))
    if layers := report.get("quantized_layers"):
        worst = min(layers, key=lambda row: row["sqnr_db"])
        noted.append(
            f"of the integer layers {worst['layer']} has the most noise: {worst['sqnr_db']:.0f} dB of signal over it "
            "(`edgekit inspect --sensitivity quantize` has all)"
        )
    return noted


def _settled(step: Step, applied: dict[str, Any]) -> Step:
    """The step with what the stopwatch chose in place of its goal: it need not be measured again to repeat it."""
    found = applied["report"].get("stopwatch")
    if found is None or not isinstance(step, (PruneChannels, Factorize)):
        return step
    settled = found["settled"]
    return replace(step, latency=None, multiple=settled["multiple"], **{settled["measure"]: settled["share"]})


def _best(trials: Sequence[Trial]) -> int | None:
    """The first in the table that meets the goal and loses no more than the best, within its error."""
    meeting = [(place, trial) for place, trial in enumerate(trials) if trial.meets and trial.drop is not None]
    if not meeting:
        return None
    least = min((trial for _, trial in meeting), key=lambda trial: trial.drop or 0.0)
    bound = (least.drop or 0.0) + (least.standard_error or 0.0)
    return next(place for place, trial in meeting if (trial.drop or 0.0) <= bound)


def with_training(steps: Sequence[Step], epochs: int, distill: float = 0.0) -> tuple[Step, ...]:
    """The steps with so many epochs, and soft targets of the original, for all of them that can train.

    Args:
        steps: As they were tried.
        epochs: Of each.
        distill: Weight of the soft targets, 0 to 1.
    """
    trained = []
    for step in steps:
        names = {f.name for f in dataclasses.fields(step)}
        values: dict[str, Any] = {"epochs": epochs} if epochs and "epochs" in names else {}
        if values and distill and "distill" in names:
            values["distill"] = distill
        trained.append(replace(step, **values))
    return tuple(trained)


def _epoch_seconds(bundle: Bundle, dataset: Dataset, seed: int) -> float:
    """What an epoch of the original takes, by a few steps after a first one."""
    module = set_training(bundle.module(), True)
    x, y = next(iter(dataset.train.batches(bundle.preprocessing, _BATCH, limit=_BATCH)))
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    taken = []
    for _ in range(1 + _TIMED):
        start = time.perf_counter()
        torch.nn.functional.cross_entropy(module(images).flatten(1), labels).backward()
        taken.append(time.perf_counter() - start)
    return min(taken[1:]) / len(x) * len(dataset.train)


def _notes(
    goal: Goal,
    trials: Sequence[Trial],
    chosen: int | None,
    probe: Trial,
    max_drop: float,
    epochs: int,
    epoch_seconds: float,
    budget: float,
) -> list[str]:
    notes = []
    if chosen is None:
        nearest = min((t for t in trials if t.share(goal) is not None), key=lambda t: t.share(goal) or 0, default=None)
        near = f"; the nearest is {nearest.candidate.name} with {nearest.share(goal):.3f}" if nearest else ""
        notes.append(f"no candidate reaches {goal}{near}")
        return notes
    drop = trials[chosen].drop or 0.0
    if drop > max_drop and epochs:
        notes.append(
            f"untrained it loses {drop:.2f} points, more than {max_drop:g}: the recipe trains for {epochs} epochs of at most "
            f"about {_duration(epoch_seconds)}. What they bring back was not measured"
        )
    elif drop > max_drop:
        long = budget * 60 < epoch_seconds
        why = (
            f"an epoch takes about {_duration(epoch_seconds)} (--budget-minutes)"
            if long
            else "its steps have no training"
        )
        notes.append(f"it loses {drop:.2f} points, more than {max_drop:g}, and the recipe does not train: {why}")
    if goal.measure == "macs" and not probe.failed:
        notes.append(
            f"int8 besides (a last step `quantize`) would leave {probe.size:.2f} of the bytes; alone it loses "
            f"{probe.drop:+.2f} ± {probe.standard_error:.2f} points here"
        )
    return notes


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
