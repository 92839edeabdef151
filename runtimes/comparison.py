"""Comparing measurements: the ratio of medians with a bootstrap interval; "no difference" and "slower" are answers.

A round's runs share the machine's state, so rounds are what is independent; within them, runs are drawn again too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.runtimes.measure import Measurement

LEAST_ROUNDS = 3
# More samples of a round than these add nothing to the interval but time.
_RESAMPLES, _SAMPLES_PER_ROUND = 2000, 200
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How long one cell takes against another.

    Attributes:
        label: The cell.
        baseline: What it is compared with.
        ratio: Median latency over the baseline's; below 1 is faster.
        low: Lower end of the interval.
        high: Upper end.
        verdict: ``faster``, ``slower`` or ``no difference``.
    """

    label: str
    baseline: str
    ratio: float
    low: float
    high: float
    verdict: str


def compare(measured: Measurement, baseline: Measurement, seed: int = 0, *, paired: bool = True) -> Comparison:
    """The ratio of median latencies with its interval.

    Args:
        measured: The cell.
        baseline: What to compare with.
        seed: Of the bootstrap.
        paired: They were measured in the same rounds, interleaved. Where one has more, for another ratio wanted them,
            those that both have count.

    Raises:
        ValueError: If one of them has too few rounds.
    """
    a, b = measured.rounds_ms, baseline.rounds_ms
    if paired:
        a, b = a[: len(b)], b[: len(a)]
    low, high = interval(a, b, seed, paired=paired)
    verdict = "faster" if high < 1 else "slower" if low > 1 else "no difference"
    return Comparison(
        label=measured.cell.label,
        baseline=baseline.cell.label,
        ratio=float(np.median(balanced(a)) / np.median(balanced(b))),
        low=low,
        high=high,
        verdict=verdict,
    )


def interval(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], seed: int = 0, *, paired: bool = True
) -> tuple[float, float]:
    """A two-stage bootstrap interval (Davison & Hinkley 1997, section 3.8) on median(a) / median(b).

    Paired rounds are drawn together, for the two of a round met the same machine; then runs within each. So few rounds
    make the plain percentiles too narrow: they are expanded to what Student's t asks for (Hesterberg, The American
    Statistician 69, 2015, section 5.3).

    Args:
        a: Samples for each round.
        b: Samples for each round; as many rounds if they are paired.
        seed: Of the draws.
        paired: Round by round they were measured together.

    Returns:
        Lower and upper end, 95 %.
    """
    if min(len(a), len(b)) < LEAST_ROUNDS or (paired and len(a) != len(b)):
        same = "the same rounds" if paired else "rounds"
        raise ValueError(f"a comparison needs {same} on both sides, at least {LEAST_ROUNDS}: {len(a)} and {len(b)}")
    rng = np.random.default_rng(seed)
    left, right = balanced(a), balanced(b)
    ratios = np.empty(_RESAMPLES)
    for draw in range(_RESAMPLES):
        rounds = rng.integers(0, len(left), len(left))
        others = rounds if paired else rng.integers(0, len(right), len(right))
        ratios[draw] = np.median(_redrawn(left[rounds], rng)) / np.median(_redrawn(right[others], rng))
    tail = 100 * _expanded_tail(min(len(left), len(right)))
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(low), float(high)


def _expanded_tail(rounds: int) -> float:
    """The share to cut off at each end: Φ(−√(n / (n − 1)) t), t the quantile of Student's distribution with n − 1 degrees."""
    from scipy.stats import norm, t

    return float(norm.cdf(-np.sqrt(rounds / (rounds - 1)) * t.ppf((1 + CONFIDENCE) / 2, rounds - 1)))


def half_width(low: float, high: float) -> float:
    """How far an interval of a ratio reaches from its middle, as a share of it."""
    return (high - low) / (high + low)


def balanced(rounds: Sequence[Sequence[float]]) -> np.ndarray:
    """As many samples of every round (its quantiles), so that a fast round with more runs does not outweigh a slow one."""
    points = (np.arange(_SAMPLES_PER_ROUND) + 0.5) / _SAMPLES_PER_ROUND
    return np.stack([np.quantile(np.asarray(one, np.float64), points) for one in rounds])


def _redrawn(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    chosen = rng.integers(0, samples.shape[1], samples.shape)
    return np.take_along_axis(samples, chosen, axis=1)
