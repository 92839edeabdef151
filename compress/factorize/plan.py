"""What each layer may become: chains of every method and rank that pays, with their cost and their error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.fx import GraphModule

from edgekit.compress.chain import chain_macs, chain_parameters
from edgekit.compress.factorize.algebra import relative_error
from edgekit.compress.factorize.layer import Layer, flat
from edgekit.compress.factorize.method import Method
from edgekit.compress.factorize.replace import replace
from edgekit.compress.factorize.statistics import Statistics, seen_by
from edgekit.compress.rewrite import finish
from edgekit.program import attribute, duplicate

# Ranks tried for each layer and method: more of them cost time and change the plan little.
_RANKS = 16
# The error at which a layer's sensitivity is measured: neither a rounding error nor another network.
_PROBE = 0.1


@dataclass(frozen=True)
class Choice:
    """One way to write a layer.

    Attributes:
        layer: The layer.
        method: The decomposition; None leaves the layer whole.
        rank: Of it; 0 for a whole layer.
        macs: What it takes for one input.
        parameters: Elements of its weights.
        error: The share of its output's variance that it misses.
    """

    layer: Layer
    method: Method | None
    rank: int
    macs: int
    parameters: int
    error: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "layer": self.layer.name,
            "method": self.method.name if self.method else "whole",
            "rank": self.rank,
            "macs": self.macs / self.layer.macs,
            "parameters": self.parameters / self.layer.parameters,
            "error": self.error,
        }


Menu = Mapping[str, list[Choice]]
"""For each layer, by node, what is worth a choice: in the order of MACs, and whole at the end."""

Methods = Callable[[Layer], Sequence[Method]]
"""What may be used for a layer."""

Plan = Mapping[str, Choice]
"""For each layer, by node, what it becomes."""


def whole(layer: Layer) -> Choice:
    """The layer as it is."""
    return Choice(layer, None, 0, layer.macs, layer.parameters, 0.0)


def make_choices(
    module: GraphModule, layer: Layer, method: Method, ranks: Sequence[int], covariance: torch.Tensor
) -> list[Choice]:
    """A decomposition at several ranks, with its cost and its error."""
    weight = attribute(module, layer.weight).detach()
    factors, found = method.decompose(layer, weight, covariance), []
    for rank in ranks:
        stages = method.stages(layer, rank)
        error = relative_error(flat(weight), flat(method.product(factors(rank))), covariance)
        found.append(Choice(layer, method, rank, chain_macs(stages, layer.space), chain_parameters(stages), error))
    return found


def menu(
    module: GraphModule,
    layers: Sequence[Layer],
    methods: Methods,
    found: Statistics | None,
    *,
    multiple: int = 1,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Menu:
    """For each layer all that is worth a choice: whole, and every chain that no cheaper one beats.

    Args:
        module: The graph.
        layers: Of it.
        methods: What may be tried for a layer.
        found: What layers read; None without data.
        multiple: Ranks are multiples of it.
        progress: Told how far it has come.
    """
    choices: dict[str, list[Choice]] = {}
    for number, layer in enumerate(layers):
        progress(number, len(layers), f"decomposing {layer.name}")
        covariance = seen_by(layer, found).covariance
        chains = [
            choice
            for method in methods(layer)
            for choice in make_choices(module, layer, method, ranks(layer, method, multiple), covariance)
        ]
        kept: list[Choice] = []
        for chain in sorted(chains, key=lambda c: (c.macs, c.parameters, c.error)):
            if not any(better.error <= chain.error and better.parameters <= chain.parameters for better in kept):
                kept.append(chain)
        choices[layer.node] = [*kept, whole(layer)]
    return choices


def ranks(layer: Layer, method: Method, multiple: int) -> list[int]:
    """The ranks to try: multiples, spread evenly over those at which the chain pays."""
    paying = [r for r in range(multiple, method.full_rank(layer) + 1, multiple) if method.pays(layer, r)]
    if len(paying) <= _RANKS:
        return paying
    return [paying[i] for i in np.unique(np.linspace(0, len(paying) - 1, _RANKS).round().astype(int)).tolist()]


def sensitivities(
    module: GraphModule,
    choices: Menu,
    found: Statistics | None,
    images: np.ndarray,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> dict[str, float]:
    """How much the network's output suffers from a layer's error.

    Each layer alone becomes one of its chains; the mean divergence of the softened outputs from the original's, over the
    layer's own relative error, is its sensitivity. That the two go together, and that layers add up, is the approximation
    that a plan is made with.

    Args:
        module: The graph.
        choices: See :func:`menu`.
        found: What layers read.
        images: Inputs to look at, shape (n, …).
        progress: Told how far it has come.
    """
    parts = torch.from_numpy(images).split(64)
    result: dict[str, float] = {}
    with torch.no_grad():
        original = torch.cat([F.log_softmax(module(part), -1) for part in parts])
        for number, (node, options) in enumerate(choices.items()):
            layer = options[-1].layer
            progress(number, len(choices), f"how much {layer.name} matters")
            chains = [c for c in options if c.method is not None]
            if not chains:
                continue
            tried = min(chains, key=lambda c: abs(c.error - _PROBE))
            copy = duplicate(module)
            assert tried.method is not None
            replace(copy, layer, tried.method, tried.rank, seen_by(layer, found))
            finish(copy)
            changed = torch.cat([F.log_softmax(copy(part), -1) for part in parts])
            divergence = float(F.kl_div(changed, original, log_target=True, reduction="batchmean"))
            result[node] = max(divergence, 1e-12) / max(tried.error, 1e-12)
    return result
