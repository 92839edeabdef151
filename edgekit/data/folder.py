"""``folder:PATH``: class sub-folders of images, with or without ``train``, ``validation`` and ``test`` above them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data.dataset import Dataset, Split, make_dataset
from edgekit.data.npz import decode
from edgekit.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


class _Files:
    """Images decoded when they are asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        path = self.paths[index]
        return decode(path.read_bytes(), str(path))


def load(name: str, path: Path, **options: Any) -> Dataset:
    """Loads a folder; the classes are the names of its sub-folders in alphabetical order.

    Raises:
        DataError: If it is missing or holds no images.
    """
    if not path.is_dir():
        raise DataError(f"the folder {path} does not exist", "Check the path.")
    parts = {
        _SPLITS[sub.name.lower()]: sub for sub in sorted(path.iterdir()) if sub.is_dir() and sub.name.lower() in _SPLITS
    }
    if "train" not in parts:
        parts = {"train": path}
    classes = _class_names(parts["train"])
    splits = {key: _read(folder, classes) for key, folder in parts.items()}
    return make_dataset(
        name, classes, splits["train"], validation=splits.get("validation"), test=splits.get("test"), **options
    )


def _class_names(folder: Path) -> list[str]:
    names = sorted(sub.name for sub in folder.iterdir() if sub.is_dir() and any(_images(sub)))
    if len(names) < 2:
        raise DataError(
            f"{folder} holds {'no' if not names else 'one'} class folder with images",
            "It needs a sub-folder of images for each class.",
        )
    return names


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def _read(folder: Path, classes: list[str]) -> Split:
    strangers = sorted(
        sub.name for sub in folder.iterdir() if sub.is_dir() and sub.name not in classes and any(_images(sub))
    )
    if strangers:
        raise DataError(f"{folder} has classes that the training part lacks: {', '.join(strangers[:5])}")
    paths, labels = [], []
    for index, label in enumerate(classes):
        found = _images(folder / label) if (folder / label).is_dir() else []
        paths += found
        labels += [index] * len(found)
    if not paths:
        raise DataError(f"{folder} holds no images", f"Known suffixes: {', '.join(sorted(SUFFIXES))}.")
    files = _Files(paths)
    shapes = {files[0].shape, files[len(files) - 1].shape}
    if len(shapes) == 1 and np.prod(next(iter(shapes))) * len(files) < 512 * 2**20:
        images = [files[i] for i in range(len(files))]  # small images: decode once
        if len({image.shape for image in images}) == 1:
            return Split(np.stack(images), np.array(labels))
        return Split(images, np.array(labels))
    return Split(files, np.array(labels))  # type: ignore[arg-type]
