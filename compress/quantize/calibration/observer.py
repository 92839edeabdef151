"""What a calibration method is, and the registry of methods."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Mapping
from typing import ClassVar

import torch

from edgekit.errors import UnknownNameError

OBSERVERS: Mapping[str, str] = {
    "min-max": "edgekit.compress.quantize.calibration.min_max:MinMax",
    "moving-average": "edgekit.compress.quantize.calibration.moving_average:MovingAverage",
    "percentile": "edgekit.compress.quantize.calibration.percentile:Percentile",
    "mse": "edgekit.compress.quantize.calibration.mse:MeanSquaredError",
    "entropy": "edgekit.compress.quantize.calibration.entropy:Entropy",
}
"""Every method by its name, with the place of its class: imported only when it is used."""


class Observer(abc.ABC):
    """Watches one tensor and says which range its int8 grid should cover.

    An implementation guarantees: its memory does not grow with the number of batches; the order of the images within a
    batch does not matter; the range holds 0 and lies within what was seen (widened to hold 0).
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """Where the method is described."""

    @abc.abstractmethod
    def update(self, values: torch.Tensor, low: float, high: float) -> None:
        """Takes the tensor of one batch, float32, any shape, finite; and its smallest and largest value."""

    @abc.abstractmethod
    def range(self) -> tuple[float, float]:
        """Smallest and largest value to represent."""


def observer_class(name: str) -> type[Observer]:
    """The class of a method.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in OBSERVERS:
        raise UnknownNameError("calibration method", name, OBSERVERS)
    module, _, attribute = OBSERVERS[name].partition(":")
    found: type[Observer] = getattr(importlib.import_module(module), attribute)
    return found
