"""Bits for each layer under a budget of bytes: an integer programme over measured sensitivities.

Each layer takes one width; the noise that each width puts into the network's output, measured with that layer alone
quantized, is taken as additive. Minimize its sum subject to the bytes (the formulation of Hubara et al., "Accurate Post
Training Quantization With Small Calibration Sets", ICML 2021, section 3.4), solved exactly by HiGHS.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.errors import StepError


def choose_bits(
    noise: Mapping[str, Mapping[int, float]], elements: Mapping[str, int], budget_bytes: float
) -> dict[str, int]:
    """The widths of least total noise that fit the budget.

    Args:
        noise: For each layer and width in bits: noise power at the output relative to the signal.
        elements: Weights of each layer.
        budget_bytes: What all weights together may take.

    Raises:
        StepError: If even the smallest widths take more.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    choices = [(layer, bits) for layer, widths in noise.items() for bits in sorted(widths)]
    size = np.array([elements[layer] * bits / 8 for layer, bits in choices])
    least = sum(elements[layer] * min(widths) / 8 for layer, widths in noise.items())
    if least > budget_bytes:
        raise StepError(
            f"the weights take {least:.0f} bytes at the smallest widths, and the budget is {budget_bytes:.0f}",
            "Give a larger size, or prune first.",
        )
    cost = np.array([noise[layer][bits] for layer, bits in choices])
    one_each = np.array([[float(layer == name) for layer, _ in choices] for name in noise])
    found = milp(
        # Of equal noise the smaller, and numbers near 1 for the solver's tolerances.
        cost / max(float(cost.max()), 1e-30) + 1e-9 * size / size.sum(),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(size[None] / budget_bytes, 0, 1)],
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
    )
    if found.x is None:
        raise StepError(f"no choice of bits was found: {found.message}")
    return {layer: bits for (layer, bits), taken in zip(choices, found.x, strict=True) if taken > 0.5}
