"""How far each mix has to go for a latency: its share of multiply-accumulates, by the stopwatch.

What a multiply-accumulate takes depends on where it is: depthwise convolutions take longer for theirs than dense ones,
and blocks that are gone take the time between operators along. So each mix has a share of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.bundle import Bundle
from edgekit.compress.compact.assemble import Parts, Way, assemble
from edgekit.compress.prune.stopwatch import Aim, Stopwatch, Trial
from edgekit.errors import StepError

# Of each mix; writing the files takes longer than running them.
_TRIALS = 4


def aims(
    parts: Parts, listed: Sequence[tuple[Way, ...]], goal: float, watch: Stopwatch, multiple: int
) -> dict[tuple[Way, ...], Aim]:
    """For each mix the share of multiply-accumulates that meets a latency, all measured beside each other in each round."""
    found = {mix: Aim(goal, _TRIALS) for mix in listed}
    known: dict[tuple[Any, ...], tuple[float, float, float]] = {}
    while waiting := [mix for mix, aim in found.items() if not aim.done]:
        built: dict[tuple[Way, ...], tuple[Any, ...]] = {}
        new: dict[tuple[Any, ...], Bundle] = {}
        for mix in waiting:
            try:
                student = assemble(parts, mix, found[mix].share, "macs", fit=False)
            except StepError:
                found[mix].told(None)
                continue
            # Large portions: two shares may lead to the same network, which need not be measured twice.
            built[mix] = tuple((layer.op, layer.path, layer.output_shape, layer.macs) for layer in student.cost.layers)
            if built[mix] not in known and built[mix] not in new:
                new[built[mix]] = parts.teacher.with_module(student.module)
        for shape, compared in zip(new, watch.ratios(list(new.values())), strict=True):
            known[shape] = (compared.ratio, compared.low, compared.high)
        for mix, shape in built.items():
            found[mix].told(Trial(found[mix].share, multiple, *known[shape]))
    return found
