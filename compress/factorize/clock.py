"""Whether a chain is faster than its layer, by the stopwatch: fewer MACs in more layers may well be slower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgekit.bundle import Bundle
from edgekit.compress.chain import Stage
from edgekit.compress.factorize.layer import Layer
from edgekit.compress.factorize.plan import Choice, Plan
from edgekit.compress.prune.stopwatch import Stopwatch
from edgekit.program import export_program


class Clock:
    """Times layers by themselves in the runtime of a format; each kind of layer once.

    Args:
        where: Whose runtime, with one thread, and on which target: ``tflite`` or ``tflite@ssh:pi@board``.
        progress: Told what is going on.
    """

    def __init__(self, where: str, progress: Callable[[int, int, str], None] = lambda done, total, text: None) -> None:
        self.where, self.progress = where, progress
        self._known: dict[tuple[Any, ...], tuple[float, str]] = {}

    def not_faster(self, plan: Plan) -> dict[str, float]:
        """The chains of a plan that were not measured to be faster than their layers: by node, with the ratio of times."""
        found = {}
        chains = {node: choice for node, choice in plan.items() if choice.method is not None}
        for number, (node, choice) in enumerate(chains.items()):
            self.progress(number, len(chains), f"timing {choice.layer.name}")
            ratio, verdict = self._time(choice)
            if verdict != "faster":
                found[node] = ratio
        return found

    def _time(self, choice: Choice) -> tuple[float, str]:
        layer, method = choice.layer, choice.method
        assert method is not None
        kind = (layer.whole(), layer.space, method.name, choice.rank)
        if kind not in self._known:
            whole, chain = (_alone(layer, stages) for stages in ([layer.whole()], method.stages(layer, choice.rank)))
            (compared,) = Stopwatch(whole, self.where).ratios([chain])
            self._known[kind] = compared.ratio, compared.verdict
        return self._known[kind]


def _alone(layer: Layer, stages: list[Stage]) -> Bundle:
    """A network of these stages and nothing else; time does not depend on the weights."""
    shape = (layer.channels_in, *layer.space) if layer.kernel else (*layer.space, layer.channels_in)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = [_module(stage) for stage in stages]
    return Bundle(export_program(nn.Sequential(*modules), shape), shape)


def _module(stage: Stage) -> nn.Module:
    if not stage.stride:
        return nn.Linear(stage.shape[1], stage.shape[0])
    make: Any = nn.Conv1d if len(stage.stride) == 1 else nn.Conv2d
    kernel, inner = stage.shape[2:], stage.shape[1] * stage.groups
    return make(inner, stage.shape[0], kernel, stage.stride, stage.padding, stage.dilation, stage.groups)  # type: ignore[no-any-return]
