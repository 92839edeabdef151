"""``cifar10:PATH``: CIFAR-10 in its original binary or python batches, as a tree of images, or as ``.npz`` files.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data import folder
from edgekit.data.dataset import Dataset, Split, make_dataset
from edgekit.data.npz import encoded_split, read_npz
from edgekit.errors import DataError, UsageError

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Random crops and mirror images: the standard augmentation of CIFAR (He et al., CVPR 2016, section 4.2).
AUGMENTATION = "crop+flip"
_RECORD = 1 + 3 * 32 * 32


def load(name: str, path: Path, **options: Any) -> Dataset:
    """Loads CIFAR-10.

    Args:
        name: The reference.
        path: A ``.npz`` (with ``train_x … test_y``, or encoded images: ``NAME_train*.npz`` and ``NAME_test*.npz`` beside
            each other), a folder of binary or python batches, or an image tree.
        options: Of :func:`~edgekit.data.dataset.make_dataset`.
    """
    if path.is_file() and path.suffix == ".npz":
        train, test = _from_npz(path)
    elif not path.is_dir():
        raise DataError(f"{path} does not exist", "Give a .npz file, a folder of CIFAR-10 batches, or an image tree.")
    elif any(path.glob("data_batch_*.bin")):
        train, test = (_read_all(path, names, _binary_batch) for names in _batches(".bin"))
    elif (path / "data_batch_1").is_file():
        train, test = (_read_all(path, names, _python_batch) for names in _batches(""))
    elif any(path.glob("*.npz")):
        return load(name, _only_candidate(path), **options)
    else:
        loaded = folder.load(name, path, **options)
        return Dataset(**{**vars(loaded), "augmentation": AUGMENTATION})
    return make_dataset(name, LABELS, train, test=test, augmentation=AUGMENTATION, **options)


def _from_npz(path: Path) -> tuple[Split, Split]:
    arrays = read_npz(path)
    if {"train_x", "train_y", "test_x", "test_y"} <= set(arrays):
        return Split(arrays["train_x"], arrays["train_y"]), Split(arrays["test_x"], arrays["test_y"])
    if not {"bytes", "offsets", "labels"} <= set(arrays):
        raise DataError(
            f"{path} holds the arrays {', '.join(sorted(arrays))}", "That is no form of CIFAR-10 that edgekit reads."
        )
    stem = re.match(r"(.*)_(train|test)[^_]*$", path.stem)
    if stem is None:
        raise DataError(
            f"{path.name} says neither train nor test", "Name the two files NAME_train….npz and NAME_test….npz."
        )
    found = {}
    for part in ("train", "test"):
        candidates = sorted(path.parent.glob(f"{stem.group(1)}_{part}*.npz"))
        if not candidates:
            raise DataError(
                f"{stem.group(1)}_{part}*.npz is missing beside {path.name}", "Both parts belong in one folder."
            )
        found[part] = encoded_split(read_npz(candidates[0]), candidates[0])
    return found["train"], found["test"]


def _only_candidate(path: Path) -> Path:
    candidates = sorted(p for p in path.glob("*cifar10*.npz") if not re.search(r"_test[^_]*$", p.stem))
    if len(candidates) != 1:
        offers = "; ".join(f"cifar10:{p}" for p in candidates)
        raise UsageError(
            f"{path} holds {len(candidates)} data sets that could be meant", f"Type one of: {offers or 'a file'}."
        )
    return candidates[0]


def _batches(suffix: str) -> tuple[list[str], list[str]]:
    return [f"data_batch_{i}{suffix}" for i in range(1, 6)], [f"test_batch{suffix}"]


def _read_all(path: Path, names: list[str], reader: Any) -> Split:
    present = [path / name for name in names if (path / name).is_file()]
    if not present:
        raise DataError(
            f"{path} has no {names[0]}", "A CIFAR-10 folder holds data_batch_1 … data_batch_5 and test_batch."
        )
    parts = [reader(file) for file in present]
    return Split(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))


def _binary_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if not len(content) or len(content) % _RECORD:
        raise DataError(
            f"{path} has {len(content)} bytes, which is no multiple of a record's {_RECORD}",
            "It may be a truncated download: fetch it again.",
        )
    records = content.reshape(-1, _RECORD)
    return _planes(records[:, 1:]), records[:, 0].astype(np.int64)


def _python_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        pixels, labels = np.asarray(content[b"data"], np.uint8), np.asarray(content[b"labels"], np.int64)
        return _planes(pixels), labels
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path} is no CIFAR-10 batch: {error}", "Fetch it again, or use the binary version."
        ) from error


def _planes(flat: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _ArraysOnly(pickle.Unpickler):
    """Admits what the batches hold, NumPy arrays in plain containers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no batch of CIFAR-10 does")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
