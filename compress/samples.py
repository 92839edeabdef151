"""Training images for techniques that look at some."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from edgekit.bundle import Bundle
from edgekit.compress.step import Context
from edgekit.data.dataset import to_inputs

# Images at a time.
_BATCH = 32


def batches(step: str, bundle: Bundle, context: Context, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels of so many training images, drawn with the context's seed, batch by batch.

    Args:
        step: Who asks, for the message where there is no data.
        bundle: Its preprocessing is applied.
        context: Data and seed.
        count: How many images, or all if there are fewer.
    """
    train = context.dataset(step).train
    chosen = np.random.default_rng(context.seed).permutation(len(train))[:count]
    for start in range(0, len(chosen), _BATCH):
        part = np.sort(chosen[start : start + _BATCH])
        x = to_inputs(train.images(part), bundle.preprocessing)
        yield torch.from_numpy(x), torch.from_numpy(train.labels[part])


def images(step: str, bundle: Bundle, context: Context, count: int) -> np.ndarray:
    """The same inputs in one array, (n, …)."""
    return np.concatenate([x.numpy() for x, _ in batches(step, bundle, context, count)])
