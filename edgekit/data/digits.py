"""``digits``: scikit-learn's 1 797 handwritten digits of 8×8 pixels, the embedded default.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data.dataset import Dataset
from edgekit.data.references import arrays_to_dataset


def load(name: str, path: Path, **options: Any) -> Dataset:
    """Loads the digits; their 17 gray levels 0 to 16 become round(level × 255 / 16)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    return arrays_to_dataset(name, (pixels, found.target), None, tuple(str(d) for d in range(10)), **options)
