"""Advice: goals as typed, what is aimed at, what is chosen, and that the recipe runs and meets the goal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.prune import stopwatch
from edgekit.compress.prune.channels import PruneChannels
from edgekit.compress.search import advise as advising
from edgekit.compress.search.advise import Trial, advise, with_training
from edgekit.compress.search.candidates import CANDIDATES, candidates_for, written
from edgekit.compress.search.goal import MEASURES, Goal, parse_goal
from edgekit.compress.search.rules import RULES, facts_of, rules_for
from edgekit.compress.step import STEPS, parse_step
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.errors import UsageError
from edgekit.program import export_program, trainable
from edgekit.recipe import load_recipe
from edgekit.runtimes.measure import Plan
from edgekit.testing.exporters import bundle_of

BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}


@pytest.mark.parametrize("text", MEASURES.values())
def test_goals_as_typed(text: str) -> None:
    assert str(parse_goal(text)) == text
    assert parse_goal("latency=0.5x@onnx") == Goal("latency", 0.5, "onnx")
    assert parse_goal("latency=0.5@onnx@ssh:pi@board") == Goal("latency", 0.5, "onnx@ssh:pi@board")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("small", "is no goal"),
        ("siz=0.5", "Did you mean size"),
        ("size=25%", "between 0 and 1"),
        ("size=0", "between 0 and 1"),
        ("macs=1.5", "between 0 and 1"),
        ("macs=nan", "between 0 and 1"),
        ("latency=0.5", "needs a format"),
        ("latency=0.5@", "needs a format"),
        ("size=0.5@onnx", "takes no format"),
        ("latency=0.5@onxx", "Did you mean onnx"),
    ],
)
def test_goals_that_can_not_be_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_goal(text)
    assert said in str(error.value)
    assert error.value.exit_code == 2


def test_templates_aim_at_the_share() -> None:
    goal = Goal("size", 0.25)
    assert written("prune-channels:{limit},epochs=0", goal, 0.25) == "prune-channels:size=0.25,epochs=0"
    assert written("{limit}", Goal("latency", 0.5, "ncnn"), 0.33339) == "latency=0.3333@ncnn"
    # 22 % of the values in 32 bits and a bit for each place: 0.219 + 0.031 = 0.25 at most.
    assert written("{zeros}", goal, 0.25) == "0.782"
    assert 1 - 0.782 + 1 / 32 <= 0.25
    # 4 bits of 32 for each weight; 8 at most.
    assert written("{shared}", Goal("size", 0.13), 0.13) == "16"
    assert written("{shared}", Goal("size", 0.5), 0.5) == "256"


def test_every_candidate_is_made_of_registered_steps_with_settings_that_are_there() -> None:
    for candidate in CANDIDATES:
        for measure in candidate.moves:
            goal = Goal(measure, 0.2, "onnx" if measure == "latency" else None)
            for template in candidate.steps:
                assert parse_step(written(template, goal, 0.2)).name in STEPS
        spoken = {family for rule in RULES for family in rule.families}
        assert candidate.family in spoken, "a rule of thumb should have something to say of it"


def test_only_what_can_reach_the_goal_is_tried() -> None:
    def names(goal: Goal, int8: float | None) -> list[str]:
        return [candidate.name for candidate in candidates_for(goal, int8)]

    assert names(Goal("macs", 0.5), None) == ["fewer channels", "low rank"]
    assert names(Goal("size", 0.5), 0.26) == ["int8", "fewer channels", "low rank", "shared values", "zeros"]
    assert "fewer channels, int8" in names(Goal("size", 0.25), 0.26)
    assert "one-bit weights" in names(Goal("size", 0.05), 0.26)
    # int8 that slows the network down helps no one.
    assert names(Goal("latency", 0.5, "ncnn"), 1.1) == ["int8", "fewer channels", "low rank"]


def test_facts_and_rules_of_a_network_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 5, padding=2, bias=False), nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 16, 10, bias=False),
    )  # fmt: skip
    facts = facts_of(trainable(export_program(network.eval(), (3, 8, 8))), 500)
    macs = {"large": 64 * 4 * 3 * 25, "depthwise": 64 * 4 * 9, "linear": 640}
    assert facts.macs == sum(macs.values())
    assert facts.large_kernel_macs_share == pytest.approx(macs["large"] / sum(macs.values()))
    assert facts.depthwise_macs_share == pytest.approx(macs["depthwise"] / sum(macs.values()))
    assert facts.linear_macs_share == pytest.approx(macs["linear"] / sum(macs.values()))
    assert facts.linear_parameters_share == pytest.approx(640 / (300 + 36 + 640))
    spoken = {family for rule in rules_for(Goal("macs", 0.5), facts) for family in rule.families}
    assert {"low rank", "distillation"} <= spoken
    plain = replace(facts, training_images=10**6, linear_parameters_share=0.0, large_kernel_macs_share=0.0)
    assert not any("distillation" in rule.families for rule in rules_for(Goal("macs", 0.5), plain))


def test_the_first_that_is_as_good_as_the_best_is_chosen() -> None:
    one, two, three = (
        Trial(BY_NAME[name], drop=drop, standard_error=0.5, meets=meets)
        for name, drop, meets in (("int8", 0.4, True), ("fewer channels", 0.0, True), ("zeros", -1.0, False))
    )
    assert advising._best([one, two, three]) == 0, "within the error of the best"
    assert advising._best([replace(one, drop=0.6), two, three]) == 1
    assert advising._best([replace(one, meets=False), replace(two, meets=False), three]) is None


def test_training_goes_to_the_steps_that_can() -> None:
    steps = [parse_step("prune-channels:macs=0.5,epochs=0"), parse_step("quantize")]
    trained = with_training(steps, 3, distill=0.5)
    assert trained == (parse_step("prune-channels:macs=0.5,epochs=3,distill=0.5"), parse_step("quantize"))
    assert with_training(steps, 0, distill=0.5) == tuple(steps)


def test_what_the_stopwatch_settled_is_repeated_without_it() -> None:
    step = parse_step("prune-channels:latency=0.5@onnx,epochs=0")
    settled = {"measure": "macs", "share": 0.4321, "multiple": 16}
    found = advising._settled(step, {"report": {"stopwatch": {"settled": settled}}})
    assert found == PruneChannels(macs=0.4321, multiple=16, epochs=0)
    assert advising._settled(step, {"report": {}}) == step


def test_the_recipe_runs_and_meets_the_goal(before: Bundle, data: Dataset, tmp_path: Path) -> None:
    told = []
    advice = advise(before, data, "size=0.24", progress=lambda done, total, text: told.append(text))
    assert {"candidates: int8", "candidates: zeros"} <= set(told)
    json.dumps(advice.to_dict(), allow_nan=False)
    assert [trial.candidate.name for trial in advice.trials] == [
        "int8", "fewer channels", "fewer channels, int8", "low rank", "fewer bits", "shared values", "zeros",
    ]  # fmt: skip
    for trial in advice.trials:
        assert trial.failed == ""
        assert trial.meets == (trial.size is not None and trial.size <= 0.24)
    assert "has the most noise" in advice.trials[0].notes[-1]
    assert not advice.trials[0].meets, "int8 alone leaves a little more than a quarter"
    assert advice.chosen is not None
    assert advice.epochs == 0
    path = tmp_path / "recipe.yaml"
    path.write_text(advice.text)
    assert "points lost untrained on 153 validation images" in advice.text
    steps = load_recipe(path)
    assert steps == list(advice.recipe)
    made = compress(before, steps, data)
    share = cost_of(made.module()).bytes / cost_of(before.module()).bytes
    assert share == advice.trials[advice.chosen].size <= 0.24


def test_a_goal_that_costs_accuracy_is_trained_within_the_budget(
    before: Bundle, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advising, "_epoch_seconds", lambda *_: 2.0)
    advice = advise(before, data, "macs=0.25", max_drop=0.0, budget_minutes=0.05)
    (step,) = advice.recipe
    assert isinstance(step, PruneChannels)
    assert (step.macs, step.epochs, step.distill) == (0.25, 1, 0.5)
    assert "was not measured" in advice.notes[0]
    made = compress(before, advice.recipe, data)
    assert cost_of(made.module()).macs <= 0.25 * cost_of(before.module()).macs
    # No minute to train: no training, and it is said.
    advice = advise(before, data, "macs=0.25", max_drop=0.0, budget_minutes=0.01)
    assert advice.epochs == 0
    assert "does not train: an epoch takes about 2.0 s" in advice.notes[0]


def test_a_latency_goal_is_measured(before: Bundle, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "Plan", lambda **_: Plan(rounds=3, runs=3, seconds=0.01))
    monkeypatch.setattr("edgekit.compress.search.candidates.CANDIDATES", (BY_NAME["int8"],))
    advice = advise(before, data, "latency=0.9@onnx", images=50)
    (trial,) = advice.trials
    assert trial.latency is not None
    ratio, low, high = trial.latency
    assert 0 < low <= ratio <= high
    assert trial.meets == (ratio <= 0.9)
    assert {forecast.runtime for forecast in advice.forecasts} == {"onnxruntime", "tflite", "ncnn", "torch"}


def test_what_no_candidate_reaches_has_no_recipe(before: Bundle, data: Dataset) -> None:
    advice = advise(before, data, "macs=0.01", images=50)
    assert (advice.chosen, advice.recipe, advice.text) == (None, (), "")
    assert advice.trials
    assert all(trial.failed.startswith("not possible: ") for trial in advice.trials)
    assert "no candidate reaches macs=0.01" in advice.notes[0]


def test_compressed_networks_and_wrong_bounds_are_refused(before: Bundle, data: Dataset) -> None:
    with pytest.raises(UsageError, match="compressed already"):
        advise(bundle_of("plain", "int8"), data, "size=0.5")
    with pytest.raises(UsageError, match="max-drop"):
        advise(before, data, "size=0.5", max_drop=-1)


def test_an_epoch_is_timed_on_real_steps(before: Bundle, data: Dataset) -> None:
    with torch.random.fork_rng():
        assert 0 < advising._epoch_seconds(before, data, 0) < 600
