"""Data sets and their splits: train, validation and test are deterministic, disjoint, and checked by content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import DataError

if TYPE_CHECKING:
    from edgekit.data.preprocessing import Preprocessing

# What is held out where a source has no such split; the seed of every figure quoted with them.
VALIDATION_SHARE, VALIDATION_MOST = 0.1, 5000
TEST_SHARE = 0.15

Images = np.ndarray | Sequence[np.ndarray]

OTHER = "other"
"""The output for images of no class that a network knows."""


class Split:
    """Images (or other inputs) with labels.

    Args:
        inputs: uint8 (n, H, W, C), a list of uint8 images of various sizes, or float32 inputs of any shape.
        labels: Class indices, shape (n,).
    """

    def __init__(self, inputs: Images, labels: np.ndarray) -> None:
        self._inputs = inputs
        self.labels = np.asarray(labels, np.int64)
        if len(inputs) != len(self.labels):
            raise DataError(f"there are {len(inputs)} images and {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: np.ndarray) -> Images:
        """The images at these positions, in this order."""
        if isinstance(self._inputs, np.ndarray):
            return self._inputs[indices]
        return [self._inputs[int(i)] for i in indices]

    def spread(self, count: int | None = None) -> np.ndarray:
        """The positions of so many images, evenly over the split: many sets are in the order of their classes.

        Args:
            count: How many; all if None or more than there are.
        """
        most = len(self)
        count = most if count is None else min(count, most)
        return np.arange(count, dtype=np.int64) * most // max(count, 1)

    def batches(
        self, preprocessing: Preprocessing | None, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and labels in order, preprocessed.

        Args:
            preprocessing: Of the bundle; None passes float inputs unchanged.
            batch_size: Images at a time.
            limit: Take so many, evenly over the split.

        Yields:
            float32 (n, C, H, W) and int64 (n,).
        """
        positions = self.spread(limit)
        for start in range(0, len(positions), batch_size):
            indices = positions[start : start + batch_size]
            yield to_inputs(self.images(indices), preprocessing), self.labels[indices]

    def hashes(self) -> list[bytes]:
        """A hash of each image's content (shape and pixels)."""
        if not hasattr(self, "_hashes"):
            self._hashes = [_content_hash(image) for image in self._inputs]
        return self._hashes

    @property
    def digest(self) -> str:
        """SHA-256 over all contents and labels, in order."""
        whole = hashlib.sha256(b"".join(self.hashes()))
        whole.update(self.labels.tobytes())
        return whole.hexdigest()

    def part(self, indices: np.ndarray) -> Split:
        """The split that holds these positions, in this order."""
        made = Split(self.images(indices), self.labels[indices])
        if hasattr(self, "_hashes"):
            made._hashes = [self._hashes[int(i)] for i in indices]
        return made


def to_inputs(images: Images, preprocessing: Preprocessing | None) -> np.ndarray:
    """Inputs of the network, float32 (n, …).

    Raises:
        DataError: If these are images and there is no preprocessing to make inputs of them.
    """
    if preprocessing is not None:
        return preprocessing(images)
    if not isinstance(images, np.ndarray) or images.dtype.kind != "f":
        raise DataError(
            "the network has no preprocessing, so images can't be shown to it",
            "Set it where the network is loaded: --mean, --std, --scale, --color.",
        )
    return images.astype(np.float32, copy=False)


