"""The rank of a noisy matrix, by empirical variational Bayes.

Nakajima et al., "Global Analytic Solution of Fully-observed Variational Bayesian Matrix Factorization", JMLR 2013,
theorem 2 and corollary 2 (the noise's variance is found too). It needs no threshold: singular values below what noise of that
variance gives are left out.
"""

from __future__ import annotations

import numpy as np


def rank(matrix: np.ndarray) -> int:
    """How many singular values of a matrix are more than noise.

    Args:
        matrix: (m, n), any shape.
    """
    return rank_of_spectrum(np.linalg.svd(matrix, compute_uv=False), *matrix.shape)


def rank_of_spectrum(singular: np.ndarray, rows: int, columns: int) -> int:
    """The same from the singular values of a matrix of so many rows and columns, largest first."""
    from scipy.optimize import minimize_scalar

    short, long = sorted((rows, columns))
    s = np.zeros(short)
    s[: len(singular)] = np.asarray(singular, dtype=float)[:short]
    alpha = short / long
    # Equation 15: where the free energy of a component changes its sign.
    tau = 2.5129 * np.sqrt(alpha)
    edge = (1 + tau) * (1 + alpha / tau)

    def free_energy(variance: float) -> float:
        x = s**2 / (long * variance)
        strong = x > edge
        big, small = x[strong], x[~strong & (x > 0)]
        middle = (big - (1 + alpha) + np.sqrt(np.maximum((big - (1 + alpha)) ** 2 - 4 * alpha, 0))) / 2
        signal = np.log(middle + 1) + alpha * np.log(middle / alpha + 1) - middle
        return float(np.sum(small - np.log(small)) + np.sum(big - np.log(big)) + np.sum(signal))

    most = int(min(np.ceil(short / (1 + alpha)) - 1, short - 1))
    power = np.maximum(s**2, 1e-300)
    upper = float(np.sum(s**2)) / (short * long)
    lower = max(power[most] / (long * edge), float(np.mean(power[most:])) / long)
    if not 0 < lower < upper:
        return int(np.count_nonzero(s > 1e-12 * s[0])) if s[0] > 0 else 0
    # In the logarithm: the variance spans orders of magnitude.
    found = minimize_scalar(lambda v: free_energy(np.exp(v)), bounds=(np.log(lower), np.log(upper)), method="bounded")
    threshold = np.sqrt(long * np.exp(found.x) * edge)
    return int(np.count_nonzero(s > threshold))
