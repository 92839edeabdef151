"""The linear algebra that the decompositions share, in float64."""

from __future__ import annotations

import torch

# The part of a covariance's mean variance below which a direction counts as not seen in the images.
_UNSEEN = 1e-6


def root(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The symmetric square root of a covariance and its inverse.

    Directions that the images hardly have get the least variance that counts, so that the inverse exists.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(_UNSEEN * float(values.clamp_min(0).mean()) + 1e-30)
    half = values.sqrt()
    return (vectors * half) @ vectors.T, (vectors / half) @ vectors.T


def leading(symmetric: torch.Tensor) -> torch.Tensor:
    """The eigenvectors as columns, that of the largest eigenvalue first."""
    return torch.linalg.eigh(symmetric)[1].flip(1)


def regress(weight: torch.Tensor, covariance: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The map from features back to outputs that is nearest to a weight, by the covariance of what it reads.

    Args:
        weight: (outputs, d).
        covariance: (d, d).
        features: (f, d), each feature as a combination of what is read.

    Returns:
        argmin_H tr((W - H F) C (W - H F)'), (outputs, f).
    """
    seen = features @ covariance
    gram = seen @ features.T
    ridge = _UNSEEN * float(gram.diagonal().mean()) + 1e-30
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), seen @ weight.T).T


def relative_error(weight: torch.Tensor, approximation: torch.Tensor, covariance: torch.Tensor) -> float:
    """The variance of the output that an approximation (outputs, d) of a weight misses, as a share of all."""
    off = weight - approximation
    missed = float(((off @ covariance) * off).sum())
    return max(missed, 0.0) / max(float(((weight @ covariance) * weight).sum()), 1e-30)


def balance(first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives each component the same norm in both factors, which is kinder to training and to small number formats.

    Args:
        first: (r, …): the filters of the components.
        last: (outputs, r, …): what each gives to the outputs.
    """
    a, b = first.flatten(1).norm(dim=1), last.movedim(1, 0).flatten(1).norm(dim=1)
    scale = torch.where((a > 0) & (b > 0), (b / a.clamp_min(1e-30)).sqrt(), torch.ones_like(a))
    return first * scale.view(-1, *[1] * (first.dim() - 1)), last / scale.view(1, -1, *[1] * (last.dim() - 2))
