"""Random crops and mirror images, drawn from a seed alone, so that a resumed training sees the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Zero pixels around the image before the crop: 4 for 32×32 (He et al., CVPR 2016, section 4.2), 1 for tiny images.
_PAD, _PAD_TINY, _TINY = 4, 1, 12


def augment(
    images: np.ndarray | Sequence[np.ndarray], kind: str, seed: tuple[int, ...]
) -> np.ndarray | Sequence[np.ndarray]:
    """Augments a batch.

    Args:
        images: uint8 (n, H, W, C). Other inputs, and images of various sizes, pass unchanged.
        kind: ``none``, ``crop`` or ``crop+flip``.
        seed: What the choices are drawn from.

    Returns:
        The batch, same shape and type.
    """
    if kind == "none" or not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        return images
    random = np.random.default_rng(seed)
    n, height, width, _ = images.shape
    pad = _PAD_TINY if min(height, width) <= _TINY else _PAD
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    top, left = random.integers(0, 2 * pad + 1, (2, n))
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    cropped = padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if kind == "crop+flip":
        mirrored = random.random(n) < 0.5
        cropped[mirrored] = cropped[mirrored, :, ::-1]
    return cropped
