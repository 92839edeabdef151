"""``load_data``: from a reference such as ``cifar10:PATH`` to a data set."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from edgekit.data.dataset import Dataset, Split, make_dataset
from edgekit.errors import DataError, UnknownNameError, UsageError

SOURCES = {
    "digits": "edgekit.data.digits:load",
    "cifar10": "edgekit.data.cifar10:load",
    "idx": "edgekit.data.idx:load",
    "folder": "edgekit.data.folder:load",
    "npz": "edgekit.data.npz:load",
}
"""Every kind of reference, with the function ``load(name, path, **options) -> Dataset`` behind it."""


def load_data(reference: str) -> Dataset:
    """Loads a data set.

    Args:
        reference: ``digits``, ``cifar10:PATH``, ``idx:PATH``, ``folder:PATH``, ``npz:PATH``, or
            ``package.module:factory``. Options follow a ``?``: ``validation=0.1`` (share to hold out),
            ``overlap=drop`` (leave out training images that are in the test set).

    Raises:
        UsageError: If the reference can't be understood.
        DataError: If the data is missing, damaged, or its splits share images.

    Example:
        >>> load_data("digits").labels[:3]
        ('0', '1', '2')
    """
    plain, _, query = reference.partition("?")
    options = _options(query)
    kind, colon, path = plain.partition(":")
    if kind in SOURCES:
        if kind != "digits" and not path:
            raise UsageError(f"the data reference {reference!r} has no path", f"Write {kind}:PATH.")
        module, _, function = SOURCES[kind].partition(":")
        loaded: Dataset = getattr(importlib.import_module(module), function)(reference, Path(path), **options)
        return loaded
    if not colon:
        raise UnknownNameError("data set", plain, [*SOURCES, "package.module:factory"])
    return _from_factory(reference, plain, options)


def _options(query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "validation":
            try:
                options["validation_share"] = float(value)
            except ValueError:
                raise UsageError(f"validation={value!r} is no share", "For example ?validation=0.1.") from None
            if not 0 < options["validation_share"] < 1:
                raise UsageError(f"validation={value} is no share between 0 and 1")
        elif key == "overlap" and value in ("refuse", "drop"):
            options["overlap"] = value
        else:
            raise UsageError(
                f"a data reference has no option {key}={value}", "Options: validation=SHARE, overlap=refuse|drop."
            )
    return options


def _from_factory(reference: str, plain: str, options: dict[str, Any]) -> Dataset:
    from edgekit.sources.factory import resolve

    factory = resolve(plain)
    try:
        made = factory()
    except Exception as error:
        raise DataError(
            f"{plain}() failed: {type(error).__name__}: {error}", "It must work without arguments."
        ) from error
    if isinstance(made, Dataset):
        return made
    if isinstance(made, tuple) and len(made) == 4:
        x_train, y_train, x_test, y_test = (np.asarray(part) for part in made)
        return arrays_to_dataset(reference, (x_train, y_train), (x_test, y_test), **options)
    raise DataError(
        f"{plain}() gave a {type(made).__name__}",
        "A data factory returns an edgekit.data.dataset.Dataset or (x_train, y_train, x_test, y_test).",
    )


def arrays_to_dataset(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray] | None,
    labels: tuple[str, ...] = (),
    **options: Any,
) -> Dataset:
    """A data set from arrays: uint8 images (n, H, W) or (n, H, W, C), or float32 inputs."""
    splits = []
    for x, y in (train, test) if test is not None else (train,):
        if x.dtype != np.uint8 and x.dtype.kind != "f":
            raise DataError(
                f"{name} holds inputs of {x.dtype}", "Images are uint8, 0 to 255; other inputs are float32."
            )
        if x.dtype == np.uint8 and x.ndim == 3:
            x = x[..., None]
        if x.dtype == np.uint8 and (x.ndim != 4 or x.shape[-1] not in (1, 3)):
            raise DataError(
                f"{name} holds images of shape {x.shape}",
                "Images have the shape (n, H, W), (n, H, W, 1) or (n, H, W, 3).",
            )
        splits.append(Split(x if x.dtype == np.uint8 else x.astype(np.float32), y.reshape(-1)))
    if not labels:
        classes = max((int(split.labels.max()) for split in splits if len(split)), default=-1) + 1
        labels = tuple(str(index) for index in range(classes))
    return make_dataset(name, labels, splits[0], test=splits[1] if len(splits) > 1 else None, **options)
