"""What a method of distillation is."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch

from edgekit.compress.distill.settings import METHODS

Shape = tuple[int, ...]
"""Of a value, with the batch given as -1."""


class Seen(NamedTuple):
    """What is seen of a network: its outputs, shape (n, classes), and the values at the places that are looked into."""

    outputs: torch.Tensor
    features: tuple[torch.Tensor, ...] = ()


class Method(torch.nn.Module, abc.ABC):
    """Base of all methods: a loss between what is seen of the student and of the teacher.

    Its parameters (regressors, embeddings) train along with the student. It is given float32 outside of any autocast,
    and batches of any size, one included.

    Args:
        shapes: Of the student's and the teacher's value at each place that is looked into.
        temperature: The published one if None; methods without one ignore it.
    """

    looks_at: ClassVar[Literal["outputs", "stages", "middle", "embedding"]]
    """Outputs alone; all ends of stages; the end of the middle stage; or the value before the head."""
    default_weight: ClassVar[float]
    """As published; see each method's source."""
    default_temperature: ClassVar[float] = 1.0

    def __init__(self, shapes: Sequence[tuple[Shape, Shape]] = (), temperature: float | None = None) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.temperature = self.default_temperature if temperature is None else temperature

    @abc.abstractmethod
    def forward(self, student: Seen, teacher: Seen, y: torch.Tensor) -> torch.Tensor:
        """The term of the loss, a scalar.

        Args:
            student: Seen of the network that trains.
            teacher: Seen of the teacher, without gradient.
            y: int64 labels, shape (n,).
        """


def method_class(name: str) -> type[Method]:
    """The class of a method."""
    module, _, attribute = METHODS[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found


def embedded(value: torch.Tensor) -> torch.Tensor:
    """A value as one vector for each image, (n, channels): means over height and width, or over the tokens of (n, t, c)."""
    if value.dim() == 4:
        return value.mean((2, 3))
    return value.mean(1) if value.dim() == 3 else value


def width(shape: Shape) -> int:
    """The length of the vector that :func:`embedded` makes of a value of this shape."""
    return shape[1] if len(shape) in (2, 4) else shape[-1]
