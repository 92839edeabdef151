"""Accuracy: top-1, top-5, per class, and how two sets of predictions compare. All shares are percentages, 0 to 100."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import DataError

if TYPE_CHECKING:
    import torch

    from edgekit.data.dataset import Split
    from edgekit.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class Evaluation:
    """How well outputs name the right class.

    Attributes:
        top1: Percentage of inputs whose largest output is the right class.
        top5: Percentage whose right class is among the five largest; 100 with five classes or fewer.
        standard_error: Of ``top1``, in points.
        per_class: Label, count and top-1 of each class.
        logits: float32, shape (n, classes).
        labels: int64, shape (n,).
    """

    top1: float
    top5: float
    standard_error: float
    per_class: tuple[dict[str, Any], ...]
    logits: np.ndarray
    labels: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        """The class that each input was given, shape (n,)."""
        return self.logits.argmax(1)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values, without the logits."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "standard_error": self.standard_error,
            "images": len(self.labels),
            "per_class": list(self.per_class),
        }


def from_logits(logits: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()) -> Evaluation:
    """Accuracy of outputs computed by any runtime.

    Among equal outputs the first counts, as argmax picks it on the device; int8 outputs tie often. An output that is
    not finite is wrong.

    Args:
        logits: Shape (n, classes).
        labels: Shape (n,).
        names: Class names.

    Raises:
        DataError: If a label has no output.
    """
    n, classes = logits.shape
    if n and int(labels.max()) >= classes:
        raise DataError(
            f"there are labels up to {int(labels.max())}, and {classes} outputs",
            "Take the data that the network was trained for.",
        )
    finite = np.where(np.isfinite(logits), logits, -np.inf)
    right = finite[np.arange(n), labels]
    # How many other classes come before: the larger ones, and the equal ones of a lower index.
    before = np.arange(classes)[None] < labels[:, None]
    rank = ((finite > right[:, None]) | ((finite == right[:, None]) & before)).sum(1)
    rank[~np.isfinite(right)] = classes
    hit = rank < 1
    share = float(hit.mean()) if n else 0.0
    rows = []
    for index in range(classes):
        chosen = labels == index
        top1 = float(hit[chosen].mean() * 100) if chosen.any() else None
        rows.append(
            {"label": names[index] if index < len(names) else str(index), "count": int(chosen.sum()), "top1": top1}
        )
    return Evaluation(
        top1=share * 100,
        top5=float((rank < 5).mean() * 100) if n else 0.0,
        standard_error=100 * math.sqrt(share * (1 - share) / n) if n else 0.0,
        per_class=tuple(rows),
        logits=np.asarray(logits, np.float32),
        labels=np.asarray(labels, np.int64),
    )


def evaluate(
    module: torch.nn.Module,
    split: Split,
    preprocessing: Preprocessing | None,
    *,
    names: Sequence[str] = (),
    batch_size: int = 128,
    limit: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Runs a network over a split in evaluation.

    Args:
        module: A network or a program's graph; its flags are left in evaluation.
        split: Inputs and labels.
        preprocessing: Of the bundle.
        names: Class names.
        batch_size: Inputs at a time.
        limit: Use so many, evenly over the split.
        device: Where to run.
        progress: Told how far it has come.

    Raises:
        DataError: If the network is no classifier, or a label has no output.
    """
    import torch

    from edgekit.program import set_training
    from edgekit.simulation import simulator

    if isinstance(module, torch.fx.GraphModule):
        module = simulator(set_training(module, False))
    else:
        module.eval()
    count = len(split) if limit is None else min(limit, len(split))
    outputs, labels = [], []
    with torch.inference_mode():
        for x, y in split.batches(preprocessing, batch_size, limit=limit):
            outputs.append(module(torch.from_numpy(x).to(device)).float().cpu().numpy())
            labels.append(y)
            if progress is not None:
                progress(sum(map(len, labels)), count, "evaluating")
    return from_logits(_by_class(np.concatenate(outputs)), np.concatenate(labels), names)


def _by_class(outputs: np.ndarray) -> np.ndarray:
    """Outputs as (n, classes); a map of one pixel, as some networks end in, is no more than that."""
    if outputs.ndim < 2 or math.prod(outputs.shape[2:]) != 1:
        shape = ", ".join(map(str, outputs.shape[1:])) or "no dimension"
        raise DataError(
            f"the network gives an output of shape ({shape}) for each input, and accuracy needs one number for each class",
            "edgekit measures classifiers: let the network end in one number for each class, by pooling or flattening.",
        )
    return outputs.reshape(len(outputs), -1)


def paired_difference(a: Evaluation, b: Evaluation) -> tuple[float, float]:
    """How much better ``b`` is than ``a`` on the same inputs: points of top-1, and their standard error.

    Both saw the same images, so only those count on which one is right and the other wrong (McNemar's comparison).
    """
    hit_a = (a.predictions == a.labels).astype(np.float64)
    hit_b = (b.predictions == b.labels).astype(np.float64)
    difference = hit_b - hit_a
    n = len(difference)
    return float(difference.mean() * 100), float(difference.std(ddof=1) / math.sqrt(n) * 100) if n > 1 else 0.0


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Percentage of inputs for which two sets of outputs name the same class."""
    return float((a.argmax(1) == b.argmax(1)).mean() * 100)


def sqnr(reference: np.ndarray, output: np.ndarray) -> float | None:
    """Signal to noise ratio in dB; None when nothing differs, -inf when the output is not finite."""
    noise = float(np.sum((reference - output) ** 2, dtype=np.float64))
    signal = float(np.sum(reference.astype(np.float64) ** 2))
    if not np.isfinite(noise):
        return float("-inf")
    if noise == 0:
        return None
    return 10 * float(np.log10(max(signal, 1e-300) / noise))
