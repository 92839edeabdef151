"""How to distil: settings that every step that trains shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MethodName = Literal["soft-targets", "decoupled", "hints", "attention", "relational", "contrastive"]

METHODS: Mapping[str, str] = {
    "soft-targets": "edgekit.compress.distill.soft_targets:SoftTargets",
    "decoupled": "edgekit.compress.distill.decoupled:Decoupled",
    "hints": "edgekit.compress.distill.hints:Hints",
    "attention": "edgekit.compress.distill.attention:Attention",
    "relational": "edgekit.compress.distill.relational:Relational",
    "contrastive": "edgekit.compress.distill.contrastive:Contrastive",
}
"""Every method by its name, with the place of its class."""

BEFORE, EMA = "before", "ema"
"""Teachers that are no reference: the network as it was before the step, and the moving average of its own weights."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Who teaches what.

    Attributes:
        teacher: A bundle folder or any other MODEL, with ``@FILE`` behind it where its weights are in a file of their own;
            several, or one text with ``+`` between them, are an ensemble (the mean of their softened outputs). ``before``
            is the network as it was before the step, ``ema`` the moving average of its own weights while it trains: for a
            network that is trained already; a few epochs from random weights gain nothing by it (measured).
        method: What is learnt: outputs (``soft-targets``, ``decoupled``), values inside (``hints``, ``attention``), or
            relations between images (``relational``, ``contrastive``).
        weight: Of ``soft-targets`` the share of the loss, 0 to 1, the rest being cross-entropy; of the others, and of what
            ``ema`` says, a factor, with cross-entropy added. None is what the method's authors took.
        temperature: Softens the outputs; of ``contrastive`` it scales similarities. None is what the method's authors took.
        layers: Where the network is looked into: names of layers, modules or nodes, or patterns of them. Chosen
            automatically if empty: the ends of stages, where the resolution changes, or the value before the head.
        teacher_layers: The same places of the teacher, in the same order; as ``layers`` if empty.

    Example:
        >>> Distillation(teacher=("big",), method="decoupled").teacher
        ('big',)
    """

    teacher: tuple[str, ...] = (BEFORE,)
    method: MethodName = "soft-targets"
    weight: float | None = None
    temperature: float | None = None
    layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.references:
            raise ValueError("name a teacher, for example teacher=big")
        if len(self.references) > 1 and {BEFORE, EMA} & set(self.references):
            raise ValueError(f"an ensemble is of other networks: {BEFORE!r} and {EMA!r} teach alone")
        if self.weight is not None and self.weight <= 0:
            raise ValueError(f"weight must be above 0, not {self.weight:g}")
        if self.method == "soft-targets" and self.weight is not None and self.weight > 1:
            raise ValueError(f"weight is a share of the loss, at most 1, not {self.weight:g}")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature:g}")
        outside = self.method in ("soft-targets", "decoupled")
        if outside and (self.layers or self.teacher_layers):
            raise ValueError(f"{self.method} looks at outputs alone: leave out layers and teacher_layers")

    @property
    def references(self) -> tuple[str, ...]:
        """The teachers one by one: a text with ``+`` that is no path itself is several."""
        parts = (part for text in self.teacher for part in ([text] if Path(text).exists() else text.split("+")))
        return tuple(part.strip() for part in parts if part.strip())

    def files(self) -> tuple[Path, ...]:
        """The files that the teachers are read from, as far as they can be told without loading them."""
        found = []
        for reference in self.references:
            model, weights = split_reference(reference)
            places = [Path(model) / "program.pt2", Path(model), Path(model.rpartition(":")[0] or model)]
            places += [Path(weights)] if weights else []
            found += [place for place in places if place.is_file()]
        return tuple(dict.fromkeys(found))


def split_reference(reference: str) -> tuple[str, str | None]:
    """``MODEL@FILE`` as the model and its weights; a path that exists is a model, whatever is in its name."""
    if "@" not in reference or Path(reference).exists():
        return reference, None
    model, _, weights = reference.rpartition("@")
    return model, weights


def distillation(value: Distillation | float) -> Distillation | None:
    """The setting ``distill`` of a step: a number is the share of the soft targets of the network before the step.

    Returns:
        None for 0: no distillation.

    Raises:
        ValueError: If the number is no share.
    """
    if isinstance(value, Distillation):
        return value
    if not 0 <= value <= 1:
        raise ValueError(f"distill is a share between 0 and 1, not {value:g}")
    return Distillation(weight=value) if value else None
