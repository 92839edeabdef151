"""``idx:PATH``: a folder with MNIST's four files, ``train-images-idx3-ubyte[.gz]`` and so on.

The format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data.dataset import Dataset
from edgekit.data.references import arrays_to_dataset
from edgekit.errors import DataError

_UBYTE = 0x08


def load(name: str, path: Path, **options: Any) -> Dataset:
    """Loads the training and test images (``t10k`` or ``test``) of a folder.

    Raises:
        DataError: If a file is missing or damaged.
    """
    if not path.is_dir():
        raise DataError(f"the folder {path} does not exist", "Give the folder that holds the four idx files.")
    train = (read_idx(_find(path, "train", "images"), 3), read_idx(_find(path, "train", "labels"), 1))
    prefix = "t10k" if any(path.glob("t10k*")) else "test"
    test = (read_idx(_find(path, prefix, "images"), 3), read_idx(_find(path, prefix, "labels"), 1))
    for what, (x, y) in (("training", train), ("test", test)):
        if len(x) != len(y):
            raise DataError(
                f"{path} has {len(x)} {what} images and {len(y)} labels", "The files don't belong together."
            )
    return arrays_to_dataset(name, train, test, **options)


def _find(folder: Path, prefix: str, what: str) -> Path:
    found = sorted(folder.glob(f"{prefix}*{what}*ubyte*"))
    if not found:
        raise DataError(
            f"{folder} has no {prefix}-{what}-idx…-ubyte[.gz]", "An idx data set is four files, as MNIST's."
        )
    return found[0]


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads one idx file of bytes.

    Raises:
        DataError: If it is damaged or has another number of dimensions.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}", "It may be a truncated download: fetch it again.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UBYTE or content[3] != dimensions:
        raise DataError(f"{path} is no idx file of bytes with {dimensions} dimension{'s' * (dimensions > 1)}")
    header = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:header], ">u4").astype(int))
    if len(content) - header != int(np.prod(shape)):
        raise DataError(
            f"{path} holds {len(content) - header} bytes of data, its header promises {int(np.prod(shape))}",
            "It may be a truncated download: fetch it again.",
        )
    return np.frombuffer(content[header:], np.uint8).reshape(shape)
