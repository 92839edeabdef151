"""``npz:PATH``: arrays in one NumPy archive."""

from __future__ import annotations

import io
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data.dataset import Dataset, Split, make_dataset
from edgekit.data.references import arrays_to_dataset
from edgekit.errors import DataError

_FORMS = "train_x, train_y, test_x, test_y; or x, y; or bytes, offsets, labels"


def load(name: str, path: Path, **options: Any) -> Dataset:
    """Loads an archive that holds ``train_x, train_y, test_x, test_y``, or ``x, y``, or encoded images in
    ``bytes, offsets, labels``."""
    arrays = read_npz(path)
    if {"train_x", "train_y"} <= set(arrays):
        test = (arrays["test_x"], arrays["test_y"]) if {"test_x", "test_y"} <= set(arrays) else None
        return arrays_to_dataset(name, (arrays["train_x"], arrays["train_y"]), test, **options)
    if {"x", "y"} <= set(arrays):
        return arrays_to_dataset(name, (arrays["x"], arrays["y"]), None, **options)
    if {"bytes", "offsets", "labels"} <= set(arrays):
        split = encoded_split(arrays, path)
        classes = int(split.labels.max()) + 1
        return make_dataset(name, [str(i) for i in range(classes)], split, **options)
    raise DataError(f"{path} holds the arrays {', '.join(sorted(arrays)) or 'none'}", f"edgekit reads: {_FORMS}.")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive, never unpickling.

    Raises:
        DataError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", "Check the path.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        raise DataError(
            f"{path} ({path.stat().st_size} bytes) is damaged or no .npz file: {error}",
            "It may be a truncated download: fetch it again and compare its SHA-256.",
        ) from error


def encoded_split(arrays: dict[str, np.ndarray], path: Path) -> Split:
    """Decodes images that stand one after the other as files in ``bytes``, cut at ``offsets``.

    Raises:
        DataError: If the arrays don't fit each other or an image can't be decoded; it names the image.
    """
    content, offsets, labels = arrays["bytes"].tobytes(), arrays["offsets"], arrays["labels"]
    if len(offsets) != len(labels) + 1 or int(offsets[-1]) != len(content):
        raise DataError(
            f"{path} is inconsistent: {len(labels)} labels, {len(offsets)} offsets, {len(content)} bytes of images",
            "Offsets are one more than the labels and end with the number of bytes.",
        )
    files = [content[int(a) : int(b)] for a, b in pairwise(offsets)]
    images = [decode(file, f"image {index} of {path}") for index, file in enumerate(files)]
    same_shape = len({image.shape for image in images}) == 1
    return Split(np.stack(images) if same_shape else images, labels)


def decode(content: bytes, what: str) -> np.ndarray:
    """Decodes an image file to uint8 RGB or gray, shape (H, W, 3) or (H, W, 1).

    Raises:
        DataError: If it can't be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            gray = image.mode in ("L", "1", "I;16", "LA")
            pixels = np.asarray(image.convert("L" if gray else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{what} can't be decoded: {error}", "It may be truncated: fetch it again, or remove it."
        ) from error
    return pixels[..., None] if gray else pixels
