"""Which layers become chains, and of which rank: by a budget over the network, by energy, by noise, or as told."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch.fx import GraphModule

from edgekit.compress.allocation import choose
from edgekit.compress.chain import chain_macs
from edgekit.compress.factorize import evbmf
from edgekit.compress.factorize.layer import Layer
from edgekit.compress.factorize.method import Method
from edgekit.compress.factorize.plan import Choice, Menu, Methods, Plan, make_choices, whole
from edgekit.compress.factorize.statistics import Statistics, seen_by
from edgekit.errors import StepError
from edgekit.program import attribute

Measure = Literal["macs", "parameters"]

# A layer that loses this share of its output's energy or more is as bad as one that loses all.
_LOST = 1 - 1e-9


def within(choices: Menu, measure: Measure, budget: float, sensitivity: Mapping[str, float] | None = None) -> Plan:
    """The plan that keeps most and costs no more than the budget, exactly.

    What is kept is taken as the product over layers of the shares of energy that their outputs keep (Zhang et al., TPAMI
    2016, section 2.4, equation 12); each factor to the power of the square root of the layer's sensitivity, if that is
    known: the whole of it would trust a single probe too far.

    Args:
        choices: See :func:`~edgekit.compress.factorize.plan.menu`.
        measure: What is limited.
        budget: What all layers together may cost.
        sensitivity: By node.
    """
    loss = {}
    for node, options in choices.items():
        weight = math.sqrt(sensitivity.get(node, 0.0)) if sensitivity is not None else 1.0
        loss[node] = {i: -weight * math.log1p(-min(c.error, _LOST)) for i, c in enumerate(options)}
    cost = {node: {i: float(getattr(c, measure)) for i, c in enumerate(o)} for node, o in choices.items()}
    least = sum(min(options.values()) for options in cost.values())
    if least > budget:
        raise StepError(
            f"the smallest chains take {least / max(budget, 1):.2f} times what the goal leaves to the layers that can be "
            "factorized",
            "Ask for less, or lower multiple.",
        )
    return {node: choices[node][i] for node, i in choose(loss, cost, budget).items()}


def uniform(choices: Menu, measure: Measure, budget: float) -> Plan:
    """The plan within the budget in which every layer keeps the same share of its output's energy, or more."""
    tolerances = sorted({choice.error for options in choices.values() for choice in options})
    low, high = 0, len(tolerances) - 1
    while low < high:
        middle = (low + high) // 2
        plan = by_energy(choices, 1 - tolerances[middle])
        fits = sum(getattr(c, measure) for c in plan.values()) <= budget
        low, high = (low, middle) if fits else (middle + 1, high)
    return by_energy(choices, 1 - tolerances[low])


def by_energy(choices: Menu, energy: float) -> Plan:
    """For each layer the cheapest choice that keeps this share of its output's energy."""
    # The choices are in the order of their MACs.
    return {node: next(c for c in options if c.error <= 1 - energy + 1e-12) for node, options in choices.items()}


def variational(module: GraphModule, layers: Sequence[Layer], methods: Methods, found: Statistics | None) -> Plan:
    """Ranks above the noise of the weights, by variational Bayes; of the methods that pay, the one with fewest MACs.

    Kim et al., ICLR 2016, section 3.1, choose the ranks of Tucker-2 so.
    """
    plan = {}
    for layer in layers:
        weight = attribute(module, layer.weight).detach().double()
        ranks = {m: _significant(m, layer, weight) for m in methods(layer) if m.matrices(layer, weight)}
        plan[layer.node] = _cheapest(module, layer, ranks, found)
    return plan


def _significant(method: Method, layer: Layer, weight: torch.Tensor) -> int:
    share = max(evbmf.rank(matrix.numpy()) / min(matrix.shape) for matrix in method.matrices(layer, weight))
    return max(1, round(share * method.full_rank(layer)))


def given(
    module: GraphModule,
    layers: Sequence[Layer],
    methods: Methods,
    found: Statistics | None,
    *,
    share: float | None = None,
    ranks: Sequence[str] = (),
    multiple: int = 1,
) -> Plan:
    """Ranks as told; of the methods that pay, the one with fewest MACs.

    Args:
        module: The graph.
        layers: Of it.
        methods: What may be used for a layer.
        found: What layers read.
        share: Of each layer's full rank.
        ranks: ``PATTERN=RANK``; layers that none names stay whole.
        multiple: Of the ranks that ``share`` gives.

    Raises:
        StepError: If a pattern names no layer.
    """
    wanted: dict[str, int] = {}
    for text in ranks:
        pattern, _, number = text.rpartition("=")
        named = fnmatch.filter([layer.name for layer in layers], pattern)
        if not named:
            raise StepError(
                f"no layer that can be factorized is called {pattern!r}", "edgekit inspect lists the layers."
            )
        wanted.update(dict.fromkeys(named, int(number)))
    plan = {}
    for layer in layers:
        if share is not None:
            tried = {m: max(multiple, round(share * m.full_rank(layer) / multiple) * multiple) for m in methods(layer)}
        else:
            tried = {m: wanted[layer.name] for m in methods(layer) if layer.name in wanted}
        plan[layer.node] = _cheapest(module, layer, tried, found)
    return plan


def _cheapest(module: GraphModule, layer: Layer, ranks: Mapping[Method, int], found: Statistics | None) -> Choice:
    paying = {m: r for m, r in ranks.items() if r <= m.full_rank(layer) and m.pays(layer, r)}
    if not paying:
        return whole(layer)
    best = min(paying, key=lambda m: chain_macs(m.stages(layer, paying[m]), layer.space))
    return make_choices(module, layer, best, [paying[best]], seen_by(layer, found).covariance)[0]


def cost(plan: Plan, measure: Measure) -> int:
    """What the layers of a plan take together."""
    return sum(int(getattr(choice, measure)) for choice in plan.values())
