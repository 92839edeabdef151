"""Bits for each layer under a budget of bytes or of bit operations: an integer programme over measured sensitivities.

Each layer takes one width; the noise that each width puts into the network's output, measured with that layer alone
quantized, is taken as additive. Minimize its sum subject to the budget (the formulation of Hubara et al., "Accurate Post
Training Quantization With Small Calibration Sets", ICML 2021, section 3.4), solved exactly by HiGHS.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.errors import StepError


def choose_bits(
    noise: Mapping[str, Mapping[int, float]], cost_of_a_bit: Mapping[str, float], budget: float
) -> dict[str, int]:
    """The widths of least total noise that fit the budget.

    Args:
        noise: For each layer and width in bits: noise power at the output relative to the signal.
        cost_of_a_bit: What one bit more costs in each layer: its weights for their bits, its MACs for bit operations.
        budget: What all layers together may cost.

    Raises:
        StepError: If even the smallest widths cost more.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    choices = [(layer, bits) for layer, widths in noise.items() for bits in sorted(widths)]
    size = np.array([cost_of_a_bit[layer] * bits for layer, bits in choices])
    least = sum(cost_of_a_bit[layer] * min(widths) for layer, widths in noise.items())
    if least > budget:
        raise StepError(
            f"the smallest widths are {least / budget:.2f} times the budget", "Give a larger one, or prune first."
        )
    cost = np.array([noise[layer][bits] for layer, bits in choices])
    one_each = np.array([[float(layer == name) for layer, _ in choices] for name in noise])
    found = milp(
        # Of equal noise the smaller, and numbers near 1 for the solver's tolerances.
        cost / max(float(cost.max()), 1e-30) + 1e-9 * size / size.sum(),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(size[None] / budget, 0, 1)],
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
    )
    if found.x is None:
        raise StepError(f"no choice of bits was found: {found.message}")
    return {layer: bits for (layer, bits), taken in zip(choices, found.x, strict=True) if taken > 0.5}
