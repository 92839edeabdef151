"""What may reach a goal: a table of recipes, each tried on the network at hand without training.

A new technique is one more line: its steps as typed after ``--step``, with what they aim at in braces.

    {share}    the share of the original to aim at: the goal, or what is left of it for this part of the recipe
    {limit}    the same as a setting of prune-channels and its like: macs=…, size=… or latency=…
    {zeros}    the share of zeros at which sparse weights take that share of their bytes
    {shared}   how many shared values at which codes take it

Steps that can train are given here without (``epochs=0``), so that they are quick; the recipe gives them their epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgekit.compress.search.goal import Goal, Measure


@dataclass(frozen=True)
class Candidate:
    """One way to make a network smaller.

    Attributes:
        name: What to call it in the table.
        family: Of techniques, which the rules of thumb speak of.
        steps: Templates of its steps, in order.
        moves: The measures that it can lower.
        why: What it does to the file and its speed, in one sentence.
        with_int8: int8 does a part of the work; the templates aim at what is left after it.
        above, below: Tried only for goals in this range: outside it has nothing to give.
        quick: Whether it can be tried without training.
    """

    name: str
    family: str
    steps: tuple[str, ...]
    moves: tuple[Measure, ...]
    why: str
    with_int8: bool = False
    above: float = 0.0
    below: float = 1.0
    quick: bool = True


CANDIDATES: tuple[Candidate, ...] = (
    Candidate(
        "int8", "quantization", ("quantize:images=256",), ("size", "latency"),
        "a quarter of the bytes; as fast as the runtime's integer kernels are",
    ),
    Candidate(
        "fewer channels", "structured pruning", ("prune-channels:{limit},epochs=0",), ("size", "macs", "latency"),
        "smaller layers of the same kind, in every runtime",
    ),
    Candidate(
        "fewer channels, int8", "structured pruning", ("prune-channels:{limit},epochs=0", "quantize:images=256"),
        ("size", "latency"), "both, each doing a part of the work", with_int8=True,
    ),
    Candidate(
        "low rank", "low rank", ("factorize:{limit},epochs=0",), ("size", "macs", "latency"),
        "more and smaller layers: fewer MACs, and not always faster",
    ),
    Candidate(
        "fewer bits", "quantization", ("quantize:size={share},images=256",), ("size",),
        "2 to 8 bits by each layer's sensitivity; less than 8 save bytes and no time", below=0.26,
    ),
    Candidate(
        "shared values", "weight sharing", ("share-weights:clusters={shared},epochs=0",), ("size",),
        "codes into a table of values: smaller in the bundle and in ONNX, and no faster", above=1 / 32,
    ),
    Candidate(
        "zeros", "unstructured pruning", ("prune-weights:sparsity={zeros},epochs=0",), ("size",),
        "one bit for a zero: smaller in the bundle and in ONNX, and no faster", above=1 / 16,
    ),
    Candidate(
        "one-bit weights", "binary weights", ("qat:weight_bits=1",), ("size",),
        "can't be judged without training", below=0.125, quick=False,
    ),
)  # fmt: skip
"""In the order of preference among equals: what every runtime gains from comes first."""


def candidates_for(goal: Goal, int8_share: float | None) -> list[Candidate]:
    """Those that can move what the goal limits.

    Args:
        goal: The goal.
        int8_share: What int8 alone leaves of that measure; None where it can't be had.
    """
    found = []
    for candidate in CANDIDATES:
        in_range = goal.measure in candidate.moves and candidate.above < goal.share < candidate.below
        # Where int8 alone reaches the goal, or slows the network down, pruning besides only costs.
        helps = not candidate.with_int8 or (int8_share is not None and goal.share < int8_share < 1)
        if in_range and helps:
            found.append(candidate)
    return found


def written(template: str, goal: Goal, share: float) -> str:
    """A step as typed, from its template and the share to aim at."""
    down = math.floor(share * 1e4) / 1e4
    limits = {"size": f"size={down}", "macs": f"macs={down}", "latency": f"latency={down}@{goal.clock}"}
    # A mask is one bit of 32 for each weight, codes a whole number of bits.
    zeros = min(0.99, math.ceil((1 - share + 1 / 32) * 1e3) / 1e3)
    shared = 2 ** max(1, min(8, math.floor(share * 32)))
    return template.format(share=down, limit=limits[goal.measure], zeros=zeros, shared=shared)
