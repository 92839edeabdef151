"""One choice for each layer under a budget: an integer programme.

Losses are taken as additive over layers. Minimize their sum subject to the budget (the formulation of Hubara et al.,
"Accurate Post Training Quantization With Small Calibration Sets", ICML 2021, section 3.4), solved exactly by HiGHS.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np

from edgekit.errors import StepError

C = TypeVar("C", bound=Hashable)


def choose(loss: Mapping[str, Mapping[C, float]], cost: Mapping[str, Mapping[C, float]], budget: float) -> dict[str, C]:
    """The choices of least total loss that fit the budget.

    Args:
        loss: For each layer and choice.
        cost: Likewise; of equal loss the cheaper is taken.
        budget: What all layers together may cost.

    Raises:
        StepError: If even the cheapest choices cost more.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    choices = [(layer, option) for layer, options in loss.items() for option in options]
    size = np.array([cost[layer][option] for layer, option in choices], dtype=float)
    least = sum(min(cost[layer][option] for option in options) for layer, options in loss.items())
    if least > budget:
        raise StepError(f"the cheapest choices cost {least / budget:.2f} times the budget", "Give a larger one.")
    value = np.array([loss[layer][option] for layer, option in choices])
    one_each = np.array([[float(layer == name) for layer, _ in choices] for name in loss])
    found = milp(
        # Of equal loss the smaller, and numbers near 1 for the solver's tolerances.
        value / max(float(value.max()), 1e-30) + 1e-9 * size / size.sum(),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(size[None] / budget, 0, 1)],
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
    )
    if found.x is None:
        raise StepError(f"no choice for each layer was found: {found.message}")
    return {layer: option for (layer, option), taken in zip(choices, found.x, strict=True) if taken > 0.5}
