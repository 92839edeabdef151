"""Accuracy control: the fewest layers given back more bits, or float, that keep the drop within what is allowed."""

from __future__ import annotations

import glob
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule

from edgekit.compress.quantize.session import Choice, Session
from edgekit.evaluation import evaluate, paired_difference


@dataclass(frozen=True)
class _Trial:
    changed: int
    module: GraphModule
    report: dict[str, Any]
    drop: float
    standard_error: float


def controlled(session: Session, first: Choice, max_drop: float, images: int) -> tuple[GraphModule, dict[str, Any]]:
    """Quantizes, and undoes the most sensitive layers until the drop on the validation split is within the bound.

    Layers are taken in the order of what each costs alone: first those with fewer than 8 bits are raised to 8, then layers
    go back to float. How many is found by doubling and then halving, so that a network of L layers takes about
    2 log2(L) trials.

    Args:
        session: The network and its calibration images.
        first: What to begin with.
        max_drop: Points of top-1 that may be lost on the validation split.
        images: Validation images to judge by, at most.

    Returns:
        The best found: within the bound with the fewest layers changed, or, where no trial is, the one of least drop; and
        its report, with ``accuracy_control`` in it.
    """
    bundle, validation = session.bundle, session.dataset.validation
    limit = min(images, len(validation))
    reference = evaluate(session.floats, validation, bundle.preprocessing, limit=limit)

    def attempt(changed: int, choice: Choice) -> _Trial:
        module, report = session.quantized(choice)
        session.context.progress(0, 1, f"judging: {changed} layers changed")
        found = evaluate(module, validation, bundle.preprocessing, limit=limit)
        difference, error = paired_difference(reference, found)
        return _Trial(changed, module, report, 0.0 - difference, error)

    trials = [attempt(0, first)]
    undone: list[tuple[str, str]] = []
    if trials[0].drop > max_drop:
        undone = _order(session, first)
        trials += _search(attempt, first, undone, max_drop)
    within = [trial for trial in trials if trial.drop <= max_drop]
    best = min(within, key=lambda t: t.changed) if within else min(trials, key=lambda t: (t.drop, t.changed))
    best.report["accuracy_control"] = {
        "max_drop": max_drop,
        "drop": best.drop,
        "standard_error": best.standard_error,
        "validation_images": limit,
        "within": bool(within),
        "changed": [{"layer": layer, "to": to} for layer, to in undone[: best.changed]],
        "trials": [{"changed": t.changed, "drop": t.drop} for t in trials],
    }
    if not within:
        best.report["notes"].append(
            f"no trial kept the drop within {max_drop:g} points; this is the best found, with {best.drop:.2f}"
        )
    return best.module, best.report


def _order(session: Session, first: Choice) -> list[tuple[str, str]]:
    """What to undo, the most sensitive first: (layer, ``int8`` or ``float32``)."""
    found = session.sensitivities(first)
    ranked = sorted(found, key=lambda name: found[name])
    return [(n, "int8") for n in ranked if first.bits.get(n, 8) < 8] + [(n, "float32") for n in ranked]


def _search(attempt: Any, first: Choice, undone: list[tuple[str, str]], max_drop: float) -> list[_Trial]:
    trials: list[_Trial] = []

    def passes(count: int) -> bool:
        trials.append(attempt(count, _undo(first, undone[:count])))
        return trials[-1].drop <= max_drop

    failed, count = 0, 1
    # All layers in float would be no quantization: one is always left.
    most = len(undone) - 1
    while count <= most and not passes(count):
        failed, count = count, count * 2
    if count > most and (failed == most or most < 1 or not passes(most)):
        return trials
    passed = min(count, most)
    while passed - failed > 1:
        middle = (passed + failed) // 2
        if passes(middle):
            passed = middle
        else:
            failed = middle
    return trials


def _undo(first: Choice, undone: list[tuple[str, str]]) -> Choice:
    bits = {**first.bits, **{layer: 8 for layer, to in undone if to == "int8"}}
    floats = tuple(glob.escape(layer) for layer, to in undone if to == "float32")
    return replace(first, bits=bits, keep_float=(*first.keep_float, *floats))