def _content_hash(image: np.ndarray) -> bytes:
    digest = hashlib.blake2b(str((image.shape, image.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.digest()


@dataclass(frozen=True)
class Dataset:
    """A data set as edgekit uses it: train to calibrate and train on, validation to choose by, test to report.

    Attributes:
        name: The reference it was loaded from.
        labels: Class names in the order of the indices.
        train: To calibrate and train on.
        validation: To choose models by.
        test: For reported figures only.
        augmentation: What training on it does by default: ``none``, ``crop`` or ``crop+flip``.
        notes: What was done to make the splits disjoint.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    augmentation: str = "none"
    notes: tuple[str, ...] = field(default=())

    def seen_by(self, labels: Sequence[str]) -> Dataset:
        """The data set as a network with these outputs sees it.

        Where they are some of its classes, by name and fewer, images of other classes are left out; with an output
        ``other`` they stay, with that label. In any other case it is the data set itself.

        Args:
            labels: Class names in the order of the network's outputs; empty if they have none.

        Raises:
            DataError: If a split has no image of these classes.
        """
        wanted = [name for name in labels if name != OTHER]
        if not wanted or len(labels) >= len(self.labels) or not set(wanted) <= set(self.labels):
            return self
        places = {name: position for position, name in enumerate(labels)}
        new = np.array([places.get(name, places.get(OTHER, -1)) for name in self.labels], np.int64)
        before = {"train": self.train, "validation": self.validation, "test": self.test}
        after = {name: _relabelled(split, new) for name, split in before.items()}
        for name, split in after.items():
            if not len(split):
                raise DataError(f"the {name} part of {self.name} has no image of {', '.join(wanted)}")
        left_out = sum(map(len, before.values())) - sum(map(len, after.values()))
        note = (f"{left_out} images of other classes were left out",) if left_out else ()
        seen = replace(self, labels=tuple(labels), notes=(*self.notes, *note))
        return replace(seen, train=after["train"], validation=after["validation"], test=after["test"])


def _relabelled(split: Split, new: np.ndarray) -> Split:
    """The images whose label has a new one, with it."""
    labels = new[split.labels]
    chosen = np.flatnonzero(labels >= 0)
    part = split.part(chosen)
    part.labels = labels[chosen]
    return part


def make_dataset(
    name: str,
    labels: Sequence[str],
    train: Split,
    *,
    validation: Split | None = None,
    test: Split | None = None,
    augmentation: str = "none",
    validation_share: float | None = None,
    overlap: str = "refuse",
) -> Dataset:
    """Makes a data set with three disjoint splits.

    What is held out is drawn by content hash: the images with the smallest hashes, identical ones together, so the
    draw depends neither on their order nor on a random generator.

    Args:
        name: The reference.
        labels: Class names.
        train: The training part; validation, and test if there is none, are taken out of it.
        validation: If the source has one.
        test: If the source has one.
        augmentation: Default augmentation.
        validation_share: Share to hold out for validation; default 10 %, at most 5 000.
        overlap: ``refuse`` sets that share images, or ``drop`` the training copies.

    Raises:
        DataError: If a split is empty, a label is out of range, or splits share images.
    """
    notes: list[str] = []
    for split_name, split in (("training", train), ("validation", validation), ("test", test)):
        if split is not None:
            _check(split_name, split, labels)
    if test is None:
        train, test = _hold_out(train, round(TEST_SHARE * len(train)))
        notes.append(f"{len(test)} test images were held out by content hash")
    else:
        train = _without(train, test, "test", overlap, notes)
    if validation is None:
        count = min(round(VALIDATION_SHARE * len(train)), VALIDATION_MOST)
        if validation_share is not None:
            count = round(validation_share * len(train))
        train, validation = _hold_out(train, count)
        notes.append(f"{len(validation)} validation images were held out by content hash")
    else:
        _without(validation, test, "test", "refuse", notes, of="validation")
        train = _without(train, validation, "validation", overlap, notes)
    if not len(train):
        raise DataError(f"{name} leaves no image to train on", "It needs more images.")
    return Dataset(name, tuple(labels), train, validation, test, augmentation, tuple(notes))


def _check(name: str, split: Split, labels: Sequence[str]) -> None:
    if not len(split):
        raise DataError(f"the {name} part holds no images", "Check the path; it may be empty.")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= len(labels):
        wrong = low if low < 0 else high
        where = int(np.flatnonzero(split.labels == wrong)[0])
        raise DataError(
            f"the {name} part has the label {wrong} (image {where}), and there are {len(labels)} classes",
            f"Labels run from 0 to {len(labels) - 1}.",
        )


def _hold_out(split: Split, count: int) -> tuple[Split, Split]:
    hashes = split.hashes()
    order = sorted(range(len(split)), key=lambda i: hashes[i])
    while 0 < count < len(order) and hashes[order[count]] == hashes[order[count - 1]]:
        count += 1
    held = np.array(sorted(order[:count]), np.int64)
    rest = np.array(sorted(order[count:]), np.int64)
    return split.part(rest), split.part(held)


def _without(split: Split, other: Split, name: str, overlap: str, notes: list[str], of: str = "training") -> Split:
    known = set(other.hashes())
    shared = [i for i, content in enumerate(split.hashes()) if content in known]
    if not shared:
        return split
    if overlap == "refuse":
        first = ", ".join(map(str, shared[:5]))
        raise DataError(
            f"{len(shared)} {of} images are in the {name} set too (the first at {first}): figures would flatter",
            "Remove them, or append ?overlap=drop to the data reference to leave the training copies out.",
        )
    notes.append(f"{len(shared)} {of} images were left out: they are in the {name} set")
    return split.part(np.setdiff1d(np.arange(len(split)), shared))


Factory = Callable[[], object]
