"""K-means weight sharing: each layer keeps a few values, and says for each weight which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from edgekit.bundle import Bundle
from edgekit.compress.distill.settings import Distillation, distillation
from edgekit.compress.distill.teacher import refuse_unfit_teachers
from edgekit.compress.finetune import Finetune
from edgekit.compress.layers import own_weights
from edgekit.compress.quantize.codebook.coding import MOST_ENTRIES, entropy_bits, fixed_bits, put_codes
from edgekit.compress.rewrite import finish, fold_batch_norm, remove_dropout
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.errors import StepError
from edgekit.program import attribute, layer_name

_ROUNDS = 300


@dataclass(frozen=True, kw_only=True)
class ShareWeights(Step):
    """Clusters the weights of each layer, then trains the centroids; the codes are entropy-coded on disk.

    Batch norms are folded first, so the shared values are those that the device computes with.

    Attributes:
        clusters: Values that each layer keeps, 2 to 256.
        epochs: Epochs in which the centroids (and biases) are trained; 0 for none.
        learning_rate: Of that training, by Adam; a centroid moves by at most this in one step.
        distill: Share of the soft targets of the network as it was before in the loss, 0 to 1, the rest being
            cross-entropy; or the settings of the step ``distill``: ``distill=[teacher=big,method=decoupled]``.
        keep: Name patterns of layers that keep all their values.
    """

    name: ClassVar[str] = "share-weights"
    summary: ClassVar[str] = "cluster each layer's weights to a few shared values, train these, entropy-code the rest"
    source: ClassVar[str] = "Han et al., 'Deep Compression', ICLR 2016, section 3"
    example: ClassVar[str] = "clusters=16,epochs=1"

    clusters: int = 32
    epochs: int = 1
    learning_rate: float = 1e-4
    distill: Distillation | float = 0.0
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= MOST_ENTRIES:
            raise ValueError(f"clusters must be 2 to {MOST_ENTRIES}, not {self.clusters}")
        if self.epochs < 0:
            raise ValueError(f"epochs can't be {self.epochs}")
        distillation(self.distill)

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)
        refuse_unfit_teachers(self.distill, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        module = bundle.module()
        remove_dropout(module)
        fold_batch_norm(module)
        layers = []
        for node, name in own_weights(module, self.keep):
            weight = attribute(module, name).detach()
            codes, centroids = cluster(weight.numpy(), self.clusters)
            shared = torch.from_numpy(centroids)[torch.from_numpy(codes).long()]
            layers.append(
                {
                    "layer": layer_name(node),
                    "weights": weight.numel(),
                    "clusters": len(centroids),
                    "entropy_bits": entropy_bits(torch.from_numpy(codes)),
                    "fixed_bits": fixed_bits(len(centroids)),
                    "sqnr_db": float(10 * torch.log10((weight**2).sum() / ((weight - shared) ** 2).sum().clamp(1e-30))),
                }
            )
            put_codes(module, node, torch.from_numpy(codes), torch.nn.Parameter(torch.from_numpy(centroids)))
        if not layers:
            raise StepError("there is no layer whose weights could be shared", "Keep fewer layers as they are.")
        finish(module)
        report: dict[str, Any] = {"layers": layers}
        result = bundle.with_module(module)
        if self.epochs and context.data is not None:
            training = Finetune(
                epochs=self.epochs, learning_rate=self.learning_rate, optimizer="adam", weight_decay=0.0,
                distill=self.distill,
            )  # fmt: skip
            result, report["finetune"] = training.train(result, context, teacher=bundle)
        return result, report

    def ensures(self, before: Bundle, after: Bundle) -> None:
        if after.weights != "codes":
            raise StepError("the result holds no shared weight")


def cluster(weight: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """K-means of scalar values, from centroids spread evenly over their range.

    Lloyd's algorithm; in one dimension a centroid's weights are an interval, so each round is one search in sorted
    values. Even spreading keeps the large weights represented (Han et al., section 3.2). Empty clusters are dropped.

    Args:
        weight: Any shape.
        clusters: At most so many.

    Returns:
        Codes (uint8, of the weight's shape) and centroids (float32, ascending).
    """
    values = np.sort(weight.reshape(-1).astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centroids = np.unique(np.linspace(values[0], values[-1], clusters))
    edges = np.zeros(0, np.int64)
    for _ in range(_ROUNDS):
        found = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2)
        if np.array_equal(found, edges):
            break
        edges = found
        bounds = np.concatenate([[0], edges, [len(values)]])
        counts = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(counts, 1)
        centroids = np.sort(means[counts > 0])
        if len(centroids) != len(counts):
            edges = np.zeros(0, np.int64)
    table = np.unique(centroids.astype(np.float32))
    middles = (table[1:].astype(np.float64) + table[:-1]) / 2
    return np.searchsorted(middles, weight.astype(np.float64)).astype(np.uint8), table
