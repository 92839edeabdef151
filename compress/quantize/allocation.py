"""Bits for each layer under a budget of bytes or of bit operations, by measured sensitivities.

Each layer takes one width; the noise that each width puts into the network's output, measured with that layer alone
quantized, is taken as additive: see :mod:`edgekit.compress.allocation`.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.compress.allocation import choose
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
    least = sum(cost_of_a_bit[layer] * min(widths) for layer, widths in noise.items())
    if least > budget:
        raise StepError(
            f"the smallest widths are {least / budget:.2f} times the budget", "Give a larger one, or prune first."
        )
    costs = {layer: {bits: cost_of_a_bit[layer] * bits for bits in widths} for layer, widths in noise.items()}
    return choose(noise, costs, budget)
