"""Least squares through a ReLU: what counts is what the next layer reads.

min over W of sum |r(u) - r(a (W x + b) + o)|², with the activation r, the input u that it had in the original, and the
gain a and the offset o between the layer and the activation (a batch norm, and a shortcut that is added). An auxiliary z
in the place of the activation's input makes it two problems that are solved in turn: z elementwise in closed form, W by
linear least squares to z, while the weight of the link between the two grows (Zhang et al., "Accelerating Very Deep
Convolutional Networks for Classification and Detection", TPAMI 2016, section 2.2.2, equations 6 to 9).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# The link's weight and how often the two are solved at each (the paper has 0.01, then 1, 25 times each).
_LINKS, _TURNS = (0.01, 0.1, 1.0), 5


@dataclass(frozen=True)
class Rectified:
    """What lies between a layer and its activation, by row of the regression.

    Attributes:
        gain: (outputs,): of the batch norm, else 1.
        offset: (rows, outputs): the batch norm's shift, and the shortcut.
        wanted: (rows, outputs): what the activation gave in the original.
    """

    gain: torch.Tensor
    offset: torch.Tensor
    wanted: torch.Tensor

    def error(self, outputs: torch.Tensor) -> float:
        """The mean square of what is missed behind the activation."""
        return float((self.wanted - (self.gain * outputs + self.offset).relu()).square().mean(dtype=torch.float64))


def refine(
    x: torch.Tensor, problem: Rectified, weight: torch.Tensor, bias: torch.Tensor, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Improves a linear solution; gives it back where there is nothing to gain.

    Args:
        x: What the layer reads, (rows, d).
        problem: What lies behind it.
        weight: To begin with, (outputs, d), float64.
        bias: Likewise, (outputs,).
        ridge: The pull towards ``weight``, as in the linear solution.
    """
    mean = x.mean(0)
    centred = x - mean
    gram = (centred.T @ centred).double() / len(x) + ridge * torch.eye(x.shape[1], dtype=torch.float64)
    factor = torch.linalg.cholesky(gram)
    live = problem.gain.abs() > 1e-3 * problem.gain.abs().max()
    gain = torch.where(live, problem.gain, torch.ones_like(problem.gain))
    best, outputs = (weight, bias), x @ weight.T.float() + bias.float()
    least = problem.error(outputs)
    for link in _LINKS:
        for _ in range(_TURNS):
            z = _nearest(problem.wanted, gain * outputs + problem.offset, link)
            target = (z - problem.offset) / gain
            level = target.mean(0)
            moment = (centred.T @ (target - level)).double() / len(x) + ridge * best[0].T
            new = torch.cholesky_solve(moment, factor).T
            shift = level.double() - new @ mean.double()
            new, shift = torch.where(live[:, None], new, weight), torch.where(live, shift, bias)
            outputs = x @ new.T.float() + shift.float()
            error = problem.error(outputs)
            if error < least:
                least, best = error, (new, shift)
    return best


def _nearest(wanted: torch.Tensor, now: torch.Tensor, link: float) -> torch.Tensor:
    """argmin over z of (wanted - r(z))² + link (z - now)², elementwise: the better of its two halves (equation 8)."""
    below = now.clamp_max(0)
    above = ((link * now + wanted) / (link + 1)).clamp_min(0)
    cost_below = wanted.square() + link * (below - now).square()
    cost_above = (wanted - above).square() + link * (above - now).square()
    return torch.where(cost_below < cost_above, below, above)
